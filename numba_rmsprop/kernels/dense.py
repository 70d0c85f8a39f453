"""One step on every element of a variable, or of many small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .jit import Integer, compiled, compiled_parallel
from .memory import line_at
from .rows import step_element, step_row
from .rule import unpack_rates
from .shares import give_none_away, next_share


@compiled_parallel
def step_dense(grad: Any, state: Any, rates: Any) -> None:
    """Step contiguous arrays of shape (1, size) on all threads."""
    for j in prange(grad.shape[1]):
        step_element(0, j, grad, 0, state, None, unpack_rates(rates))


@compiled_parallel
def step_dense_strided(grad: Any, state: Any, rates: Any) -> None:
    """Step arrays of shape (rows, columns) and any strides, a row at a time."""
    for row in prange(grad.shape[0]):
        step_row(np.int64(row), grad, np.int64(row), state, np.int64(0), np.int64(0), None, unpack_rates(rates))


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
