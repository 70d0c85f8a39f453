"""Steps beside other programs, which need the cores too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from numba_rmsprop import set_threads

from . import steps
from .steps import FOREACH, OURS, OURS_TORCH, SPARSE_ADAM, Step

ONE_THREAD, NUMBAS_THREADS = f"{OURS}, one thread", f"{OURS}, Numba's threads"
SETTINGS = {OURS: "auto", ONE_THREAD: 1, NUMBAS_THREADS: "numba"}
"""What is set for our own steps."""

KEEP_BUSY = "while True: pass"


class OtherPrograms:
    """Some processes that never wait."""

    def __init__(self, count: int) -> None:
        self._processes = [subprocess.Popen([sys.executable, "-c", KEEP_BUSY]) for _ in range(count)]

    def stop(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()


def with_setting(library: str, maker: Callable[[str], Step]) -> Step:
    """Return a step of a library, ours with what is set for it."""
    step = maker(OURS if library in SETTINGS else library)
    setting = SETTINGS.get(library, "auto")

    def run() -> None:
        set_threads(setting)  # takes 0.5 us
        step()

    return run


def many(library: str) -> Step:
    """Return a step on 20 variables of 1,000 elements."""
    return with_setting(library, lambda name: steps.dense(name, [1000] * 20))


def dense(library: str) -> Step:
    """Return a step on 1,000,000 elements."""
    return with_setting(library, lambda name: steps.dense(name, [1_000_000]))


def rows(library: str) -> Step:
    """Return a step on 4,096 rows of 1,000,000 x 64."""
    indices = steps.unique(4096, 1_000_000)
    return with_setting(library, lambda name: steps.rows(name, (1_000_000, 64), indices))


DENSE = (OURS, ONE_THREAD, NUMBAS_THREADS, OURS_TORCH, FOREACH)
ROWS = (OURS, ONE_THREAD, NUMBAS_THREADS, OURS_TORCH, SPARSE_ADAM)
CASES: dict[str, tuple[Callable[[str], Step], tuple[str, ...]]] = {
    "20 variables of 1,000": (many, DENSE),
    "dense, 1,000,000": (dense, DENSE),
    "4,096 rows of 1,000,000 x 64": (rows, ROWS),
}


class Busy(steps._Timed):
    """A step beside some programs that are always busy."""

    params = (steps.sizes(0, 2, 8), list(CASES), [OURS, ONE_THREAD])
    param_names = ("other programs", "step", "library")

    def setup(self, programs: int, case: str, library: str) -> None:
        """Make the step, and start the programs."""
        self.warm_up(CASES[case][0](library))
        self.programs = OtherPrograms(programs)

    def teardown(self, *_: object) -> None:
        """End the programs."""
        set_threads("auto")
        self.programs.stop()
