"""What the machine allows: the same arithmetic with nothing around it.

The limit for rows updates unique rows in the order in which they come, with the same prefetch, on all threads, and
keeps no books: no duplicates, no clocks, no catching up, no checks. The limit for dense steps only streams the same
five arrays, three read and two written, with one addition for an update.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_rmsprop.kernels.aliased_access import load_grad, load_out, store_out
from numba_rmsprop.kernels.jit import Integer, compiled, compiled_inside
from numba_rmsprop.kernels.parallel_loop import run_shares
from numba_rmsprop.kernels.prefetch import prefetch_state
from numba_rmsprop.kernels.rows import ROWS_AHEAD, step_elements


@compiled_inside
def _step_slice(
    worker: Integer, workers: Integer, indices: Any, values: Any, state: Any, packed: Any, entered: Any
) -> None:
    begin, end = worker * indices.size // workers, (worker + 1) * indices.size // workers
    for i in range(begin - ROWS_AHEAD, end):
        if i + ROWS_AHEAD < end:
            prefetch_state(state, indices[np.uint64(i + ROWS_AHEAD)])
        if i >= begin:
            row = indices[np.uint64(i)]
            step_elements(row, values, np.int64(i), state, None, packed[1], packed, worker, entered)


@compiled
def limit_rows(team: Any, indices: Any, values: Any, state: Any, packed: Any, entered: Any) -> None:
    """Update rows that are unique, each worker an equal part of them."""
    run_shares(_step_slice, team, (indices, values, state, packed, entered))


@compiled_inside
def _stream_slice(worker: Integer, workers: Integer, var: Any, grad: Any, rms: Any) -> None:
    for i in range(worker * var.size // workers, (worker + 1) * var.size // workers):
        rms[i] += grad[i]
        var[i] += rms[i]


@compiled
def limit_dense(team: Any, var: Any, grad: Any, rms: Any) -> None:
    """Read ``var``, ``grad`` and ``rms``, and write ``var`` and ``rms``."""
    run_shares(_stream_slice, team, (var, grad, rms))


@compiled_inside
def _product_slice(worker: Integer, workers: Integer, entries: Any, sums: Any, state: Any, packed: Any) -> None:
    rows, starts, sources, values = entries
    begin, end = worker * rows.size // workers, (worker + 1) * rows.size // workers
    for u in range(begin - ROWS_AHEAD, end):
        if u + ROWS_AHEAD < end:
            prefetch_state(state, rows[np.uint64(u + ROWS_AHEAD)])
        if u >= begin:
            for j in range(values.shape[1]):
                store_out(sums, u, j, load_grad(values, np.int64(sources[starts[u]]), j))
            for k in range(starts[u] + 1, starts[u + 1]):
                source = np.int64(sources[k])
                for j in range(values.shape[1]):
                    store_out(sums, u, j, load_out(sums, u, j) + load_grad(values, source, j))
            step_elements(rows[np.uint64(u)], sums, np.int64(u), state, None, packed[1], packed, worker, None)


@compiled
def limit_products(team: Any, entries: Any, sums: Any, state: Any, packed: Any) -> None:
    """Update rows that are unique with sums of rows of ``values``, which are listed for each, each worker a part."""
    run_shares(_product_slice, team, (entries, sums, state, packed))
