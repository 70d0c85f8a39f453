"""NumPy arrays that share the memory of tensors, with their axes in the order of that memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STORED_AS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
"""Dtypes that stand for the halves in :mod:`numba_rmsprop.kernels.aliased_access`: NumPy or Numba do not have them."""

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128, *STORED_AS)


REAL = torch.float32, torch.float64
"""Dtypes that sparse gradients are read in without a conversion."""


def describe(name: str, tensor: Tensor) -> str:
    """Return the name of a tensor for messages.

    >>> describe("params[0]", torch.zeros(3, 2))
    'params[0] (torch.float32, shape (3, 2))'
    """
    return f"{name} ({tensor.dtype}, shape {tuple(tensor.shape)})"


def check_storage(tensor: Tensor, name: str) -> None:
    """Raise ValueError if a tensor is larger than its memory, as after ``untyped_storage().resize_``."""
    if tensor.numel():
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        wanted = (tensor.storage_offset() + last + 1) * tensor.itemsize
        held = tensor.untyped_storage().nbytes()
        if held < wanted:
            raise ValueError(
                f"{describe(name, tensor)}: expected a storage of at least {wanted:,} bytes, got {held:,}; "
                "its storage was resized: resize it back"
            )


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter's state: float32 for halves, whose squares would underflow or overflow."""
    return torch.float32 if dtype in STORED_AS else dtype


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a view of a CPU tensor; a complex one gets a last axis for its real and imaginary parts."""
    found = tensor.detach()
    if found.is_complex():
        found = torch.view_as_real(found.resolve_conj())
    found = found.resolve_neg()
    array: NDArray[Any] = found.view(STORED_AS.get(found.dtype, found.dtype)).numpy()
    return array


def order_of_axes(array: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the order of axes that makes an array C-contiguous and keeps its rows, or None to leave it as it is.

    This is for ``channels_last`` parameters, which kernels would otherwise step one short line at a time.

    >>> order_of_axes(np.zeros((8, 5, 5, 3)).transpose(0, 3, 1, 2))
    (0, 2, 3, 1)
    """
    if array.ndim < 3 or array.flags.c_contiguous:
        return None
    order = tuple(sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], axis)))
    return order if order[0] == 0 and array.transpose(order).flags.c_contiguous else None


def in_order(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    """Return an array with its axes in the order that :func:`order_of_axes` found for a parameter.

    A slot with one number for each row has no others.
    """
    return array if axes is None or array.ndim != len(axes) else array.transpose(axes)


def zeros_as(parameter: Tensor, *, by_row: bool = False) -> Tensor:
    """Return zeros for a parameter's state, laid out as the parameter is, or one number for each row."""
    dtype = state_dtype(parameter.dtype)
    if by_row:
        return torch.zeros(len(parameter), dtype=dtype.to_real())
    if parameter.is_contiguous() and parameter.numel():
        # np.zeros gets pages from the system when they are first touched; torch.zeros would write all of them.
        size = math.prod(parameter.shape) * dtype.itemsize
        return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).reshape(parameter.shape)
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
