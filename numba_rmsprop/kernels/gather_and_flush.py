"""Rows brought up to date: for reading some of them (gather), or all at once (flush)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .aliased_access import load_state, load_var, store_out, store_state
from .duplicates import unsigned
from .jit import Integer, compiled, compiled_inline, compiled_parallel, inlined
from .prefetch import prefetch_item, prefetch_row, prefetch_state
from .rmsprop import catch_up_any
from .rows import ROWS_AHEAD
from .skip_factors import factors_of

CLOCKS_AHEAD = 16

BLOCK_ROWS = 64
"""Rows that a worker brings up to date at a time."""


@compiled
def owner(row: Any, workers: Integer) -> Any:
    """Return which worker owns a row: a hash, since neighbouring rows are often equally hot."""
    hashed = (np.uint64(row) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    return np.int64((hashed * np.uint64(workers)) >> np.uint64(32))


@compiled_inline
def catch_up_row(row: Integer, state: Any, ages: Any, history: Any) -> None:
    """Bring one row to the state after step ``now - 1``."""
    clocks, floor, now = ages
    start = max(np.int64(clocks[row]), floor)
    if start < now:
        factors = factors_of(start, now, history)
        for j in range(state[0].shape[1]):
            store_state(state, row, j, catch_up_any(factors, *load_state(state, row, j)))
        clocks[row] = now


@compiled
def catch_up_rows(begin: Integer, end: Integer, state: Any, ages: Any, history: Any) -> None:
    """Bring rows ``begin`` to ``end`` to the state after step ``now - 1``, on the calling thread."""
    for row in range(begin, end):
        catch_up_row(np.int64(row), state, ages, history)


@compiled_parallel
def flush_rows(state: Any, ages: Any, history: Any) -> None:
    """Bring every row to the state after step ``now - 1``, on all threads."""
    rows = state[0].shape[0]
    for block in prange(-(-rows // BLOCK_ROWS)):
        begin = np.int64(block) * BLOCK_ROWS
        catch_up_rows(begin, min(begin + BLOCK_ROWS, rows), state, ages, history)


@inlined
def _copy_row(source: Any, row: Integer, out: Any, i: Integer) -> None:
    for j in range(source.shape[1]):
        store_out(out, i, j, load_var(source, row, j))


@compiled
def gather_owned(
    worker: Integer, workers: Integer, indices: Any, out: Any, state: Any, ages: Any, history: Any
) -> None:
    """Copy one worker's rows into ``out``, after catching them up."""
    clocks = ages[0]
    for i in range(indices.size):
        # Two distances: a row's clock must have arrived before it says whether the row's state will be needed.
        if i + CLOCKS_AHEAD < indices.size:
            prefetch_item(clocks, indices[i + CLOCKS_AHEAD])
        if i + ROWS_AHEAD < indices.size:
            ahead = indices[i + ROWS_AHEAD]
            if workers == 1 or owner(ahead, workers) == worker:
                prefetch_state(state, ahead)
        row = indices[i]
        if workers == 1 or owner(row, workers) == worker:
            catch_up_row(row, state, ages, history)
            _copy_row(state[0], row, out, i)


@compiled_parallel
def gather_catching_up(workers: Integer, indices: Any, out: Any, state: Any, ages: Any, history: Any) -> None:
    """Copy rows into ``out``, shape (n, columns), after catching them up; duplicates are the same worker's."""
    for worker in prange(workers):
        gather_owned(np.int64(worker), workers, indices, out, state, ages, history)


@compiled
def copy_share(worker: Integer, workers: Integer, indices: Any, out: Any, var: Any) -> None:
    """Copy one worker's part of the rows, which are never behind, into ``out``, shape (n, columns)."""
    end = (worker + 1) * indices.size // workers
    for i in range(worker * indices.size // workers, end):
        if i + ROWS_AHEAD < end:
            prefetch_row(var, indices[unsigned(i + ROWS_AHEAD)])
        _copy_row(var, indices[unsigned(i)], out, i)


@compiled_parallel
def gather_rows(workers: Integer, indices: Any, out: Any, var: Any) -> None:
    """Copy rows that are never behind into ``out``, shape (n, columns), on all threads."""
    for worker in prange(workers):
        copy_share(np.int64(worker), workers, indices, out, var)
