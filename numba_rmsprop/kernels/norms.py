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
from .duplicates import add_duplicates, mark_duplicates
from .jit import Integer, compiled, compiled_parallel, compiled_sum
from .rows import CHUNK, list_heads
from .rule import clip, unpack_rates
from .shares import give_none_away, next_share


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
def _rows_squares_chunk(
    worker: Integer, chunk: Integer, entries: Any, clocks: Any, rates: Any, links: Any, scratch: Any, partial: Any
) -> None:
    indices, values = entries
    _, following, chains = links
    heads, sums, _ = scratch
    named = unpack_rates(rates)
    begin = chunk * CHUNK
    count = list_heads(worker, begin, min(begin + CHUNK, indices.size), following, heads)
    total = 0.0
    for u in range(count):
        first = np.int64(heads[worker, u])
        row = indices[first]
        second = np.int64(-1 - clocks[row])
        if second < 0:
            total += _squares(values, first, named)
        else:
            add_duplicates(worker, first, second, values, following, sums)
            total += _squares(sums, worker, named)
            clocks[row] = chains[second, 1]
    partial[chunk] = total


@compiled
def _rows_squares_share(
    worker: Integer,
    workers: Integer,
    entries: Any,
    clocks: Any,
    rates: Any,
    links: Any,
    scratch: Any,
    partial: Any,
) -> None:
    chunk = next_share(worker, workers, partial.size, scratch[2])
    while chunk >= 0:
        _rows_squares_chunk(worker, chunk, entries, clocks, rates, links, scratch, partial)
        chunk = next_share(worker, workers, partial.size, scratch[2])


@compiled_parallel
def rows_squares(
    workers: Integer, entries: Any, clocks: Any, rates: Any, links: Any, scratch: Any, partial: Any
) -> None:
    """Write the sums of squares of the rows that come first in every ``CHUNK`` entries into ``partial``.

    The grouped arguments are those of :mod:`~numba_rmsprop.kernels.rows`. The clocks are as before at the end.
    """
    mark_duplicates(entries[0], clocks, links[0], links[1], links[2])
    give_none_away(scratch[2])
    for worker in prange(workers):
        _rows_squares_share(np.int64(worker), workers, entries, clocks, rates, links, scratch, partial)


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
