"""The first import and the first step of a process, with an empty cache."""

import json

import numba
import pytest
from processes import finish, run, start


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
def test_eight_processes_may_start_on_an_empty_cache(tmp_path):
    started = [start("take_first_step.py", NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(8)]
    finished = [finish(process) for process in started]
    assert [(done.stderr, done.returncode) for done in finished] == [("", 0)] * 8
    assert len({done.stdout for done in finished}) == 1


def test_importing_starts_no_threads_and_compiles_nothing(tmp_path):
    done = run("import_module.py", "numba_rmsprop", options=["-W", "error"], NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["threads"] == 1
    assert not {"scipy.optimize", "tqdm", "matplotlib", "torch"} & set(found["modules"])
    assert not list(tmp_path.rglob("*.nbi"))
