"""The distinct rows of a batch, and the sums of their entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.row_dealing import add_entries, add_entries_of, number_rows
from ..runtime.launching import worth_a_launch
from ..runtime.locking import in_turn

Chains = tuple[NDArray[np.int32], NDArray[np.int32]]


def number(indices: NDArray[np.integer]) -> tuple[NDArray[np.int32], Chains]:
    """Return the number of each entry's row, and ``chains`` with one first entry for each distinct row.

    See :mod:`numba_rmsprop.kernels.row_dealing`.
    """
    n = len(indices)
    numbers, firsts, following = np.empty((3, n), np.int32)
    buckets = np.empty(1 << max(2 * n - 1, 1).bit_length(), np.int32)
    count = number_rows(indices, buckets, numbers, firsts, following)
    return numbers, (firsts[:count], following)


def coalesced(indices: NDArray[np.int64], values: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Return each row once, in the order in which the rows first come, with the sum of its entries in order.

    >>> indices, sums = coalesced(np.array([7, 2, 7]), np.array([[1.0], [2.0], [3.0]]))
    >>> indices.tolist(), sums.tolist()
    ([7, 2], [[4.0], [2.0]])
    """
    _, (firsts, following) = number(indices)
    rows = np.zeros((len(firsts), 3), np.int64)
    rows[:, 0] = rows[:, 1] = np.arange(len(firsts))
    sums = np.empty((len(firsts), values.shape[1]), values.dtype)
    add(rows, values, firsts.astype(np.int64), following, sums)
    return indices[firsts], sums


def add(
    rows: NDArray[np.int64],
    values: FloatArray,
    order: NDArray[np.int64],
    following: NDArray[np.int32],
    sums: FloatArray,
) -> None:
    """Add up the entries of rows, see :func:`numba_rmsprop.kernels.row_dealing.add_entries_of`."""
    if worth_a_launch(len(rows) * values.shape[1]):
        in_turn(add_entries, rows, values, order, following, sums)
    else:
        add_entries_of(0, len(rows), rows, values, order, following, sums)
