"""Scratch memory of one variable's steps, kept from step to step."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.rows import CHUNK
from ..runtime.launching import new_counters

Links: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]
Shares: TypeAlias = tuple[NDArray[np.int32], FloatArray, NDArray[np.int64], FloatArray | None]


class Scratch:
    """Arrays that a launch on a variable needs for itself.

    Parameters
    ----------
    rows, columns : int
        The variable's shape, as a table.
    dtype : numpy dtype
        What steps are computed in.
    by_row : bool
        Whether a slot has one number for each row.
    """

    def __init__(self, rows: int, columns: int, dtype: np.dtype[np.floating], *, by_row: bool) -> None:
        self._rows = rows
        self._columns = columns
        self._dtype = dtype
        self._by_row = by_row
        self._entered = np.empty((0, 0), dtype)
        self.marks: NDArray[np.uint8] | None = None
        self._links: Links | None = None
        self._shares: Shares | None = None
        self._sums = np.zeros((0, 0), dtype)

    def links(self, entries: int) -> Links:
        """Return ``(seen, following, chains)`` as the kernels in :mod:`numba_rmsprop.kernels.duplicates` want them."""
        if self._links is None or len(self._links[1]) != entries:
            self._links = self.seen(), np.empty(entries, np.int32), np.empty((entries, 2), np.int32)
        return self._links

    def seen(self) -> NDArray[np.uint8]:
        """Return a bit for each row, all 0, for kernels that look for duplicates."""
        if self.marks is None:
            self.marks = np.zeros(self._rows // 8 + 1, np.uint8)
        return self.marks

    def shares(self, workers: int) -> Shares:
        """Return ``scratch`` as the kernels in :mod:`numba_rmsprop.kernels.rows` want it."""
        if self._shares is None or len(self._shares[2]) != workers:
            sums = np.empty((workers, self._columns), self._dtype)
            self._shares = np.empty((workers, CHUNK), np.int32), sums, new_counters(workers), self.entered(workers)
        return self._shares

    def entered(self, workers: int) -> FloatArray | None:
        """Return a row for each worker, for what enters a row's mean square; None where it is not needed."""
        if self._by_row and len(self._entered) != workers:
            self._entered = np.empty((workers, self._columns), self._dtype)
        return self._entered if self._by_row else None

    def sums(self, workers: int) -> FloatArray:
        """Return a row of zeros for each worker, for the kernels in :mod:`numba_rmsprop.kernels.csr`."""
        if len(self._sums) != workers:
            self._sums = np.zeros((workers, self._columns), self._dtype)
        return self._sums
