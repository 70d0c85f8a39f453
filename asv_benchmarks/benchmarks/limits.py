"""What the machine allows: the same arithmetic with nothing around it.

The limit for rows updates unique rows in the order in which they come, with the same prefetch, on all threads, and
keeps no books: no duplicates, no clocks, no catching up, no checks. The limit for dense steps only streams the same
five arrays, three read and two written, with one addition for an update.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from numba_rmsprop.kernels.jit import Integer, compiled, compiled_parallel
from numba_rmsprop.kernels.prefetch import prefetch_state
from numba_rmsprop.kernels.rows import ROWS_AHEAD, step_elements


@compiled
def _step_slice(begin: Integer, end: Integer, indices: Any, values: Any, state: Any, packed: Any) -> None:
    for i in range(begin - ROWS_AHEAD, end):
        if i + ROWS_AHEAD < end:
            prefetch_state(state, indices[np.uint64(i + ROWS_AHEAD)])
        if i >= begin:
            row = indices[np.uint64(i)]
            step_elements(row, values, np.int64(i), state, packed[1], packed)


@compiled_parallel
def limit_rows(workers: Integer, indices: Any, values: Any, state: Any, packed: Any) -> None:
    """Update rows that are unique, each worker an equal part of them."""
    for worker in prange(workers):
        begin = np.int64(worker) * indices.size // workers
        end = (np.int64(worker) + 1) * indices.size // workers
        _step_slice(begin, end, indices, values, state, packed)


@compiled_parallel
def limit_dense(var: Any, grad: Any, rms: Any) -> None:
    """Read ``var``, ``grad`` and ``rms``, and write ``var`` and ``rms``."""
    for i in prange(var.size):
        rms[i] += grad[i]
        var[i] += rms[i]
