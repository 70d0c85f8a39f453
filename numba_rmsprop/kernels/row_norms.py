"""Rows of a variable, scaled to norms within bounds."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np

from .aliased_access import load_out, store_out
from .gather_and_flush import owner
from .jit import Integer, compiled, compiled_inside
from .parallel_loop import run_shares

SAFE = 1e-280, 1e280
"""Between these, a sum of squares in float64 has neither lost small elements nor overflowed."""


@compiled_inside
def _norm_of(table: Any, row: Integer) -> tuple[float, float]:
    """Return two numbers whose product is the norm of a row, which itself may overflow.

    It is added up in float64, in an order that depends on the number of columns alone.
    """
    columns = table.shape[1]
    whole = columns - columns % 4
    a = b = c = d = 0.0
    for j in range(0, whole, 4):  # four sums, since each addition waits for the one before it
        w, x = np.float64(load_out(table, row, j)), np.float64(load_out(table, row, j + 1))
        y, z = np.float64(load_out(table, row, j + 2)), np.float64(load_out(table, row, j + 3))
        a, b, c, d = a + w * w, b + x * x, c + y * y, d + z * z
    for j in range(whole, columns):
        w = np.float64(load_out(table, row, j))
        a += w * w
    squares = (a + b) + (c + d)
    if SAFE[0] < squares < SAFE[1] or squares != squares:
        return 1.0, sqrt(squares)
    largest = 0.0
    for j in range(columns):
        largest = max(largest, abs(np.float64(load_out(table, row, j))))
    if not 0 < largest < inf:
        return 1.0, largest
    scaled = 0.0
    for j in range(columns):
        w = np.float64(load_out(table, row, j)) / largest
        scaled += w * w
    return largest, sqrt(scaled)


@compiled_inside
def _bound_row(table: Any, row: Integer, low: float, high: float) -> None:
    scale, root = _norm_of(table, row)
    norm = scale * root
    if not 0 < root < inf or low <= norm <= high:  # neither 0 nor an infinite row has a direction
        return
    factor = (low if norm < low else high) / root
    if scale == 1:
        for j in range(table.shape[1]):
            store_out(table, row, j, np.float64(load_out(table, row, j)) * factor)
    else:
        for j in range(table.shape[1]):
            store_out(table, row, j, np.float64(load_out(table, row, j)) / scale * factor)


@compiled_inside
def _bound_share(worker: Integer, workers: Integer, indices: Any, table: Any, low: float, high: float) -> None:
    if indices is None:
        rows = table.shape[0]
        for row in range(worker * rows // workers, (worker + 1) * rows // workers):
            _bound_row(table, np.int64(row), low, high)
    else:
        for i in range(indices.size):
            touched = np.int64(indices[i])
            if workers == 1 or owner(touched, workers) == worker:  # one that comes twice belongs to one worker
                _bound_row(table, touched, low, high)


@compiled
def bound_rows(team: Any, indices: Any, table: Any, low: float, high: float) -> None:
    """Scale rows of ``table`` to norms in [``low``, ``high``]: those at ``indices``, or all where they are None."""
    run_shares(_bound_share, team, (indices, table, low, high))
