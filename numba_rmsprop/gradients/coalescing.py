"""The distinct rows of a batch, and the sums of the entries of each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray
from ..kernels.row_dealing import number_rows, sum_entries
from ..runtime.launching import team_for
from ..runtime.whole_calls import in_turn
from ..state.slots import Slots
from .conversion import Gradient
from .csr import CSR
from .rows import Entries, Rows

Chains = tuple[NDArray[np.int32], NDArray[np.int32]]
"""The first entry of each distinct row, and the next entry after each, as in kernels/row_dealing.py."""


def chain_rows(indices: NDArray[np.integer]) -> tuple[NDArray[np.int32], Chains]:
    """Return the number of each entry's row, counted in the order in which rows first come, and the chains."""
    n = len(indices)
    numbers, firsts, following = np.empty((3, n), np.int32)
    buckets = np.empty(1 << max(2 * n - 1, 1).bit_length(), np.int32)
    count = number_rows(indices, buckets, numbers, firsts, following)
    return numbers, (firsts[:count], following)


def coalesce(entries: Entries) -> tuple[NDArray[np.int64], FloatArray]:
    """Return each row once, in the order in which the rows first come, with the sum of its entries in order.

    >>> indices, sums = coalesce((np.array([7, 2, 7]), np.array([[1.0], [2.0], [3.0]]), None, None))
    >>> indices.tolist(), sums.tolist()
    ([7, 2], [[4.0], [2.0]])
    """
    indices, values, *_ = entries
    _, (firsts, following) = chain_rows(indices)
    rows = np.zeros((len(firsts), 3), np.int64)
    rows[:, 0] = rows[:, 1] = np.arange(len(firsts))
    sums = np.empty((len(firsts), values.shape[1]), computed_in(values.dtype))
    sum_rows(rows, entries, firsts.astype(np.int64), following, sums)
    return indices[firsts], sums


def coalesced(gradient: Gradient, own: Slots) -> Any:
    """Return a copy of a gradient with different rows or, of a matrix, different entries, as a COO array.

    A dense one is returned as it is.
    """
    if isinstance(gradient, Rows):
        indices, sums = coalesce(gradient.entries)
        return Rows(sums, indices)
    if isinstance(gradient, CSR):
        shape = len(own.var), math.prod(own.shape[1:])
        matrix = scipy.sparse.csr_array((gradient.values, gradient.indices, gradient.indptr), shape, copy=True)
        matrix.sum_duplicates()
        return matrix.tocoo()
    return gradient


def sum_rows(
    rows: NDArray[np.int64],
    entries: Entries,
    order: NDArray[np.int64],
    following: NDArray[np.int32],
    sums: FloatArray,
) -> None:
    """Add up the entries of rows: :func:`~numba_rmsprop.kernels.row_dealing.sum_entries`, on all threads if it pays."""
    in_turn(sum_entries, team_for(len(rows) * sums.shape[1], fine=True), rows, entries, order, following, sums)
