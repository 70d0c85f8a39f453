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
from .memory import load_grad
from .prefetch import prefetch_item, prefetch_row
from .rows import CHUNK, ROWS_AHEAD, list_heads
from .rule import clip, unpack_rates
from .shares import give_none_away, next_share

TERMS = 64
"""Squares that are summed in the gradient's own dtype; of float32, twice as many fit into a vector as of float64."""

BLOCK_LINES = 128
"""Lines of ``TERMS`` elements of a dense gradient to one partial sum."""

LINES_AHEAD = 32
"""How far ahead to prefetch lines: with it, 80 MB took 3.9 ms on two threads, which is what reading them takes."""


@compiled_sum
def _squares(grads: Any, i: Integer, rates: Any) -> float:
    total = 0.0
    for begin in range(0, grads.shape[1], TERMS):
        end = min(begin + TERMS, grads.shape[1])
        part = grads.dtype.type(0)
        for j in range(begin, end):
            grad = clip(load_grad(grads, i, j), rates)
            part += grad * grad
        if 1e-30 < part < 1e30:
            total += np.float64(part)
        else:  # near what float32 can hold, or beyond, or NaN
            for j in range(begin, end):
                wide = np.float64(clip(load_grad(grads, i, j), rates))
                total += wide * wide
    return total


@compiled
def block_squares(begin: Integer, end: Integer, grads: Any, rates: Any, partial: Any) -> None:
    """Write the sums of squares of blocks ``begin`` to ``end``, on the calling thread."""
    named = unpack_rates(rates)
    for block in range(begin, end):
        total = 0.0
        for i in range(block * BLOCK_LINES, min((block + 1) * BLOCK_LINES, grads.shape[0])):
            prefetch_row(grads, i + LINES_AHEAD)
            total += _squares(grads, np.int64(i), named)
        partial[block] = total


@compiled_parallel
def dense_squares(grads: Any, rates: Any, partial: Any) -> None:
    """Write the sums of squares of every ``BLOCK_LINES`` rows of ``grads``, shape (n, TERMS), into ``partial``."""
    for block in prange(partial.size):
        begin = np.int64(block)
        block_squares(begin, begin + 1, grads, rates, partial)


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
        if u + ROWS_AHEAD < count:
            ahead = np.int64(heads[worker, u + ROWS_AHEAD])
            prefetch_row(values, ahead)
            prefetch_item(clocks, indices[ahead])
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
def rows_squares_share(
    worker: Integer,
    workers: Integer,
    entries: Any,
    clocks: Any,
    rates: Any,
    links: Any,
    scratch: Any,
    partial: Any,
) -> None:
    """Write the sums of the chunks that one worker takes: all of them, marked first, if it is alone."""
    if workers == 1:
        mark_duplicates(entries[0], clocks, links[0], links[1], links[2])
        give_none_away(scratch[2])
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
        rows_squares_share(np.int64(worker), workers, entries, clocks, rates, links, scratch, partial)


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
def csr_blocks_squares(worker: Integer, workers: Integer, matrix: Any, rates: Any, sums: Any, partial: Any) -> None:
    """Write the sums of every ``workers``-th block."""
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
        csr_blocks_squares(np.int64(worker), workers, matrix, rates, sums, partial)


@compiled
def row_squares(values: Any, rates: Any, out: Any) -> None:
    """Write the sum of squares of each row of ``values``, shape (n, columns), into ``out``."""
    named = unpack_rates(rates)
    for i in range(values.shape[0]):
        out[i] = _squares(values, np.int64(i), named)
