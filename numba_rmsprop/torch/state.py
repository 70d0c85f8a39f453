"""A parameter and its state, as slots over the same memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..settings import MODES
from ..slots import Slots
from ..variables import Occupied, check_memory
from .arrays import DTYPES, STORED_AS, as_array, in_order, order_of_axes, state_dtype, zeros_as
from .behind import Table

SLOTS = {"square_avg": "rms", "momentum_buffer": "momentum", "grad_avg": "mg"}
"""What PyTorch calls the slots."""

COUNTS = (torch.float32, torch.float64, torch.int32, torch.int64)
"""What a count of steps may be; PyTorch's older optimizers had integers."""


def describe(name: str, tensor: Tensor) -> str:
    """Return how messages call a tensor.

    >>> describe("params[0]", torch.zeros(3, 2))
    'params[0] (torch.float32, shape (3, 2))'
    """
    return f"{name} ({tensor.dtype}, shape {tuple(tensor.shape)})"


def check_parameter(parameter: Tensor, name: str) -> None:
    """Raise unless kernels can step a parameter.

    Raises
    ------
    TypeError
        If it is of another dtype, sparse, or on another device than the CPU.
    """
    if parameter.device.type != "cpu":
        raise TypeError(
            f"{describe(name, parameter)} is on {parameter.device}; expected a parameter on the CPU (others are for "
            "torch.optim.RMSprop: two optimizers for a model of both)"
        )
    if parameter.is_conj() or parameter.is_neg():
        raise TypeError(
            f"{describe(name, parameter)} is a lazy conjugate or negative; pass a copy, as with resolve_conj()"
        )
    if parameter.layout is not torch.strided:
        raise TypeError(f"{describe(name, parameter)}: expected a strided parameter, got {parameter.layout}")
    if parameter.dtype not in DTYPES:
        raise TypeError(f"{describe(name, parameter)}: expected one of {DTYPES}")


class ParameterState:
    """The slots of a parameter, whose arrays are the memory of the parameter and of its entry in ``optimizer.state``.

    Parameters
    ----------
    parameter : Tensor
        The parameter.
    found : dict
        Its entry in ``optimizer.state`` so far; what is missing is made, and nothing written into it.
    group : dict
        Its parameter group.
    name : str
        What messages call it.

    Attributes
    ----------
    tensors : dict of str to Tensor
        What its entry is to be.
    slots : Slots
        The slots.
    table : Table
        Who has read them.
    """

    def __init__(self, parameter: Tensor, found: dict[str, Any], group: dict[str, Any], name: str) -> None:
        check_parameter(parameter, name)
        self.parameter = parameter
        self.name = name
        self._pointer = parameter.data_ptr()
        self._shape = parameter.shape
        self._stride = parameter.stride()
        self.dtype = parameter.dtype
        if group["sparse_update"] not in MODES:
            raise ValueError(f"sparse_update: expected one of {MODES}, got {group['sparse_update']!r}")
        self.exact = group["sparse_update"] == "exact"
        self.centered = bool(group["centered"])
        self.tensors: dict[str, Tensor] = {"step": _as_step(found.get("step", 0.0), f"state[{name}]['step']")}
        for key in SLOTS:
            wanted = {"momentum_buffer": group["momentum"] > 0, "grad_avg": self.centered}.get(key, True)
            if wanted or key in found:
                self.tensors[key] = _as_slot(found.get(key), parameter, f"state[{name}][{key!r}]")
        self._pointers = {key: tensor.data_ptr() for key, tensor in self.tensors.items()}
        var = as_array(parameter)
        self.axes = order_of_axes(var)
        arrays = {
            SLOTS[key]: in_order(as_array(tensor), self.axes) for key, tensor in self.tensors.items() if key in SLOTS
        }
        check_memory(var, name)
        self.slots = Slots(
            in_order(var, self.axes),
            name,
            momentum="momentum" in arrays,
            centered=self.centered,
            exact=self.exact,
            decays=False,
            arrays=arrays,
        )
        held = {SLOTS[key]: tensor.detach() for key, tensor in self.tensors.items() if key in SLOTS}
        self.table = Table(self.slots, {"var": parameter.detach(), **held}, self.axes)
        self.occupied = Occupied([self.slots.var, *arrays.values()])

    @property
    def small(self) -> bool:
        """Whether its dense steps are for a batch."""
        return self.slots.small and self.axes is None and self.dtype not in STORED_AS

    def lies_like(self, grad: Tensor) -> bool:
        """Return whether a dense gradient can be read as it lies, element by element, for a contiguous parameter."""
        return (
            grad.layout is torch.strided
            and grad.dtype is self.dtype
            and grad.shape == self._shape
            and grad.is_contiguous()
            and grad.is_cpu
            and not grad.is_neg()
            and not grad.is_conj()
        )

    def fits(self, found: dict[str, Any] | None, group: dict[str, Any]) -> bool:
        """Return whether parameter, state and group are what they were, so that the arrays still are their memory."""
        parameter = self.parameter
        if found is None or parameter.data_ptr() != self._pointer:
            return False
        for key, pointer in self._pointers.items():
            tensor = found.get(key)
            if not isinstance(tensor, Tensor) or tensor.data_ptr() != pointer:
                return False
        return (
            parameter.shape == self._shape
            and parameter.stride() == self._stride
            and group["centered"] == self.centered
            and (group["sparse_update"] == "exact") == self.exact
            and ("momentum_buffer" in self.tensors or not group["momentum"] > 0)
        )


def _as_step(step: Any, name: str) -> Tensor:
    """Return a count of steps as a tensor that can be counted on where it lies."""
    if isinstance(step, Tensor):
        if step.numel() != 1:
            raise ValueError(f"{name}: expected one number, got shape {tuple(step.shape)}")
        if step.dtype in COUNTS and step.is_cpu and not step.requires_grad:
            return step
        step = step.item()
    in_double = torch.get_default_dtype() is torch.float64  # as PyTorch's own optimizers count
    return torch.tensor(float(step), dtype=torch.float64 if in_double else torch.float32)


def _as_slot(tensor: Tensor | None, parameter: Tensor, name: str) -> Tensor:
    """Return a slot's tensor as kernels can step it: the same one where it can be."""
    if tensor is None:
        return zeros_as(parameter)
    if tensor.shape != parameter.shape:
        raise ValueError(f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(tensor.shape)}")
    is_plain = tensor.is_cpu and not (tensor.is_conj() or tensor.is_neg())
    if is_plain and tensor.dtype is state_dtype(parameter.dtype) and tensor.stride() == parameter.stride():
        return tensor
    return zeros_as(parameter).copy_(tensor.detach())
