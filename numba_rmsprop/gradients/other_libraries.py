"""Gradients of other libraries, which are recognized by their attributes and never imported."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..arrays.variables import as_array, type_name

SliceParts: TypeAlias = tuple[NDArray[Any], NDArray[Any], tuple[int, ...] | None]
"""Values, indices, and the shape of the dense array."""

EXPECTED = "an array, IndexedSlices(values, indices), a SparseProduct or a scipy.sparse array"

PROTOCOLS = ("dtype", "__array__", "__array_interface__", "__array_struct__", "__dlpack__")


def read(grad: Any, label: object) -> Any:
    """Return a gradient as ``SliceParts``, a scipy.sparse array, an ndarray or Python numbers; or raise TypeError."""
    try:
        found = _sparse_parts(grad)
    except Exception as error:  # any library's code may have run
        raise _refusal(grad, label, f", which says: {error!s:.200}") from error
    if found is not None:
        return found
    array = as_array(grad, label)
    if isinstance(grad, np.ndarray):
        return array
    if array.dtype.kind == "O" and all(hasattr(item, "__float__") for item in array.flat):  # such as Fraction
        try:
            return array.astype(np.float64).tolist()
        except Exception as error:  # as above
            raise _refusal(grad, label, f", which says: {error!s:.200}") from error
    if array.dtype.kind != "O" and any(hasattr(grad, name) for name in PROTOCOLS):
        return array
    if array.dtype.kind not in "biuf":
        raise _refusal(grad, label)
    return array.tolist()


def _refusal(grad: Any, label: object, said: str = "") -> TypeError:
    return TypeError(f"{label}: expected {EXPECTED}, got {type_name(grad)}{said}")


def _sparse_parts(grad: Any) -> Any:
    """Return a sparse array as ``SliceParts`` or a scipy.sparse array, and anything else as None."""
    if hasattr(grad, "dense_shape"):  # tf.IndexedSlices, and tf.SparseTensor, whose indices have two axes
        values, indices = as_array(grad.values, "values"), as_array(grad.indices, "indices")
        shape = None if grad.dense_shape is None else tuple(as_array(grad.dense_shape, "dense_shape").tolist())
        return (values, indices, shape) if indices.ndim < 2 else _coordinates(values, indices.T, shape)
    if hasattr(grad, "to_scipy_sparse"):  # the package sparse
        found = grad.to_scipy_sparse()
        if not scipy.sparse.issparse(found):
            raise TypeError(f"to_scipy_sparse() returned {type_name(found)}")
        return found
    if str(getattr(grad, "layout", "")).startswith("torch.sparse"):
        return _parts_of_tensor(grad.detach())
    return None


def _parts_of_tensor(tensor: Any) -> Any:
    """Return a sparse tensor of PyTorch with its stored indices, which PyTorch has not checked."""
    shape = tuple(tensor.shape)
    if str(tensor.layout) == "torch.sparse_csr" and len(shape) == 2:
        parts = as_array(tensor.values(), "values"), tensor.col_indices().numpy(), tensor.crow_indices().numpy()
        return scipy.sparse.csr_array(parts, shape)
    if str(tensor.layout) == "torch.sparse_coo":
        values, indices = as_array(tensor._values(), "values"), tensor._indices().numpy()
        if len(indices) == 1:
            return values, indices[0], shape
        if values.ndim == 1:
            return _coordinates(values, indices, shape)
    raise ValueError(f"expected layout torch.sparse_coo or torch.sparse_csr, got {tensor.layout}; pass grad.to_dense()")


def _coordinates(values: NDArray[Any], coords: NDArray[Any], shape: Any) -> Any:
    return scipy.sparse.coo_array((values, tuple(coords)), shape)
