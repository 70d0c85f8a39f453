"""One step on the rows of a CSR gradient that hold a stored entry. The grouped arguments are those of ``rows``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import Integer, compiled, compiled_inside
from .parallel_loop import run_shares
from .prefetch import prefetch_state
from .rows import ROWS_AHEAD, step_row

BLOCK_ROWS = 64
"""Workers take blocks of rows in turn, since a table sorted by frequency has its touched rows at one end."""


@compiled_inside
def add_entries(worker: Integer, row: Integer, indptr: Any, indices: Any, data: Any, sums: Any) -> None:
    """Add the stored entries of a row, duplicates included, to ``sums[worker]``, which is 0 before."""
    for k in range(indptr[row], indptr[row + 1]):
        sums[worker, indices[k]] += data[k]


@compiled_inside
def clear_entries(worker: Integer, row: Integer, indptr: Any, indices: Any, sums: Any) -> None:
    """Set the entries of ``sums[worker]`` that a row has touched back to 0."""
    for k in range(indptr[row], indptr[row + 1]):
        sums[worker, indices[k]] = 0


@compiled_inside
def _step_blocks(
    worker: Integer,
    workers: Integer,
    matrix: Any,
    state: Any,
    ages: Any,
    history: Any,
    packed: Any,
    sums: Any,
    entered: Any,
) -> None:
    """Step the touched rows in every ``workers``-th block."""
    indptr, indices, data = matrix
    clocks, floor, now = ages
    rows = indptr.size - 1
    for block in range(worker * BLOCK_ROWS, rows, workers * BLOCK_ROWS):
        end = min(block + BLOCK_ROWS, rows)
        for row in range(block, end):
            ahead = row + ROWS_AHEAD
            if ahead < end and indptr[ahead] < indptr[ahead + 1]:
                prefetch_state(state, ahead)
            if indptr[row] < indptr[row + 1]:
                add_entries(worker, row, indptr, indices, data, sums)
                start = max(np.int64(clocks[row]), floor)
                step_row(row, sums, worker, state, start, now, history, packed, worker, entered)
                clear_entries(worker, row, indptr, indices, sums)
                clocks[row] = now + 1


@compiled
def step_csr(team: Any, matrix: Any, state: Any, ages: Any, history: Any, packed: Any, sums: Any, entered: Any) -> None:
    """Step the touched rows; ``matrix`` is ``(indptr, indices, data)``; ``sums`` is 0, before and after."""
    run_shares(_step_blocks, team, (matrix, state, ages, history, packed, sums, entered))


@compiled
def first_bad_entry(indptr: Any, indices: Any, columns: Integer) -> Integer:
    """Return the first stored entry whose column lies outside, or -1; -2 where ``indptr`` does not fit ``indices``."""
    if indptr[0] != 0 or indptr[-1] > indices.size:
        return -2
    for row in range(indptr.size - 1):
        if indptr[row + 1] < indptr[row]:
            return -2
    for k in range(indptr[-1]):
        if indices[k] < 0 or indices[k] >= columns:
            return k
    return -1
