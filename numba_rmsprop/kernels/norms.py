"""Sums of squares of gradients, for clipping by norm.

Duplicates are summed, and values clipped, before they are squared, in float64. The order of each sum is fixed: square
``k`` of a gradient, in C order, goes to place ``k % TERMS`` of its block's partial sums, and those are added in order.
So a clipped step has the same bits whatever the layout of the gradient in memory, with others in one launch or alone,
and at any number of threads; and LLVM can add several squares at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import is_given, line_at, load_grad, load_out, store_out
from .clipping import clip
from .csr import BLOCK_ROWS, add_entries
from .duplicates import add_duplicates, mark_duplicates, source_of
from .jit import Integer, compiled, compiled_inline, compiled_inside
from .parallel_loop import run_shares
from .prefetch import prefetch_item, prefetch_row
from .rows import CHUNK, ROWS_AHEAD, list_heads
from .work_stealing import give_none_away, next_share

TERMS = 64
"""Partial sums side by side."""

BLOCK = 8192
"""Elements of a dense gradient to ``TERMS`` partial sums."""

ITEMS_AHEAD = 2048
"""Prefetch distance, in elements: on one thread 20 million elements took 15 ms with it, and 27 without."""

ROWS_TOGETHER = 16
"""Rows of a wide gradient that a worker goes along side by side: they share cache lines if its columns have any."""


@compiled_inline
def _add_squares(
    row: Integer, begin: Integer, end: Integer, grads: Any, clipvalue: Any, block: Integer, partial: Any
) -> None:
    """Add the squares of elements ``begin`` to ``end``, at most ``TERMS``, of a row to the partial sums of a block."""
    for j in range(begin, end):
        wide = np.float64(clip(load_grad(grads, row, j), clipvalue))
        store_out(partial, block, j - begin, load_out(partial, block, j - begin) + wide * wide)


@compiled_inside
def add_row(row: Integer, grads: Any, clipvalue: Any, block: Integer, partial: Any) -> None:
    """Add the squares of a row to the partial sums of a block."""
    columns = grads.shape[1]
    for begin in range(0, columns, TERMS):
        _add_squares(row, begin, min(begin + TERMS, columns), grads, clipvalue, block, partial)


@compiled_inside
def _add_block(begin: Integer, end: Integer, flat: Any, clipvalue: Any, block: Integer, partial: Any) -> None:
    """Add the squares of elements ``begin`` to ``end`` of ``flat``, shape (1, n)."""
    zero = np.int64(0)
    for line in range(begin, end - TERMS + 1, TERMS):
        for ahead in range(line + ITEMS_AHEAD, line + ITEMS_AHEAD + TERMS, 16):
            prefetch_item(flat[0], ahead)
        _add_squares(zero, line, line + TERMS, flat, clipvalue, block, partial)
    _add_squares(zero, end - (end - begin) % TERMS, end, flat, clipvalue, block, partial)


@compiled
def total(begin: Integer, end: Integer, partial: Any) -> float:
    """Return the sum of the partial sums of blocks ``begin`` to ``end``; those of the first are spoilt."""
    for block in range(begin + 1, end):
        for k in range(TERMS):
            partial[begin, k] += partial[block, k]
    found = 0.0
    if begin < end:
        for k in range(TERMS):
            found += partial[begin, k]
    return found


@compiled
def flat_squares(flat: Any, clipvalue: Any, partial: Any) -> float:
    """Return the sum of squares of ``flat``, shape (1, n); ``partial`` is scratch, with a row for each ``BLOCK``."""
    size = flat.shape[1]
    blocks = -(-size // BLOCK)
    for block in range(blocks):
        partial[block, :] = 0
        _add_block(block * BLOCK, min((block + 1) * BLOCK, size), flat, clipvalue, np.int64(block), partial)
    return total(np.int64(0), blocks, partial)


@compiled
def many_squares(addresses: Any, sizes: Any, clipvalue: Any, partial: Any, out: Any) -> None:
    """Write the sum of squares of each of many small gradients into ``out``.

    Gradient ``k`` lies at ``addresses[k, 0]`` and has ``sizes[k]`` elements of the dtype of ``clipvalue``; ``partial``
    as in :func:`flat_squares`.
    """
    for k in range(sizes.size):
        out[k] = flat_squares(line_at(addresses[k, 0], sizes[k], clipvalue), clipvalue, partial)


@compiled
def many_finite(addresses: Any, sizes: Any, like: Any) -> bool:
    """Return whether all elements of many small gradients are finite; arguments as in :func:`many_squares`."""
    for k in range(sizes.size):
        flat = line_at(addresses[k, 0], sizes[k], like)
        for j in range(sizes[k]):
            if not np.isfinite(flat[0, j]):
                return False
    return True


@compiled_inside
def _add_blocks(worker: Integer, workers: Integer, flat: Any, clipvalue: Any, partial: Any) -> None:
    size, blocks = flat.shape[1], partial.shape[0]
    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
        _add_block(block * BLOCK, min((block + 1) * BLOCK, size), flat, clipvalue, np.int64(block), partial)


@compiled
def dense_squares(team: Any, flat: Any, clipvalue: Any, partial: Any) -> None:
    """Add the squares of every ``BLOCK`` elements of ``flat``, shape (1, n), to their partial sums."""
    run_shares(_add_blocks, team, (flat, clipvalue, partial))


@compiled_inside
def _add_strided_block(block: Integer, grads: Any, clipvalue: Any, partial: Any) -> None:
    """Add the squares of a block of ``grads``, shape (rows, columns), of any strides."""
    rows, columns = grads.shape
    begin = block * BLOCK
    row, j = begin // columns, begin % columns
    for k in range(min(BLOCK, rows * columns - begin)):
        wide = np.float64(clip(load_grad(grads, row, j), clipvalue))
        store_out(partial, block, k % TERMS, load_out(partial, block, k % TERMS) + wide * wide)
        j += 1
        if j == columns:
            row, j = row + 1, 0


@compiled_inside
def _add_wide_rows(begin: Integer, end: Integer, grads: Any, clipvalue: Any, partial: Any) -> None:
    """Add the squares of the blocks that start in rows ``begin`` to ``end``, in turn for each row."""
    columns = grads.shape[1]
    for turn in range(columns // BLOCK + 1):
        for row in range(begin, end):
            block = -(-row * columns // BLOCK) + turn
            if block * BLOCK < (row + 1) * columns:
                _add_strided_block(block, grads, clipvalue, partial)


@compiled_inside
def _add_strided(worker: Integer, workers: Integer, grads: Any, clipvalue: Any, partial: Any) -> None:
    rows, columns = grads.shape
    if columns <= BLOCK:
        blocks = partial.shape[0]
        for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
            _add_strided_block(np.int64(block), grads, clipvalue, partial)
    else:
        parts = -(-rows // ROWS_TOGETHER)
        for part in range(worker * parts // workers, (worker + 1) * parts // workers):
            begin = np.int64(part) * ROWS_TOGETHER
            _add_wide_rows(begin, min(begin + ROWS_TOGETHER, rows), grads, clipvalue, partial)


@compiled
def strided_squares(team: Any, grads: Any, clipvalue: Any, partial: Any) -> None:
    """Add the squares of ``grads``, shape (rows, columns), of any strides, to their partial sums."""
    run_shares(_add_strided, team, (grads, clipvalue, partial))


@compiled_inside
def _rows_squares_chunk(
    worker: Integer, chunk: Integer, entries: Any, clocks: Any, clipvalue: Any, links: Any, scratch: Any, partial: Any
) -> None:
    indices, values, sources, weights = entries
    _, following, chains = links
    heads, sums, _, _ = scratch
    begin = chunk * CHUNK
    count = list_heads(worker, begin, min(begin + CHUNK, indices.size), following, heads)
    for u in range(count):
        if u + ROWS_AHEAD < count:
            ahead = np.int64(heads[worker, u + ROWS_AHEAD])
            prefetch_row(values, source_of(sources, ahead))
            prefetch_item(clocks, indices[ahead])
        first = np.int64(heads[worker, u])
        row = indices[first]
        second = np.int64(-1 - clocks[row])
        if second < 0 and not is_given(weights):
            add_row(source_of(sources, first), values, clipvalue, chunk, partial)
        else:
            add_duplicates(worker, first, second if second >= 0 else np.int64(-1), entries, following, sums)
            add_row(worker, sums, clipvalue, chunk, partial)
            if second >= 0:
                clocks[row] = chains[second, 1]


@compiled_inside
def _rows_squares_share(
    worker: Integer,
    workers: Integer,
    entries: Any,
    clocks: Any,
    clipvalue: Any,
    links: Any,
    scratch: Any,
    partial: Any,
) -> None:
    chunk = next_share(worker, workers, partial.shape[0], scratch[2])
    while chunk >= 0:
        _rows_squares_chunk(worker, chunk, entries, clocks, clipvalue, links, scratch, partial)
        chunk = next_share(worker, workers, partial.shape[0], scratch[2])


@compiled
def rows_squares(team: Any, entries: Any, clocks: Any, clipvalue: Any, links: Any, scratch: Any, partial: Any) -> None:
    """Add the squares of the rows that come first in every ``CHUNK`` entries to the partial sums of these.

    The grouped arguments are those of :mod:`~numba_rmsprop.kernels.rows`. The clocks are as before at the end.
    """
    mark_duplicates(entries[0], clocks, links[0], links[1], links[2])
    give_none_away(scratch[2])
    run_shares(_rows_squares_share, team, (entries, clocks, clipvalue, links, scratch, partial))


@compiled_inside
def _row_entries_squares(worker: Integer, row: Integer, matrix: Any, clipvalue: Any, sums: Any) -> float:
    indptr, indices, data = matrix
    add_entries(worker, row, indptr, indices, data, sums)
    total = 0.0
    for k in range(indptr[row], indptr[row + 1]):
        grad = np.float64(clip(sums[worker, indices[k]], clipvalue))
        total += grad * grad
        # Taken once: a duplicate of this entry now finds 0.
        sums[worker, indices[k]] = 0
    return total


@compiled_inside
def _csr_blocks_squares(
    worker: Integer, workers: Integer, matrix: Any, clipvalue: Any, sums: Any, partial: Any
) -> None:
    rows = matrix[0].size - 1
    for block in range(worker, partial.size, workers):
        total = 0.0
        for row in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)):
            total += _row_entries_squares(worker, row, matrix, clipvalue, sums)
        partial[block] = total


@compiled
def csr_squares(team: Any, matrix: Any, clipvalue: Any, sums: Any, partial: Any) -> None:
    """Write the sums of squares of every ``BLOCK_ROWS`` rows into ``partial``; ``sums`` is 0, before and after."""
    run_shares(_csr_blocks_squares, team, (matrix, clipvalue, sums, partial))


@compiled
def row_squares(values: Any, clipvalue: Any, partial: Any, out: Any) -> None:
    """Write the sum of squares of each row of ``values``, shape (n, columns), into ``out``; ``partial`` is for one."""
    for i in range(values.shape[0]):
        partial[0, :] = 0
        add_row(np.int64(i), values, clipvalue, np.int64(0), partial)
        out[i] = total(np.int64(0), np.int64(1), partial)
