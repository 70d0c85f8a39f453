"""Gradients, as callers hand them over, checked and brought into one of three forms before anything is written."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..arrays.storage import FLOAT32, computed_in
from ..arrays.variables import FloatArray, Label, Occupied, type_name
from ..kernels.numpy_layout import inspect_rows
from .csr import CSR
from .dense import Dense
from .indexed_slices import MAX_ENTRIES, IndexedSlices, check_rows
from .other_libraries import read
from .rows import Rows
from .scipy_sparse import check_stored, readable
from .sparse_product import SparseProduct

INT64 = np.dtype(np.int64)

Gradient: TypeAlias = Dense | Rows | CSR
"""A gradient, checked. A new kind is one class like these, and one case in :func:`as_gradient`."""


def as_gradient(grad: Any, var: FloatArray, name: str, occupied: Occupied) -> Gradient:
    """Check a gradient against its variable and return it as Dense, Rows or CSR, without a copy where it can be.

    Parameters
    ----------
    grad : array_like, IndexedSlices, SparseProduct, scipy.sparse array or matrix, or what :func:`as_known` takes
        The gradient; it is never changed.
    var : ndarray
        Its variable.
    name : str
        What messages call the variable.
    occupied : Occupied
        The memory that the step writes; a gradient that lies in it is copied.

    Raises
    ------
    TypeError
        If the dtype is not the variable's, nor float32 for one of 16 bits, or the gradient of an unknown kind.
    ValueError
        If the shape does not fit.
    IndexError
        If an index is negative or too large; the message names the first.
    """
    # Nearly every sparse gradient; after a kernel has had the caches, each line of Python here takes a microsecond.
    if type(grad) is IndexedSlices and _lies_well(grad, var):
        indices: Any = grad.indices  # typing.cast would be a call
        if not inspect_rows(indices, grad.values, len(var), occupied.array):
            return Rows(grad.values, indices)
    label = Label("gradient of", name, var)
    grad = as_known(grad, label)
    if isinstance(grad, IndexedSlices):
        return _from_slices(grad, var, label, occupied)
    if isinstance(grad, SparseProduct):
        return _from_product(grad, var, label, occupied)
    if scipy.sparse.issparse(grad):
        return _from_sparse(grad, var, label, occupied)
    # Numbers of Python have no dtype that could be wrong.
    values = grad if isinstance(grad, np.ndarray) else np.asarray(grad, computed_in(var.dtype))
    if values.shape != var.shape:
        raise ValueError(f"{label}: expected shape {var.shape}, got {values.shape}")
    _check_dtype(values, var, label)
    if not values.flags.aligned or occupied.reached_by(values):  # it need not be contiguous
        values = values.copy(order="K")
    return Dense(values)


KNOWN = frozenset([np.ndarray, IndexedSlices, SparseProduct, float, int, type(None)])
"""Types of gradients that no other code than ours reads, beside those of scipy.sparse."""


def is_known(grad: Any) -> bool:
    """Return whether a gradient can be looked at without running code of others."""
    return type(grad) in KNOWN or bool(scipy.sparse.issparse(grad))


def as_known(grad: Any, label: object) -> Any:
    """Return a gradient as an ndarray, an IndexedSlices, a SparseProduct, a scipy.sparse array, numbers, or None.

    This looks at the gradient alone, and all code of others that is to tell what is in it runs here: what is returned
    runs none any more.

    Parameters
    ----------
    grad : object
        One of these; anything that NumPy can read, by ``__array__``, DLPack, as a buffer or a sequence of numbers;
        anything with ``values``, ``indices`` and ``dense_shape``, as tf.IndexedSlices and tf.SparseTensor; a sparse
        tensor of PyTorch; or anything with ``to_scipy_sparse``, as the arrays of the package sparse.
    label : object
        What messages call it.

    Raises
    ------
    TypeError
        If it is none of these, or has a mask; the message names its type.

    Examples
    --------
    >>> as_known(memoryview(np.ones(2)), "gradient"), as_known(np.float32(1), "gradient")
    ([1.0, 1.0], array(1., dtype=float32))
    """
    if is_known(grad):
        return grad
    found = read(grad, label)
    try:
        return IndexedSlices(*found) if isinstance(found, tuple) else found
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}, as {type_name(grad)}: {error}") from error


def _check_dtype(values: FloatArray, var: FloatArray, label: Label) -> None:
    dtype = computed_in(var.dtype)
    if values.dtype not in (var.dtype, dtype):
        expected = var.dtype if var.dtype == dtype else f"{dtype} or {var.dtype}"
        raise TypeError(
            f"{label}: expected dtype {expected}, got {values.dtype}; convert it, as with grad.astype({dtype})"
        )


def _lies_well(grad: IndexedSlices, var: FloatArray) -> bool:
    """Return whether kernels can take the arrays of a gradient as they are, if the indices are within bounds."""
    values, indices = grad.values, grad.indices
    return (
        grad.dense_shape is None
        and values.dtype is (var.dtype if var.itemsize > 2 else FLOAT32)
        and indices.dtype is INT64
        and var.ndim == 2
        and values.ndim == 2
        and values.shape[1] == var.shape[1]
        and indices.ndim == 1
        and len(indices) == len(values)
        and type(values) is np.ndarray
        and values.flags.c_contiguous
        and values.flags.aligned
        and indices.flags.c_contiguous
    )


def _from_slices(grad: IndexedSlices, var: FloatArray, label: Label, occupied: Occupied) -> Rows:
    if var.ndim == 0:
        raise ValueError(f"{label}: expected an array, since a 0-d variable has no rows; got IndexedSlices")
    if grad.dense_shape is not None and grad.dense_shape != var.shape:
        raise ValueError(f"{label}: expected dense_shape {var.shape}, got {grad.dense_shape}")
    if grad.indices.ndim != 1:  # an array may change its shape in the hands of others
        raise ValueError(f"{label}: expected indices of shape (n,), got {grad.indices.shape}")
    expected = (len(grad.indices), *var.shape[1:])
    if grad.values.shape != expected:
        raise ValueError(f"{label}: expected values of shape {expected}, got {grad.values.shape}")
    return _rows(grad.values, grad.indices, var, label, occupied)


def _rows(values: FloatArray, indices: NDArray[np.integer], var: FloatArray, label: Label, occupied: Occupied) -> Rows:
    """Check the dtype, and indices and values together: all that kernels read of rows."""
    _check_dtype(values, var, label)
    if len(indices) > MAX_ENTRIES:
        raise ValueError(f"{label}: expected at most {MAX_ENTRIES:,} entries, got {len(indices):,}")
    table = readable(values).reshape(len(values), math.prod(var.shape[1:]))
    converted, apart = check_rows(indices, table, len(var), label, occupied)
    return Rows(table if apart else table.copy(), converted)


def _from_product(grad: SparseProduct, var: FloatArray, label: Label, occupied: Occupied) -> Rows:
    if var.ndim == 0:
        raise ValueError(f"{label}: expected an array, since a 0-d variable has no rows; got SparseProduct")
    if grad.rows is not None and grad.rows != len(var):
        raise ValueError(f"{label}: expected a matrix with a column for each of {len(var)} rows, got {grad.rows}")
    expected = (len(grad.values), *var.shape[1:])
    if grad.values.shape != expected:
        raise ValueError(f"{label}: expected values of shape {expected}, got {grad.values.shape}")
    # Whoever has the arrays can have written into them, or changed their shapes, since they were checked.
    sources, weights = grad.sources, grad.weights
    shapes = {array.shape for array in (grad.indices, sources, weights) if array is not None}
    if len(shapes) > 1 or grad.indices.ndim != 1:
        raise ValueError(f"{label}: expected arrays of one shape (n,), got {sorted(shapes)}; make the product anew")
    if sources.size and not (sources.min() >= 0 and sources.max() < len(grad.values)):
        raise IndexError(f"{label}: expected 0 <= source < {expected[0]}; sources were changed: make the product anew")
    rows = _rows(grad.values, grad.indices, var, label, occupied)
    rows.sources = readable(sources, occupied)
    if weights is not None:
        if weights.dtype != computed_in(var.dtype):
            raise TypeError(f"{label}: expected weights of dtype {computed_in(var.dtype)}, got {weights.dtype}")
        rows.weights = readable(weights, occupied)
    return rows


def _from_sparse(grad: Any, var: FloatArray, label: Label, occupied: Occupied) -> Rows | CSR:
    check_stored(grad, label)
    if var.ndim == 1 and grad.shape in ((len(var),), (1, len(var)), (len(var), 1)):
        entries = _converted(grad, "coo", label)
        return _rows(entries.data, entries.coords[int(np.argmax(grad.shape))], var, label, occupied)
    if grad.shape != var.shape or var.ndim < 2:
        raise ValueError(f"{label}: expected shape {var.shape}, got {grad.shape} ({type(grad).__name__})")
    columns = math.prod(var.shape[1:])
    matrix = _converted(grad if grad.ndim == 2 else grad.reshape((len(var), columns)), "csr", label)
    if grad.format == "lil":
        check_stored(matrix, label)  # the columns in lists are only seen here
    _check_dtype(matrix.data, var, label)
    data = matrix.data.astype(computed_in(matrix.data.dtype), copy=False)
    values, indices, indptr = (readable(array, occupied) for array in (data, matrix.indices, matrix.indptr))
    if indices.dtype != indptr.dtype or indices.dtype not in (np.int32, np.int64):
        indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    return CSR(values, indices, indptr)


def _converted(grad: Any, form: str, label: Label) -> Any:
    try:
        return grad.asformat(form)
    except OverflowError as error:  # lists and dicts may hold any number
        raise ValueError(f"{label}: expected numbers of the variable's dtype in the {grad.format} array") from error
