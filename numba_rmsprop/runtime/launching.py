"""Launches of kernels: on how many threads, and into how many shares their work is divided."""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock
from numpy.typing import NDArray

from ..kernels.parallel_loop import numba_loop_address, pool_loop_address
from ..kernels.thread_pool import ALONE as JOBS_ALONE
from ..kernels.thread_pool import UNSHARED, UNTIL
from . import helpers
from .interrupts import Uninterrupted
from .whole_calls import launch_lock

NAME = "NUMBA_RMSPROP_THREADS"

Team: TypeAlias = tuple[int, int, int, int]
"""See :mod:`numba_rmsprop.kernels.parallel_loop`."""

ALONE: Team = 1, 0, 0, 0

SERIAL_ITEMS = 8192
"""Below this many elements, a serial loop (2.6 us for 1,000) is faster than a launch (4.7 us and more)."""

FEWEST_ITEMS, MOST_SHARES = 4096, 8
"""Elements of a share at least, and shares for each thread at most, where the work can be divided as finely."""

MOST_THREADS = 1024

serial_only = False
"""True in a process that was forked after Numba had started its threads, where these are in use: they do not survive a
fork. GNU OpenMP ends a forked process that launches, and workqueue counts lost threads."""

forks = 0
"""The number of forks between the process that imported this module and the one that reads this."""

fixed: int | None = None
"""The number of threads of all launches; None where it is chosen at each."""

helped = helpers.AVAILABLE
"""Whether helpers share the work, and not Numba's threads."""

_asked_for_numba = _beside_torch = False


def set_threads(threads: int | Literal["auto", "numba"]) -> None:
    """Set on how many threads large steps run, in this process.

    Whatever it is, results have the same bits.

    Parameters
    ----------
    threads : int, "auto" or "numba"
        "auto", the default: as many as ``numba.get_num_threads()`` says, where they pay. The calling thread works like
        its helpers, and does not wait for those that come late. Each launch measures what it won and lost by them.
        Where more is lost, as beside other programs, steps of this size run on one thread for 50 times as long as the
        loss, and a second at most; then helpers are tried again.
        A number, up to 1024: as many at each launch, without measuring.
        "numba": as "auto", but on Numba's own threads, as on systems other than Linux. Such a launch waits for all.

    Raises
    ------
    ValueError
        If it is anything else.

    Notes
    -----
    The environment variable ``NUMBA_RMSPROP_THREADS`` sets the same from the start.

    Examples
    --------
    >>> import numba_rmsprop
    >>> numba_rmsprop.set_threads(2)
    >>> numba_rmsprop.set_threads("auto")
    """
    global fixed, _asked_for_numba
    _check_threads("threads", threads)
    with launch_lock:
        fixed, _asked_for_numba = int(threads) if not isinstance(threads, str) else None, threads == "numba"
        _choose_threads()


def share_threads_with_torch() -> None:
    """Take Numba's threads, where PyTorch has the same ones.

    PyTorch's threads look out for work for some milliseconds after each operation, and keep others off their cores. A
    step in a training loop on two cores took 1.6 times as long with helpers.
    """
    global _beside_torch
    try:
        numba.get_num_threads()  # chooses the layer
    except ValueError:  # there is none here
        return
    with launch_lock:
        _beside_torch = numba.threading_layer() == "omp"  # type: ignore[attr-defined]
        _choose_threads()


def _choose_threads() -> None:
    global helped
    helped = helpers.AVAILABLE and not _asked_for_numba and not _beside_torch


def _check_threads(name: str, threads: object) -> None:
    if isinstance(threads, str) and threads in ("auto", "numba"):
        return
    if isinstance(threads, bool) or not isinstance(threads, Integral) or not 1 <= int(threads) <= MOST_THREADS:
        raise ValueError(f'{name}: expected "auto", "numba" or a number from 1 to {MOST_THREADS}, got {threads!r:.100}')


def _set_threads_from_environment() -> None:
    asked = os.environ.get(NAME) or "auto"
    threads: Any = int(asked) if asked.isdecimal() else asked
    _check_threads(NAME, threads)
    set_threads(threads)


def threads_now() -> int:
    """Return how many threads may work."""
    if fixed is not None:
        return fixed
    # To ask Numba would start its threads; and where they are not started, nobody has set their number.
    threads = numba.get_num_threads() if _numba_has_threads() else numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return int(threads)


def team_for(items: int, *, fine: bool = False) -> Team:
    """Return who works on ``items`` elements: the calling thread alone, or all.

    With ``fine``, the work is divided into more shares than there are threads, since some may come late.
    """
    if items < SERIAL_ITEMS or serial_only:
        return ALONE
    threads = threads_now()
    if threads == 1:
        return ALONE
    shares = min(threads * MOST_SHARES, max(2, items // FEWEST_ITEMS)) if fine else threads
    pool, loop = helpers.pool_of(threads, helped), _pool_loop() if helped else _numba_loop()
    if fixed is not None:
        return shares, loop, pool.address, UNSHARED
    kind = items.bit_length()
    account = pool.accounts[4 * kind : 4 * kind + 4]
    if account[JOBS_ALONE] > 0:
        if time.monotonic_ns() < account[UNTIL]:
            account[JOBS_ALONE] -= 1
            return ALONE
        account[JOBS_ALONE] = 0
    return shares, loop, pool.address, kind


@cache
def _pool_loop() -> int:
    return int(pool_loop_address())


@cache
def _numba_loop() -> int:
    return int(numba_loop_address())


def compile_loop() -> None:
    """Compile what all launches need."""
    if helped:
        _pool_loop()
        helpers.compile_helpers()
    else:
        _numba_loop()


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
    global serial_only, forks, _beside_torch
    forks += 1
    helpers.pool_of.cache_clear()  # the child has none of their threads, and starts its own
    try:
        _beside_torch = False
        _choose_threads()
        serial_only |= not helped and _numba_has_threads()
    finally:
        _after_fork()


def _numba_has_threads() -> bool:
    try:
        numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:
        return False
    return True


if sys.platform != "win32":
    # A fork waits until another thread has finished its step, so that the child has consistent arrays and free locks.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)

_set_threads_from_environment()
