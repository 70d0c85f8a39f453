"""Threads that share out fits, with a progress bar, until all are done or somebody asks them to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import numba
import numpy as np
from numpy.typing import NDArray

from ..kernels.aliased_access import PLAIN
from ..runtime.interrupts import asked_to_stop
from ..runtime.launching import new_counters
from .progress_bar import bar, need_tqdm

TICK = 0.1
"""Seconds between two looks at how far the workers are."""


class Workers:
    """Threads for the fits of one call.

    These are Python's threads, each within a compiled function that has let go of the interpreter: unlike in a parallel
    kernel, the thread that called can meanwhile draw a progress bar and hear Ctrl-C, and a function that raises ends
    one fit and not all of them.
    """

    def __init__(self, fits: int, progress: str | None) -> None:
        if progress is not None:
            need_tqdm()  # now, and not after seconds of compiling
        self.fits = fits
        self._progress = progress
        self.count = 1 if PLAIN else max(1, min(int(numba.get_num_threads()), fits))
        self.stop: NDArray[np.int64] = np.zeros((1, 8), np.int64)
        self.errors: dict[int, Exception] = {}
        self._counters = new_counters(self.count)

    def run(self, share: Callable[..., None], current: list[NDArray[np.int64]]) -> None:
        """Call ``share(worker, counters, stop)`` in each thread, until none has anything left.

        Parameters
        ----------
        share : callable
            Takes fits until there are none left or ``stop`` is set. Where it raises, the fit it was at goes into
            ``errors``, and it is called again.
        current : list of ndarray
            For each worker, where ``share`` writes the fit it is at.
        """
        self._counters[:] = 0
        shown = None if self._progress is None else bar(self.fits, "fit", self._progress)
        threads = [
            threading.Thread(target=self._work, args=(share, worker, current[worker]), daemon=True)
            for worker in range(self.count)
        ]
        with asked_to_stop(self._ask), shown or nullcontext():
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(TICK)
                        if shown is not None:
                            busy = sum(map(threading.Thread.is_alive, threads))
                            shown.update(max(self._begun() - busy - shown.n, 0))
            finally:  # a second Ctrl-C, or no more threads to be had: those that run are not to go on unseen
                if any(map(threading.Thread.is_alive, threads)):
                    self._ask()
            if shown is not None:
                shown.update(self._begun() - shown.n)  # they may all have ended before the first look

    def _work(self, share: Callable[..., None], worker: int, current: NDArray[np.int64]) -> None:
        while True:
            try:
                with np.errstate(all="ignore"):  # as compiled code, for when Numba is told to compile nothing
                    share(worker, self._counters, self.stop)
            except Exception as error:  # noqa: BLE001 - whatever the user's function raises; it is told in the result
                # Its traceback would keep the frames, and with them all data, for each fit that raises.
                self.errors[int(current[0])] = error.with_traceback(None)
            else:
                return

    def _ask(self) -> None:
        self.stop[0, 0] = 1

    def _begun(self) -> int:
        """Return how many fits the workers have taken: of each part, no more than it has."""
        ends = np.arange(self.count + 1) * self.fits // self.count
        return int(np.minimum(self._counters[:, 0], np.diff(ends)).sum())
