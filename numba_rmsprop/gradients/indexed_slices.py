"""Gradient rows at given indices, as callers hand them over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.storage import as_stored
from ..arrays.variables import FloatArray, Occupied, as_array
from ..kernels.numpy_layout import INDICES_OCCUPIED, OCCUPIED, OUTSIDE, inspect_rows
from .scipy_sparse import readable

MAX_ENTRIES = 2**31 - 1
"""Kernels chain entries by 32-bit positions."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IndexedSlices:
    r"""Gradient rows at given indices of a variable's first axis; every other row is 0.

    Parameters
    ----------
    values : array_like, shape (n, \*row_shape)
        One row for each index, of the variable's dtype; shape (n,) for a 1-D variable.
    indices : array_like of int, shape (n,)
        Which row each belongs to, in [0, rows), in any order. Rows of equal index are summed.
    dense_shape : tuple of int, optional
        Shape of the whole gradient; checked against the variable if given.

    Raises
    ------
    TypeError
        If the indices are not integers, or an array has a mask or is none that NumPy can read.
    ValueError
        If the indices are not 1-D, or more than 2³¹ - 1, or the values not as many.

    Examples
    --------
    >>> IndexedSlices(np.ones((2, 3), np.float32), [4, 1]).indices
    array([4, 1])
    """

    values: FloatArray
    indices: NDArray[np.integer]
    dense_shape: tuple[int, ...] | None

    def __init__(self, values: ArrayLike, indices: ArrayLike, dense_shape: tuple[int, ...] | None = None) -> None:
        slices = as_array(values, "values of IndexedSlices")
        rows = as_indices(indices, "indices of IndexedSlices")
        if rows.ndim != 1:
            raise ValueError(f"indices of IndexedSlices: expected shape (n,), got {rows.shape}")
        if slices.ndim == 0 or len(slices) != len(rows):
            raise ValueError(
                f"values of IndexedSlices: expected shape ({len(rows)}, ...), a row for each index, got {slices.shape}"
            )
        if len(rows) > MAX_ENTRIES:
            raise ValueError(f"indices of IndexedSlices: expected at most {MAX_ENTRIES:,}, got {len(rows):,}")
        object.__setattr__(self, "values", slices)
        object.__setattr__(self, "indices", rows)
        shape = None if dense_shape is None else as_indices(dense_shape, "dense_shape of IndexedSlices")
        object.__setattr__(self, "dense_shape", None if shape is None else tuple(shape.tolist()))

    def __repr__(self) -> str:
        """Return shapes and dtypes, and not the numbers."""
        whole = "" if self.dense_shape is None else f", dense_shape {self.dense_shape}"
        return f"<IndexedSlices: values {self.values.dtype} {self.values.shape}, {len(self.indices)} indices{whole}>"


def as_indices(indices: ArrayLike, label: object) -> NDArray[np.integer]:
    """Return ``indices`` as an integer array of any shape; raise TypeError if they are not integers."""
    array = as_array(indices, label)
    if array.size == 0:
        array = array.astype(np.int64)  # np.array([]) is float64
    if array.dtype.kind not in "iu":
        raise TypeError(f"{label}: expected integers, got {array.dtype}")
    return array


def check_rows(
    indices: NDArray[np.integer], values: FloatArray, rows: int, label: object, occupied: Occupied
) -> tuple[NDArray[np.int64], bool]:
    """Check 1-D ``indices``, and where their values lie.

    Parameters
    ----------
    indices : ndarray of int, shape (n,)
        Must lie in [0, rows).
    values : ndarray
        Contiguous, what belongs to them.

    Returns
    -------
    indices : ndarray of int64, shape (n,)
        Contiguous.
    apart : bool
        Whether the memory of ``values`` surely is not ``occupied``. Indices that lie there, or in ``values``, have been
        copied.

    Raises
    ------
    IndexError
        If an index is negative or too large; the message names the first.
    """
    converted = readable(np.asarray(indices, np.int64))
    found = inspect_rows(converted, as_stored(values), rows, occupied.array)
    if found & OUTSIDE:
        first = int(np.argmax((converted < 0) | (converted >= rows)))
        raise IndexError(f"{label}: indices[{first}] is {indices[first]}; expected 0 <= index < {rows}")
    return converted.copy() if found & INDICES_OCCUPIED else converted, not found & OCCUPIED
