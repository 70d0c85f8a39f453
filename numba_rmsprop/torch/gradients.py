"""Gradients of parameters, checked and brought into one of the forms of :mod:`numba_rmsprop.gradients`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..arrays.variables import FloatArray, Occupied
from ..gradients.dense import Dense
from ..gradients.indexed_slices import MAX_ENTRIES, check_rows
from ..gradients.rows import Rows
from ..kernels.numpy_layout import inspect_rows
from .fused import Waiting, check_unchanged
from .parameter_state import ParameterState
from .tensor_views import REAL, STORED_AS, as_array, check_storage, describe, in_order


def as_gradient(grad: Tensor, own: ParameterState, written: Occupied | None = None) -> Dense | Rows:
    """Check a gradient against its parameter and return it without a copy where it can be.

    Parameters
    ----------
    grad : Tensor
        The gradient.
    own : ParameterState
        Its parameter.
    written : Occupied, optional
        The memory that the step writes, in which a sparse gradient must not lie: what is written there may be no index
        any more. If it is not known, the indices are copied.

    Raises
    ------
    TypeError
        If its layout, device or dtype is another.
    ValueError
        If its shape does not fit.
    IndexError
        If an index is out of bounds, which PyTorch does not check of every gradient.
    """
    if grad.layout is torch.sparse_coo:
        found = _rows_as_they_lie(grad, own, written)
        if found is not None:
            return found
    name = f"gradient of {own.name}"
    if grad.dtype is not own.dtype or grad.device.type != "cpu" or grad.shape != own.parameter.shape:
        raise TypeError(
            f"{describe(name, grad)} on {grad.device}: expected {own.dtype}, shape {tuple(own.parameter.shape)}, "
            "on the CPU"
        )
    if grad.layout is torch.sparse_coo and grad.sparse_dim() > 0:
        return _as_rows(grad.detach(), own, written, name)
    if grad.layout is torch.sparse_coo:
        grad = grad.detach().to_dense()
    if grad.layout is not torch.strided:
        raise TypeError(f"{describe(name, grad)}: expected a strided or sparse COO tensor, got {grad.layout}")
    if not grad.data_ptr():  # it has no elements, or its storage has been freed
        check_storage(grad, name)
    values = in_order(as_array(grad), own.axes)
    if values.ndim > 2 and not values.flags.c_contiguous and own.slots.var.flags.c_contiguous:
        values = np.ascontiguousarray(values)  # or else it would be stepped one short line at a time
    return Dense(_apart(values, own))


def as_product(waiting: Sequence[Waiting], own: ParameterState, written: Occupied | None) -> Rows:
    """Return the gradients that wait for a fused embedding as one, after checking where they lie.

    Raises
    ------
    TypeError, ValueError
        If the parameter's dtype or shape has changed meanwhile, or there are too many entries.
    RuntimeError
        If a gradient was written to.
    IndexError
        If it has fewer rows now.
    """
    name, var = f"gradient of {own.name}", own.slots.var
    for one in waiting:
        check_unchanged(one)
    parts = [(one.indices, _in_table(one.values, own, name), one.sources, one.weights) for one in waiting]
    if max(sum(len(one.indices) for one in waiting), sum(len(one.values) for one in waiting)) > MAX_ENTRIES:
        raise ValueError(f"{name}: expected at most {MAX_ENTRIES:,} entries before a step; take steps more often")
    indices, values, sources, weights = parts[0]
    if len(parts) > 1:
        indices, values = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        begins = np.cumsum([0] + [len(part[1]) for part in parts[:-1]])
        sources = np.concatenate(
            [
                begin + (np.arange(len(part[0])) if part[2] is None else part[2])
                for begin, part in zip(begins, parts, strict=True)
            ]
        ).astype(np.int32)
        if any(part[3] is not None for part in parts):
            ones = (np.ones(len(part[0]), values.dtype) if part[3] is None else part[3] for part in parts)
            weights = np.concatenate(list(ones))
    rows, apart = check_rows(indices, values, len(var), name, written or own.occupied)
    return Rows(values if apart else values.copy(), rows, sources, weights)


def _in_table(values: Tensor, own: ParameterState, name: str) -> FloatArray:
    """Return the values of a waiting gradient as a table; raise if they do not fit the parameter."""
    check_storage(values, name)
    if values.dtype is not own.dtype or values.shape[1:] != own.parameter.shape[1:]:
        raise TypeError(
            f"{describe(name, values)}: expected {own.dtype} and rows of shape {tuple(own.parameter.shape[1:])}, as "
            "the parameter has now; call zero_grad after the parameter has changed"
        )
    return as_array(values)


def _rows_as_they_lie(grad: Tensor, own: ParameterState, written: Occupied | None) -> Rows | None:
    """Return the gradient of an embedding, with fewer questions than others: nearly every sparse one is."""
    held = grad.detach()  # which stays as it is where another thread adds to the gradient
    values, var = held._values(), own.slots.var
    if (
        values.dtype is not own.dtype
        or values.dtype not in REAL
        or grad.shape != own.parameter.shape
        or grad.sparse_dim() != 1
        or var.ndim != 2
        or not grad.is_cpu
        or not values.is_contiguous()
        or values.requires_grad
        or values.is_neg()
        or (values.numel() and not values.data_ptr())  # its storage has been freed
    ):
        return None
    entries, indices = values.numpy(), held._indices().numpy()[0]
    if len(entries) != len(indices) or len(indices) > MAX_ENTRIES or not indices.flags.c_contiguous:
        return None
    if written is None or inspect_rows(indices, entries, len(var), written.array):
        return None
    return Rows(entries, indices)


def _as_rows(grad: Tensor, own: ParameterState, written: Occupied | None, name: str) -> Rows:
    indices, values = grad._indices(), grad._values()
    if indices.shape[1] != len(values) or len(values) > MAX_ENTRIES:
        raise ValueError(
            f"{describe(name, grad)}: expected as many values as indices, at most {MAX_ENTRIES:,}, got {len(values):,} "
            f"and {indices.shape[1]:,}"
        )
    check_storage(values, f"values of {name}")
    check_storage(indices, f"indices of {name}")
    if values.dtype in STORED_AS:
        values = values.float()
    if grad.sparse_dim() > 1:
        indices, values = _whole_rows(indices, values, grad, name)
    entries = in_order(as_array(values), own.axes)
    var = own.slots.var
    table = np.ascontiguousarray(entries).reshape(len(entries), math.prod(var.shape[1:]))
    rows, apart = check_rows(indices[0].numpy(), table, len(var), name, written or own.occupied)
    if written is None:
        rows = rows.copy()
    return Rows(table if apart else table.copy(), rows)


def _whole_rows(found: Tensor, values: Tensor, grad: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return indices, shape (1, n), and rows of a gradient that is sparse along more than its first axis."""
    for axis in range(1, grad.sparse_dim()):
        outside = (found[axis] < 0) | (found[axis] >= grad.shape[axis])
        if outside.any():
            first = int(outside.int().argmax())
            raise IndexError(
                f"{describe(name, grad)}: indices[{axis}, {first}] is {int(found[axis, first])}; "
                f"expected 0 <= index < {grad.shape[axis]}"
            )
    rows, places = torch.unique(found[0], return_inverse=True)
    whole = torch.zeros((len(rows), *grad.shape[1:]), dtype=values.dtype)
    whole.index_put_((places, *found[1:]), values, accumulate=True)
    return rows[None], whole


def _apart(values: FloatArray, own: ParameterState) -> FloatArray:
    """Return a copy of what the step would write before it is read."""
    return values.copy() if own.occupied.reached_by(values) else values
