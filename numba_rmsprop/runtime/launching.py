"""Who launches kernels, on how many threads, when none may be launched, and what workers need for themselves."""

from __future__ import annotations

import os
import sys

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.rows import CHUNK
from .interrupts import Uninterrupted
from .locking import launch_lock

SERIAL_ITEMS = 8192
"""Below this many elements a serial loop (2.6 us for 1,000) beats a launch (4.7 us and more)."""

serial_only = False
"""Whether this process was forked from one that had Numba's threads, so that nothing may be launched in it.

Threads do not survive a fork. GNU OpenMP kills a forked process that launches, and workqueue has lost count.
"""

forks = 0
"""How many forks lie between this process and the one that imported the module."""


def worth_a_launch(items: int) -> bool:
    """Return whether ``items`` elements are for all threads, and not for a serial loop."""
    return items >= SERIAL_ITEMS and not serial_only


def workers_for(items: int) -> int:
    """Return how many workers to share ``items`` elements among: 1, or all of Numba's threads."""
    return 1 if items < SERIAL_ITEMS or serial_only else int(numba.get_num_threads())


def new_counters(workers: int) -> NDArray[np.int64]:
    """Return ``counters`` as :func:`numba_rmsprop.kernels.work_sharing.next_share` wants them."""
    return np.empty((workers, 8), np.int64)


def row_links(n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return ``(following, chains)`` as the kernels in :mod:`numba_rmsprop.kernels.duplicates` want them."""
    return np.empty(n, np.int32), np.empty((n, 2), np.int32)


def row_scratch(workers: int, values: FloatArray) -> tuple[NDArray[np.int32], FloatArray, NDArray[np.int64]]:
    """Return ``scratch`` as the kernels in :mod:`numba_rmsprop.kernels.rows` want it."""
    sums = np.empty((workers, values.shape[1]), values.dtype)
    return np.empty((workers, CHUNK), np.int32), sums, new_counters(workers)


def _before_fork() -> None:
    # In this order, which is that of a step that compiles. The compiler's lock too: a child forked while another thread
    # compiles anything would wait for that thread, which it does not have, as soon as it compiles itself.
    with Uninterrupted():
        launch_lock.acquire()
        global_compiler_lock.acquire()


def _after_fork() -> None:
    try:
        global_compiler_lock.release()
    finally:
        launch_lock.release()


def _after_fork_in_child() -> None:
    global serial_only, forks
    forks += 1
    try:
        numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:  # not started, so that this process may start its own
        pass
    else:
        serial_only = True
    finally:
        _after_fork()


if sys.platform != "win32":
    # A fork waits for the step that another thread is taking, so that the child has whole arrays and free locks.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
