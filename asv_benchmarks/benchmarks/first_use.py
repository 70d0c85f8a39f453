"""What a new process pays before its first step: importing, and compiling or loading what was compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from . import steps

FIRST_STEP = """
import time
import numpy as np
from numba_rmsprop import IndexedSlices, RMSprop
table = np.ones((5000, 64), np.float32)
grad = IndexedSlices(np.ones(({entries}, 64), np.float32), np.arange({entries}))
started = time.perf_counter()
RMSprop().apply_gradients([(grad, table)])
print(time.perf_counter() - started)
"""


def seconds_to_first_step(entries: int, cache: str) -> float:
    """Return how long the first sparse step of a new process takes."""
    finished = subprocess.run(
        [sys.executable, "-c", FIRST_STEP.format(entries=entries)],
        env=os.environ | {"NUMBA_CACHE_DIR": cache},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(finished.stdout)


def timeraw_import() -> str:
    """Import the package, numba included."""
    return "import numba_rmsprop"


def timeraw_import_numba() -> str:
    """Import numba and scipy.sparse alone."""
    return "import numba, scipy.sparse"


class FirstStep:
    """The first sparse step: on 2 rows, on one thread; on 4,096, on all."""

    params = (steps.sizes(2, 4096),)
    param_names = ("entries",)
    unit = "seconds"
    timeout = 300

    def track_cold(self, entries: int) -> float:
        """Nothing is compiled yet."""
        with tempfile.TemporaryDirectory() as cache:
            return seconds_to_first_step(entries, cache)

    def track_cached(self, entries: int) -> float:
        """Numba's cache has it."""
        with tempfile.TemporaryDirectory() as cache:
            seconds_to_first_step(entries, cache)
            return seconds_to_first_step(entries, cache)
