"""One step on every element of a variable, or of many small ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import line_at, lines_at
from .jit import Integer, compiled, compiled_inside
from .parallel_loop import run_shares
from .prefetch import prefetch_row, prefetch_state
from .rows import step_elements
from .work_stealing import give_none_away, next_share

LINES_AHEAD = 8
"""Prefetch distance, in lines. Without it, 20 million elements took 14.0 ms, and only streaming them 11.9 ms."""


LONG_LINE = 1024
"""The most elements of a line that are asked for ahead: a row of a table may have a million."""


@compiled_inside
def _step_lines(worker: Integer, workers: Integer, grad: Any, state: Any, packed: Any, entered: Any) -> None:
    lines = grad.shape[0]
    for line in range(worker * lines // workers, (worker + 1) * lines // workers):
        if grad.shape[1] <= LONG_LINE:  # the processor itself fetches long ones
            prefetch_row(grad, line + LINES_AHEAD)
            prefetch_state(state, line + LINES_AHEAD)
        step_elements(np.int64(line), grad, np.int64(line), state, None, packed[1], packed, worker, entered)


@compiled
def step_dense(team: Any, grad: Any, state: Any, packed: Any, entered: Any) -> None:
    """Step arrays of shape (lines, columns), of any strides; ``entered`` is that of the scratch of ``rows``."""
    run_shares(_step_lines, team, (grad, state, packed, entered))


@compiled_inside
def _step_variable(k: Integer, addresses: Any, sizes: Any, kinds: Any, scales: Any, packed: Any) -> None:
    grads, state = line_at(addresses[k, 0], sizes[k], packed), (*lines_at(addresses, k, sizes[k], kinds), None)
    zero = np.int64(0)
    step_elements(zero, grads, zero, state, None, scales[k], packed, zero, None)


@compiled_inside
def _step_variables(
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


@compiled
def step_many(team: Any, addresses: Any, sizes: Any, kinds: Any, scales: Any, packed: Any, counters: Any) -> None:
    """Step many small variables.

    A tuple of arrays would be compiled anew for each length, and a launch for each variable takes longer than its step;
    so a variable comes as addresses.

    Parameters
    ----------
    team
        See :mod:`~numba_rmsprop.kernels.parallel_loop`.
    addresses : ndarray of int64, shape (variables, 1 + arrays of the state)
        Where each gradient lies, and each array of its state.
    sizes : ndarray of int64, shape (variables,)
        How many elements each has.
    kinds : tuple
        For each array of the state, a number of its dtype; None for a slot that there is not.
    scales : ndarray, shape (variables,)
        What the clipping of norms leaves of each gradient, which is in ``packed`` otherwise.
    counters : ndarray of int64, shape (workers, 8)
        See :func:`~numba_rmsprop.kernels.work_stealing.next_share`.
    """
    give_none_away(counters)
    run_shares(_step_variables, team, (addresses, sizes, kinds, scales, packed, counters))


@compiled
def add_one(addresses: Any, like: Any) -> None:
    """Add 1 to the number at each address, of the dtype of ``like``."""
    for k in range(addresses.size):
        number = line_at(addresses[k], 1, like)
        number[0, 0] += 1
