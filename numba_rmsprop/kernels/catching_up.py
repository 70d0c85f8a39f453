"""Rows brought up to date: for reading some of them (gather), or all at once (flush)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .gaps import factors_of
from .jit import Integer, compiled, compiled_parallel
from .prefetch import prefetch_item, prefetch_row
from .rows import CLOCKS_AHEAD, ROWS_AHEAD, load_caught_up, owner, prefetch_state, store


@compiled
def catch_up_row(row: Integer, state: Any, ages: Any, history: Any) -> None:
    """Bring one row to the state after step ``now - 1``."""
    clocks, floor, now = ages
    start = max(clocks[row], floor)
    if start < now:
        factors = factors_of(start, now, history)
        for j in range(state[0].shape[1]):
            store(state, row, j, load_caught_up(state, row, j, factors))
        clocks[row] = now


@compiled_parallel
def flush_rows(state: Any, ages: Any, history: Any) -> None:
    """Bring every row to the state after step ``now - 1``."""
    for row in prange(state[0].shape[0]):
        catch_up_row(np.int64(row), state, ages, history)


@compiled
def _copy_row(source: Any, row: Integer, out: Any, i: Integer) -> None:
    for j in range(source.shape[1]):
        out[i, j] = source[row, j]


@compiled
def _gather_owned(
    worker: Integer, workers: Integer, indices: Any, out: Any, state: Any, ages: Any, history: Any
) -> None:
    clocks = ages[0]
    for i in range(indices.size):
        # Two distances: a row's clock must have arrived before it says whether the row's state will be needed.
        if i + CLOCKS_AHEAD < indices.size:
            prefetch_item(clocks, indices[i + CLOCKS_AHEAD])
        if i + ROWS_AHEAD < indices.size:
            ahead = indices[i + ROWS_AHEAD]
            if workers == 1 or owner(ahead, workers) == worker:
                prefetch_state(ahead, state)
        row = indices[i]
        if workers == 1 or owner(row, workers) == worker:
            catch_up_row(row, state, ages, history)
            _copy_row(state[0], row, out, i)


@compiled_parallel
def gather_catching_up(workers: Integer, indices: Any, out: Any, state: Any, ages: Any, history: Any) -> None:
    """Copy rows into ``out``, shape (n, columns), after catching them up; duplicates are the same worker's."""
    for worker in prange(workers):
        _gather_owned(np.int64(worker), workers, indices, out, state, ages, history)


@compiled_parallel
def gather_rows(workers: Integer, indices: Any, out: Any, var: Any) -> None:
    """Copy rows that are never behind into ``out``, shape (n, columns)."""
    for worker in prange(workers):
        end = (worker + 1) * indices.size // workers
        for i in range(worker * indices.size // workers, end):
            if i + ROWS_AHEAD < end:
                prefetch_row(indices[i + ROWS_AHEAD], var)
            _copy_row(var, indices[i], out, i)
