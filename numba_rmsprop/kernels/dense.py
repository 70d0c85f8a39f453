"""One step on every element of a variable, or of many small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .aliased_access import line_at, lines_at
from .jit import Integer, compiled, compiled_parallel
from .prefetch import prefetch_row, prefetch_state
from .rows import step_elements, step_row
from .work_stealing import give_none_away, next_share

BLOCK_LINES = 64
"""Lines that a worker takes at a time."""

LINES_AHEAD = 8
"""Prefetch distance, in lines. Without it, 20 million elements took 14.0 ms, and only streaming them 11.9 ms."""


@compiled
def step_lines(begin: Integer, end: Integer, grad: Any, state: Any, packed: Any) -> None:
    """Step lines ``begin`` to ``end`` of arrays of shape (lines, columns), on the calling thread."""
    for line in range(begin, end):
        prefetch_row(grad, line + LINES_AHEAD)
        prefetch_state(state, line + LINES_AHEAD)
        step_row(np.int64(line), grad, np.int64(line), state, np.int64(0), np.int64(0), None, packed)


@compiled_parallel
def step_dense(grad: Any, state: Any, packed: Any) -> None:
    """Step arrays of shape (lines, columns), of any strides, on all threads."""
    lines = grad.shape[0]
    for block in prange(-(-lines // BLOCK_LINES)):
        begin = np.int64(block) * BLOCK_LINES
        step_lines(begin, min(begin + BLOCK_LINES, lines), grad, state, packed)


@compiled
def _step_variable(k: Integer, addresses: Any, sizes: Any, kinds: Any, scales: Any, packed: Any) -> None:
    grads, state = line_at(addresses[k, 0], sizes[k], packed), lines_at(addresses, k, sizes[k], kinds)
    step_elements(np.int64(0), grads, np.int64(0), state, scales[k], packed)


@compiled
def step_many_serial(addresses: Any, sizes: Any, kinds: Any, scales: Any, packed: Any) -> None:
    """Step many small variables on the calling thread.

    A tuple of arrays would be compiled anew for each length, and a launch for each variable takes longer than its step;
    so a variable comes as addresses.

    Parameters
    ----------
    addresses : ndarray of int64, shape (variables, 1 + arrays of the state)
        Where each gradient lies, and each array of its state.
    sizes : ndarray of int64, shape (variables,)
        How many elements each has.
    kinds : tuple
        For each array of the state, a number of its dtype; None for a slot that there is not.
    scales : ndarray, shape (variables,)
        What the clipping of norms leaves of each gradient, which is in ``packed`` otherwise.
    """
    for k in range(sizes.size):
        _step_variable(k, addresses, sizes, kinds, scales, packed)


@compiled
def _step_share(
    worker: Integer,
    workers: Integer,
    addresses: Any,
    sizes: Any,
    kinds: Any,
    scales: Any,
    packed: Any,
    counters: Any,
) -> None:
    k = next_share(worker, workers, sizes.size, counters)
    while k >= 0:
        _step_variable(k, addresses, sizes, kinds, scales, packed)
        k = next_share(worker, workers, sizes.size, counters)


@compiled_parallel
def step_many(
    workers: Integer, addresses: Any, sizes: Any, kinds: Any, scales: Any, packed: Any, counters: Any
) -> None:
    """Step many small variables on all threads; ``counters`` as in :func:`next_share`."""
    give_none_away(counters)
    for worker in prange(workers):
        _step_share(np.int64(worker), workers, addresses, sizes, kinds, scales, packed, counters)


@compiled
def add_one(addresses: Any, like: Any) -> None:
    """Add 1 to the number at each address, of the dtype of ``like``."""
    for k in range(addresses.size):
        number = line_at(addresses[k], 1, like)
        number[0, 0] += 1
