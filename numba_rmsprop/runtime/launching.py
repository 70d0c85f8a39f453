"""Launches of kernels: on how many threads, with which scratch memory, and not at all after some forks."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TypeAlias

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock
from numpy.typing import NDArray

from ..kernels.parallel_loop import loop_address
from .interrupts import Uninterrupted
from .whole_calls import launch_lock

Team: TypeAlias = tuple[int, int]
"""The number of workers and the address of their loop: see :mod:`numba_rmsprop.kernels.parallel_loop`."""

ALONE: Team = 1, 0

SERIAL_ITEMS = 8192
"""Below this many elements, a serial loop (2.6 us for 1,000) is faster than a launch (4.7 us and more)."""

serial_only = False
"""True in a process that was forked after Numba had started its threads: nothing may be launched in it.

Threads do not survive a fork. GNU OpenMP ends a forked process that launches, and workqueue counts lost threads.
"""

forks = 0
"""The number of forks between the process that imported this module and the one that reads this."""


def team_for(items: int) -> Team:
    """Return who works on ``items`` elements: the calling thread alone, or as many workers as Numba has threads."""
    if items < SERIAL_ITEMS or serial_only:
        return ALONE
    workers = int(numba.get_num_threads())
    return (workers, _loop_address()) if workers > 1 else ALONE


@cache
def _loop_address() -> int:
    return int(loop_address())


def new_counters(workers: int) -> NDArray[np.int64]:
    """Return ``counters`` for :func:`numba_rmsprop.kernels.work_stealing.next_share`."""
    return np.empty((workers, 8), np.int64)


def _before_fork() -> None:
    # A step that compiles takes the locks in the same order. The compiler's lock is needed since a child does not have
    # the threads of its parent: if one of them holds the lock at the fork, the child waits for ever when it compiles.
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
    except ValueError:  # no threads were started, so this process may start its own
        pass
    else:
        serial_only = True
    finally:
        _after_fork()


if sys.platform != "win32":
    # A fork waits until another thread has finished its step, so that the child has consistent arrays and free locks.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
