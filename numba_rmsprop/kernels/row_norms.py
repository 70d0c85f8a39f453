"""Rows of a variable, scaled to norms within bounds."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np

from .aliased_access import load_out, store_out
from .gather_and_flush import owner
from .jit import Integer, compiled, compiled_inline, compiled_inside
from .lanes import LINE, across, lanes_of, load_out_lanes, store_out_lanes
from .parallel_loop import run_shares
from .prefetch import prefetch_row
from .rows import ROWS_AHEAD

SAFE = 1e-30, 1e30
"""Between these, a sum of squares in float32 has neither lost small elements nor overflowed."""


@compiled_inline
def _squares_of(table: Any, row: Integer) -> float:
    """Return the sum of squares of a row, in an order that depends on the number of columns alone."""
    columns, j = np.int64(table.shape[1]), np.int64(0)
    total = 0.0
    line, count = lanes_of(LINE, table)
    if 0 < count <= columns:
        found = load_out_lanes(line, table, row, j)
        squares = found * found
        j += count
        while count <= columns - j:
            found = load_out_lanes(line, table, row, j)
            squares = squares + found * found
            j += count
        total = np.float64(across(squares))
    for k in range(j, columns):
        element = np.float64(load_out(table, row, k))
        total += element * element
    return total


@compiled_inside
def _norm_of(table: Any, row: Integer) -> tuple[float, float]:
    """Return two numbers whose product is the norm of a row, which itself may overflow."""
    squares = _squares_of(table, row)
    if SAFE[0] < squares < SAFE[1] or squares != squares:
        return 1.0, sqrt(squares)
    largest = 0.0
    for j in range(table.shape[1]):
        largest = max(largest, abs(np.float64(load_out(table, row, j))))
    if not 0 < largest < inf:
        return 1.0, largest
    squares = 0.0
    for j in range(table.shape[1]):
        element = np.float64(load_out(table, row, j)) / largest
        squares += element * element
    return largest, sqrt(squares)


@compiled_inline
def _multiply_row(table: Any, row: Integer, factor: Any) -> None:
    columns, j = np.int64(table.shape[1]), np.int64(0)
    line, count = lanes_of(LINE, table)
    while 0 < count <= columns - j:
        store_out_lanes(table, row, j, load_out_lanes(line, table, row, j) * factor)
        j += count
    for k in range(j, columns):
        store_out(table, row, k, load_out(table, row, k) * factor)


@compiled_inside
def _bound_row(table: Any, row: Integer, like: Any, low: float, high: float, spare: float) -> None:
    scale, root = _norm_of(table, row)
    norm = scale * root
    # Neither 0 nor an infinite row has a direction; and a row that comes twice is not to be rounded twice.
    if not 0 < root < inf or low * (1 - spare) <= norm <= high * (1 + spare):
        return
    factor = high / root  # ``low`` is ``high`` or 0
    if scale == 1:
        _multiply_row(table, row, like.dtype.type(factor))
    else:
        for j in range(table.shape[1]):
            store_out(table, row, j, np.float64(load_out(table, row, j)) / scale * factor)


@compiled_inside
def _bound_share(
    worker: Integer, workers: Integer, indices: Any, table: Any, like: Any, low: float, high: float, spare: float
) -> None:
    if indices is None:
        rows = table.shape[0]
        for row in range(worker * rows // workers, (worker + 1) * rows // workers):
            _bound_row(table, np.int64(row), like, low, high, spare)
    else:
        for i in range(indices.size):
            if i + ROWS_AHEAD < indices.size:
                ahead = indices[i + ROWS_AHEAD]
                if workers == 1 or owner(ahead, workers) == worker:
                    prefetch_row(table, ahead)
            touched = np.int64(indices[i])
            if workers == 1 or owner(touched, workers) == worker:  # one that comes twice belongs to one worker
                _bound_row(table, touched, like, low, high, spare)


@compiled
def bound_rows(team: Any, indices: Any, table: Any, like: Any, low: float, high: float, spare: float) -> None:
    """Scale rows of ``table`` to norms in [``low``, ``high``]: those at ``indices``, or all where they are None.

    ``low`` is 0, or ``high``; ``like`` is an array of the dtype of the arithmetic; and norms that are off by a share
    ``spare`` stay.
    """
    run_shares(_bound_share, team, (indices, table, like, low, high, spare))
