"""Threads for many fits, with a progress bar and Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.interrupts import asked_to_stop

TICK = 0.1
"""Seconds between two updates of the progress bar."""


def run_workers(
    work: Callable[[int], None], count: int, stop: NDArray[np.int64], bar: Any, ended: Callable[[], int]
) -> None:
    """Call ``work(0)`` to ``work(count - 1)``, each on its own thread, and wait for all of them.

    These are Python's threads, and most of the time each is within a compiled function that has released the
    interpreter lock. In a parallel kernel, the calling thread could neither draw a progress bar nor hear Ctrl-C, and a
    function that raises would end all fits and not only its own.

    Parameters
    ----------
    work : callable
    count : int
        The number of threads.
    stop : ndarray of int64, shape (1, 8)
        Ctrl-C sets ``stop[0, 0]``; ``work`` should then return soon. A second Ctrl-C raises KeyboardInterrupt.
    bar : tqdm or None
        The progress bar.
    ended : callable
        Returns the progress so far.
    """

    def ask_to_stop() -> None:
        stop[0, 0] = 1

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(count)]
    with asked_to_stop(ask_to_stop):
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(TICK)
                    if bar is not None:
                        bar.update(ended() - bar.n)
        finally:  # after a second Ctrl-C, or if a thread cannot start, the others must not go on unseen
            if any(map(threading.Thread.is_alive, threads)):
                ask_to_stop()
        if bar is not None:
            bar.update(ended() - bar.n)
