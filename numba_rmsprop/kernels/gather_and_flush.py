"""Rows brought up to date: for reading some of them (gather), or all at once (flush)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import load_var, store_out
from .duplicates import unsigned
from .jit import Integer, compiled, compiled_inline, compiled_inside, inlined
from .parallel_loop import run_shares
from .prefetch import prefetch_item, prefetch_row, prefetch_state
from .rows import ROWS_AHEAD, catch_up_elements
from .skip_factors import factors_of
from .state import noise_of

CLOCKS_AHEAD = 16


@compiled_inside
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
        catch_up_elements(row, state, factors_of(start, now, history), noise_of(state, row))
        clocks[row] = now


@compiled_inside
def _flush_share(worker: Integer, workers: Integer, state: Any, ages: Any, history: Any) -> None:
    rows = state[0].shape[0]
    for row in range(worker * rows // workers, (worker + 1) * rows // workers):
        catch_up_row(np.int64(row), state, ages, history)


@compiled
def flush_rows(team: Any, state: Any, ages: Any, history: Any) -> None:
    """Bring every row to the state after step ``now - 1``."""
    run_shares(_flush_share, team, (state, ages, history))


@inlined
def _copy_row(source: Any, row: Integer, out: Any, i: Integer) -> None:
    for j in range(source.shape[1]):
        store_out(out, i, j, load_var(source, row, j))


@compiled_inside
def _gather_owned(
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


@compiled
def gather_catching_up(team: Any, indices: Any, out: Any, state: Any, ages: Any, history: Any) -> None:
    """Copy rows into ``out``, shape (n, columns), after catching them up; duplicates are the same worker's."""
    run_shares(_gather_owned, team, (indices, out, state, ages, history))


@compiled_inside
def _copy_share(worker: Integer, workers: Integer, indices: Any, out: Any, var: Any) -> None:
    """Copy one worker's part of the rows, which are never behind, into ``out``, shape (n, columns)."""
    end = (worker + 1) * indices.size // workers
    for i in range(worker * indices.size // workers, end):
        if i + ROWS_AHEAD < end:
            prefetch_row(var, indices[unsigned(i + ROWS_AHEAD)])
        _copy_row(var, indices[unsigned(i)], out, i)


@compiled
def gather_rows(team: Any, indices: Any, out: Any, var: Any) -> None:
    """Copy rows that are never behind into ``out``, shape (n, columns)."""
    run_shares(_copy_share, team, (indices, out, var))
