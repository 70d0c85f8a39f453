"""Sums of squares of gradients, for clipping by norm.

Each kernel writes partial sums, in float64, whose places depend on the gradient alone and not on the number of
threads; their sum is taken in order, so that a clipped step has the same bits at any number of threads. Duplicates
are summed, and values clipped, before they are squared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .csr import BLOCK_ROWS, add_entries
from .jit import Integer, compiled, compiled_parallel, compiled_sum
from .rows import CURRENT, DUPLICATE, NEXT, add_duplicates, chain_duplicates
from .rule import clip, unpack_rates


@compiled_sum
def _squares(grads: Any, i: Integer, rates: Any) -> float:
    total = 0.0
    for j in range(grads.shape[1]):
        grad = np.float64(clip(grads[i, j], rates))
        total += grad * grad
    return total


@compiled_parallel
def dense_squares(grads: Any, rates: Any, partial: Any) -> None:
    """Write the sums of squares of the rows of ``grads`` into ``partial``."""
    for block in prange(partial.size):
        partial[block] = _squares(grads, np.int64(block), unpack_rates(rates))


@compiled
def line_squares(grads: Any, rates: Any) -> float:
    """Return the sum of squares of ``grads``, shape (1, n), on the calling thread."""
    return _squares(grads, np.int64(0), unpack_rates(rates))


@compiled
def _owned_rows_squares(
    worker: Integer,
    workers: Integer,
    indices: Any,
    values: Any,
    ages: Any,
    rates: Any,
    links: Any,
    sums: Any,
    partial: Any,
) -> None:
    clocks = ages[0]
    named = unpack_rates(rates)
    i = chain_duplicates(worker, workers, indices, ages, links)
    while i >= 0:
        if links[i, DUPLICATE] < 0:
            partial[i] = _squares(values, i, named)
        else:
            add_duplicates(worker, i, values, links, sums)
            partial[i] = _squares(sums, worker, named)
        clocks[indices[i]] = links[i, CURRENT]
        i = links[i, NEXT]


@compiled_parallel
def rows_squares(
    workers: Integer, indices: Any, values: Any, ages: Any, rates: Any, links: Any, sums: Any, partial: Any
) -> None:
    """Write each touched row's sum of squares into ``partial``, shape (n,), at its first occurrence; 0 is elsewhere.

    The clocks serve as marks and are as before at the end, or at the floor where they lay below it.
    """
    for worker in prange(workers):
        _owned_rows_squares(np.int64(worker), workers, indices, values, ages, rates, links, sums, partial)


@compiled
def _row_entries_squares(worker: Integer, row: Integer, matrix: Any, rates: Any, sums: Any) -> float:
    indptr, indices, data = matrix
    add_entries(worker, row, indptr, indices, data, sums)
    total = 0.0
    for k in range(indptr[row], indptr[row + 1]):
        grad = np.float64(clip(sums[worker, indices[k]], rates))
        total += grad * grad
        # Taken once: a duplicate of this entry now finds 0.
        sums[worker, indices[k]] = 0
    return total


@compiled
def _csr_blocks_squares(worker: Integer, workers: Integer, matrix: Any, rates: Any, sums: Any, partial: Any) -> None:
    rows = matrix[0].size - 1
    named = unpack_rates(rates)
    for block in range(worker, partial.size, workers):
        total = 0.0
        for row in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)):
            total += _row_entries_squares(worker, row, matrix, named, sums)
        partial[block] = total


@compiled_parallel
def csr_squares(workers: Integer, matrix: Any, rates: Any, sums: Any, partial: Any) -> None:
    """Write the sums of squares of every ``BLOCK_ROWS`` rows into ``partial``; ``sums`` is 0, before and after."""
    for worker in prange(workers):
        _csr_blocks_squares(np.int64(worker), workers, matrix, rates, sums, partial)
