"""A job that only several threads together can do, to see whether helpers come."""

import numpy as np

from numba_rmsprop.kernels import thread_pool
from numba_rmsprop.kernels.jit import compiled, compiled_inside
from numba_rmsprop.kernels.parallel_loop import run_shares
from numba_rmsprop.runtime import helpers, launching

LIMIT = 20_000_000_000
"""Nanoseconds after which a helper counts as never coming."""


@compiled_inside
def _meet(share, shares, begun, waited):
    begin = thread_pool.nanoseconds(thread_pool.MONOTONIC)
    thread_pool.add(begun, 0, 1)
    while thread_pool.get(begun, 0) < shares and waited[share] < LIMIT:
        thread_pool.let_others_run()
        waited[share] = thread_pool.nanoseconds(thread_pool.MONOTONIC) - begin


@compiled
def _take_together(team, begun, waited):
    run_shares(_meet, team, (begun, waited))


def meet(threads):
    """Take shares of which each waits until all others have been begun; return whether each had a thread of its own."""
    begun, waited = np.zeros(1, np.int64), np.zeros(threads, np.int64)
    team = threads, launching._pool_loop(), helpers.pool_of(threads, True).address, thread_pool.UNSHARED
    _take_together(team, begun.ctypes.data, waited)
    return begun[0] == threads and waited.max() < LIMIT
