"""One step on every element of a variable, or of many small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .aliased_access import line_at
from .jit import Integer, compiled, compiled_parallel
from .prefetch import prefetch_row
from .rows import prefetch_state, step_row
from .rule import unpack_rates
from .work_sharing import give_none_away, next_share

BLOCK_LINES = 64
"""Lines that a worker takes at a time."""

LINES_AHEAD = 8
"""How many lines ahead to prefetch. Without, 20 million elements took 14.0 ms, and only streaming them 11.9 ms."""


@compiled
def step_lines(begin: Integer, end: Integer, grad: Any, state: Any, rates: Any) -> None:
    """Step lines ``begin`` to ``end`` of arrays of shape (lines, columns), on the calling thread."""
    named = unpack_rates(rates)
    for line in range(begin, end):
        prefetch_row(grad, line + LINES_AHEAD)
        prefetch_state(line + LINES_AHEAD, state)
        step_row(np.int64(line), grad, np.int64(line), state, np.int64(0), np.int64(0), None, named)


@compiled_parallel
def step_dense(grad: Any, state: Any, rates: Any) -> None:
    """Step arrays of shape (lines, columns), of any strides, on all threads."""
    lines = grad.shape[0]
    for block in prange(-(-lines // BLOCK_LINES)):
        begin = np.int64(block) * BLOCK_LINES
        step_lines(begin, min(begin + BLOCK_LINES, lines), grad, state, rates)


@compiled
def _step_variable(k: Integer, addresses: Any, sizes: Any, mg: Any, momentum: Any, rates: Any) -> None:
    size = sizes[k]
    grad = line_at(addresses[k, 0], size, rates)
    state = (
        line_at(addresses[k, 1], size, rates),
        line_at(addresses[k, 2], size, rates),
        line_at(addresses[k, 3], size, mg),
        line_at(addresses[k, 4], size, momentum),
    )
    step_row(np.int64(0), grad, np.int64(0), state, np.int64(0), np.int64(0), None, unpack_rates(rates))


@compiled
def step_many_serial(addresses: Any, sizes: Any, mg: Any, momentum: Any, rates: Any) -> None:
    """Step many small variables on the calling thread.

    A tuple of arrays would be compiled anew for each length, and a launch for each variable takes longer than its step;
    so a variable comes as addresses: of its gradient and of each array of its state, int64, shape (variables, 5).
    ``mg`` and ``momentum`` are None where the variant has none, or else any array of the dtype.
    """
    for k in range(sizes.size):
        _step_variable(k, addresses, sizes, mg, momentum, rates)


@compiled
def _step_share(
    worker: Integer,
    workers: Integer,
    addresses: Any,
    sizes: Any,
    mg: Any,
    momentum: Any,
    rates: Any,
    counters: Any,
) -> None:
    k = next_share(worker, workers, sizes.size, counters)
    while k >= 0:
        _step_variable(k, addresses, sizes, mg, momentum, rates)
        k = next_share(worker, workers, sizes.size, counters)


@compiled_parallel
def step_many(workers: Integer, addresses: Any, sizes: Any, mg: Any, momentum: Any, rates: Any, counters: Any) -> None:
    """Step many small variables on all threads; ``counters`` as in :func:`next_share`."""
    give_none_away(counters)
    for worker in prange(workers):
        _step_share(np.int64(worker), workers, addresses, sizes, mg, momentum, rates, counters)


@compiled
def add_one(addresses: Any, like: Any) -> None:
    """Add 1 to the number at each address, of the dtype of ``like``."""
    for k in range(addresses.size):
        number = line_at(addresses[k], 1, like)
        number[0, 0] += 1
