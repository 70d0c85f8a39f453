"""The first step of a process, which compiles or loads what was compiled."""

import os
import subprocess
import sys

import numba
import pytest

FIRST_STEP = """
import numpy as np
from numba_rmsprop import IndexedSlices, RMSprop
table = np.ones((300, 64), np.float32)
opt = RMSprop()
opt.apply_gradients([(IndexedSlices(np.ones((3, 64), np.float32), [7, 2, 7]), table)])
print(float(table.sum()), opt.iterations)
"""


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
def test_eight_processes_may_start_on_an_empty_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_STEP],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    finished = [(process.communicate(), process.returncode) for process in started]
    assert [(errors, code) for (_, errors), code in finished] == [("", 0)] * 8
    assert len({printed for (printed, _), _ in finished}) == 1


def test_importing_starts_no_threads_and_compiles_nothing(tmp_path):
    program = """
import sys, threading
import numba_rmsprop
assert threading.active_count() == 1
for absent in ("scipy.optimize", "tqdm", "matplotlib", "torch"):
    assert absent not in sys.modules, absent
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, check=True)
    assert not list(tmp_path.rglob("*.nbi"))
