"""Checks of scipy.sparse gradients, whose arrays anyone can replace or write into.

SciPy does not check them again in its conversions, and kernels would read and write out of bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import Occupied
from ..kernels.csr import first_bad_entry
from ..kernels.numpy_layout import OUTSIDE, inspect_rows

LAYOUTS = {
    "csr": {"indptr": 1, "indices": 1, "data": 1},
    "csc": {"indptr": 1, "indices": 1, "data": 1},
    "bsr": {"indptr": 1, "indices": 1, "data": 3},
    "coo": {"data": 1},
    "dia": {"offsets": 1, "data": 2},
    "lil": {"rows": 1, "data": 1},
    "dok": {},
}
"""The arrays of each format, and the number of their axes."""

NO_VALUES, NOWHERE = np.empty((0, 1), np.float32), Occupied([])
INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
INT32_MAX = 2**31 - 1


def check_stored(grad: Any, label: object) -> None:
    """Raise TypeError, ValueError or IndexError unless the arrays of a sparse array fit together."""
    for name, axes in LAYOUTS[grad.format].items():
        array = getattr(grad, name)
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{label}: expected {name} of the {grad.format} array without a mask; fill it first")
        if not isinstance(array, np.ndarray) or array.ndim != axes:
            raise TypeError(f"{label}: expected {name} of the {grad.format} array to be an array of {axes} axes")
    if grad.format in ("csr", "csc", "bsr"):
        _check_compressed(grad, label)
    elif grad.format == "coo":
        _check_coordinates(grad.coords, grad, label)
    elif grad.format == "dia":
        _check_diagonals(grad, label)
    elif grad.format == "lil":
        _check_lists(grad, label)
    elif grad.format == "dok":
        keys = list(grad.keys())
        if any((len(key) if isinstance(key, tuple) else 1) != grad.ndim for key in keys):
            raise ValueError(f"{label}: expected keys of the dok array to have {grad.ndim} numbers")
        _check_coordinates(np.array(keys).reshape(len(keys), grad.ndim).T, grad, label)


def readable(array: NDArray[Any], occupied: Occupied | None = None) -> NDArray[Any]:
    """Return an array, or a copy, that a kernel can read: C-contiguous, aligned, and apart from occupied memory.

    A kernel that writes occupied memory must not read an argument from there.
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        return np.require(array, requirements=["C", "A"])
    return array.copy() if occupied is not None and occupied.reached_by(array) else array


def _integers(array: Any, name: str, grad: Any, label: object) -> NDArray[np.integer]:
    """Return indices as an array of int32 or int64 that kernels can read."""
    if type(array) is np.ndarray and array.ndim == 1 and (array.dtype is INT32 or array.dtype is INT64):
        return readable(array)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label}: expected {name} of the {grad.format} array without a mask; fill it first")
    if not isinstance(array, np.ndarray) or array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{label}: expected {name} of the {grad.format} array to be integers (n,), got {array!r:.100}")
    return readable(array.astype(np.int64, copy=False))


def _check_compressed(grad: Any, label: object) -> None:
    lines, length = (1, *grad.shape)[-2:]
    if grad.format == "csc":
        lines, length = length, lines
    elif grad.format == "bsr":
        lines, length = (n // k if k else 0 for n, k in zip(grad.shape, grad.blocksize, strict=True))
    indptr = _integers(grad.indptr, "indptr", grad, label)
    indices = _integers(grad.indices, "indices", grad, label)
    bad = first_bad_entry(indptr, indices, length) if len(indptr) == lines + 1 else -2
    if bad == -2 or len(grad.data) < indptr[-1]:
        raise ValueError(f"{label}: indptr of the {grad.format} array does not fit its indices and data")
    if bad >= 0:
        raise IndexError(f"{label}: indices[{bad}] of the {grad.format} array is {grad.indices[bad]}, out of range")


def _check_coordinates(coords: Any, grad: Any, label: object) -> None:
    entries = len(grad.data) if grad.format == "coo" else grad.nnz
    if len(coords) != grad.ndim or any(len(axis) != entries for axis in coords):
        raise ValueError(f"{label}: coords of the {grad.format} array do not fit its shape and data")
    for axis, length in enumerate(grad.shape):
        indices = _integers(coords[axis], f"coords[{axis}]", grad, label).astype(np.int64, copy=False)
        if inspect_rows(indices, NO_VALUES, length, NOWHERE.array) & OUTSIDE:
            first = int(np.argmax((indices < 0) | (indices >= length)))
            raise IndexError(
                f"{label}, axis {axis} of the {grad.format} array: indices[{first}] is {coords[axis][first]}; "
                f"expected 0 <= index < {length}"
            )


def _check_diagonals(grad: Any, label: object) -> None:
    offsets = _integers(grad.offsets, "offsets", grad, label)
    if len(offsets) != len(grad.data):
        raise ValueError(f"{label}: expected as many offsets of the dia array as rows of data")
    # A diagonal may lie outside of the array and is then empty, but SciPy adds offsets to rows in 32 bits.
    limit = INT32_MAX - max(grad.shape)
    if offsets.size and not (-limit <= offsets.min() and offsets.max() <= limit):
        raise ValueError(f"{label}: expected offsets of the dia array from -{limit} to {limit}")


def _check_lists(grad: Any, label: object) -> None:
    for lists in (grad.rows, grad.data):
        if lists.shape != grad.shape[:1] or not all(type(line) is list for line in lists):
            raise ValueError(f"{label}: expected a list for each row of the lil array")
    if any(len(columns) != len(values) for columns, values in zip(grad.rows, grad.data, strict=True)):
        raise ValueError(f"{label}: expected as many columns as values in each row of the lil array")
