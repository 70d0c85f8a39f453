"""A parameter and its state, as slots over the same memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arrays.variables import Occupied, check_memory, refuse_overlap
from ..kernels.averaged_rmsprop import AVERAGED_RMSPROP
from ..kernels.rmsprop import RMSPROP
from ..settings.form import Form
from ..settings.settings import MODES, STATES
from ..state.slots import Slots
from .stale_rows import Table
from .tensor_views import (
    DTYPES,
    STORED_AS,
    as_array,
    check_storage,
    describe,
    in_order,
    order_of_axes,
    state_dtype,
    zeros_as,
)

SLOTS = {"square_avg": "rms", "momentum_buffer": "momentum", "grad_avg": "mg", "average": "average"}
"""PyTorch's names of the slots, and ours."""

COUNTS = (torch.float32, torch.float64, torch.int32, torch.int64)
"""Dtypes of a count of steps; older optimizers of PyTorch had integers."""


def check_parameter(parameter: Tensor, name: str) -> None:
    """Raise unless kernels can step a parameter.

    Raises
    ------
    TypeError
        If it is of another dtype, sparse, or on another device than the CPU.
    ValueError
        If it reaches beyond its storage.
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
    check_storage(parameter, name)


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
    is_exposed : bool
        Whether others may hold the slots' tensors.
    begins_average : bool
        Whether the average begins with the next step, after which it is the parameter.
    """

    def __init__(self, parameter: Tensor, found: dict[str, Any], group: dict[str, Any], name: str) -> None:
        check_parameter(parameter, name)
        self.parameter = parameter
        self.name = name
        self._layout = layout(parameter)
        self._shape = parameter.shape
        self.dtype = parameter.dtype
        if group["sparse_update"] not in MODES:
            raise ValueError(f"sparse_update: expected one of {MODES}, got {group['sparse_update']!r}")
        self.exact = group["sparse_update"] == "exact"
        self.centered = bool(group["centered"])
        if group["state"] not in STATES:
            raise ValueError(f"state: expected one of {STATES}, got {group['state']!r}")
        self.by_row = group["state"] == "rowwise"
        self.decays_apart = _decays_apart(group)
        self.corrects_bias = bool(group["bias_correction"])
        self.averages = bool(group["use_ema"])
        self.begins_average = self.averages and "average" not in found
        check_entry(found, parameter, f"state[{name}]", by_row=self.by_row)
        found = dict.copy(found)
        self.is_exposed = not found.keys().isdisjoint(SLOTS)
        self.tensors: dict[str, Tensor] = {"step": _as_step(found.get("step", 0.0))}
        wanted = {
            "square_avg": True,
            "momentum_buffer": group["momentum"] > 0 or "momentum_buffer" in found,
            "grad_avg": self.centered or "grad_avg" in found,
            "average": self.averages,
        }
        for key in SLOTS:
            if wanted[key]:
                by_row, start = _is_by_row(key, parameter, self.by_row), 0.0
                if key == "square_avg":
                    start = float(group["initial_scale"])
                self.tensors[key] = _as_slot(found.get(key), parameter, by_row=by_row, start=start)
        if self.begins_average:
            self.tensors["average"].copy_(parameter.detach())
        if self.corrects_bias:
            self.tensors["alpha_product"] = _as_product(found, self.tensors["step"], group)
        self._layouts = {key: layout(tensor) for key, tensor in self.tensors.items()}
        var = as_array(parameter)
        self.axes = order_of_axes(var)
        arrays = {
            SLOTS[key]: in_order(as_array(tensor), self.axes) for key, tensor in self.tensors.items() if key in SLOTS
        }
        check_memory(var, name)
        held = [(var, name)]
        for key, array in arrays.items():
            refuse_overlap(array, f"{key} of {name}", held)
            held.append((array, f"{key} of {name}"))
        self.slots = Slots(
            in_order(var, self.axes),
            name,
            AVERAGED_RMSPROP if self.averages else RMSPROP,
            tuple(arrays),
            exact=self.exact,
            drifts="momentum" in arrays or self.decays_apart,
            arrays=arrays,
            form=Form(by_row=_is_by_row("square_avg", parameter, self.by_row)),
        )
        if self.corrects_bias:
            self.slots.product = self.tensors["alpha_product"].numpy()[0, ...]
        tensors = {SLOTS[key]: tensor.detach() for key, tensor in self.tensors.items() if key in SLOTS}
        self.table = Table(self.slots, {"var": parameter.detach(), **tensors}, self.axes)
        self.arrays = [self.slots.var, *arrays.values()]
        self.occupied = Occupied(self.arrays)

    @property
    def small(self) -> bool:
        """True if its dense steps are taken together with those of others."""
        return self.slots.small and self.axes is None and self.dtype not in STORED_AS

    def lies_like(self, grad: Tensor) -> bool:
        """Return whether a dense gradient can be read as it lies, element by element, for a contiguous parameter."""
        return bool(
            grad.layout is torch.strided
            and grad.dtype is self.dtype
            and grad.shape == self._shape
            and grad.is_contiguous()
            and (grad.data_ptr() or not grad.numel())  # or else its storage has been freed
            and grad.is_cpu
            and not grad.is_neg()
            and not grad.is_conj()
        )

    def fits(self, found: dict[str, Any] | None, group: dict[str, Any]) -> bool:
        """Return whether parameter, state and group are what they were, so that the arrays still are their memory."""
        parameter = self.parameter
        if not isinstance(found, dict) or layout(parameter) != self._layout or parameter.shape != self._shape:
            return False
        for key, before in self._layouts.items():
            tensor = dict.get(found, key)  # as it lies: an Entry would catch up all rows
            if not isinstance(tensor, Tensor) or tensor.data_ptr() != before[0]:
                return False
            if self.is_exposed and layout(tensor) != before:
                return False
        return (
            group["centered"] == self.centered
            and (group["sparse_update"] == "exact") == self.exact
            and (group["state"] == "rowwise") == self.by_row
            and _decays_apart(group) == self.decays_apart
            and bool(group["bias_correction"]) == self.corrects_bias
            and bool(group["use_ema"]) == self.averages
            and ("momentum_buffer" in self.tensors or not group["momentum"] > 0)
        )


def layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return what is equal as long as a tensor is the same view of the same memory."""
    return tensor.data_ptr(), tensor.numel(), tensor.stride(), tensor.dtype


def _current(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of dict that first brings up to date what it is about to read."""

    @wraps(method)
    def read(entry: Entry, *args: Any) -> Any:
        if args[:1] != ("step",):
            Entry.exposures += not entry.own.is_exposed
            entry.own.is_exposed = True
            entry.own.table.flush(entry.own.parameter)
        return method(entry, *args)

    return read


class Entry(dict[str, Any]):
    """A parameter's entry in ``optimizer.state``, which brings every row up to date before it is read.

    Only what has been read before is not: a tensor that somebody keeps falls behind at the next sparse step. Copies and
    pickles are plain.

    Parameters
    ----------
    found : dict
        What it holds.
    own : ParameterState
        Whose it is.
    """

    __slots__ = ("own",)
    exposures: ClassVar[int] = 0
    """The number of entries that have been read from."""

    def __init__(self, found: dict[str, Any], own: ParameterState) -> None:
        super().__init__(found)
        self.own = own

    def __reduce_ex__(self, protocol: Any) -> Any:
        # OrderedDict, since torch.load(weights_only=True) refuses dict where it is named.
        return OrderedDict, (), None, None, iter(self.items())


READS = "__getitem__", "__iter__", "__eq__", "__or__", "__ror__", "__repr__"
for _name in (*READS, "get", "items", "values", "copy", "pop", "popitem", "setdefault"):
    setattr(Entry, _name, _current(getattr(dict, _name)))


def _is_by_row(key: str, parameter: Tensor, by_row: bool) -> bool:
    """Return whether a slot has one number for each row: a row of a parameter of one axis is one element."""
    return by_row and SLOTS[key] in RMSPROP.slots_by_row and parameter.ndim > 1


def check_entry(found: Any, parameter: Tensor, name: str, *, by_row: bool) -> None:
    """Raise unless a parameter can go on with an entry of a state.

    Raises
    ------
    TypeError
        If something is of a wrong type, dtype or layout.
    ValueError
        If the count of steps is no number of steps, or a slot has another shape or reaches beyond its storage.
    """
    if not isinstance(found, dict):
        raise TypeError(f"{name}: expected a dict of tensors, got {type(found).__name__}")
    for key in ("step", "alpha_product", *SLOTS):
        if key in found:
            value, label = dict.get(found, key), f"{name}[{key!r}]"
            if key == "step":
                _check_step(value, label)
            elif key == "alpha_product":
                _check_product(value, label)
            else:
                _check_slot(value, parameter, label, by_row=_is_by_row(key, parameter, by_row))


def _check_step(step: Any, name: str) -> None:
    if isinstance(step, Tensor):
        if step.numel() != 1:
            raise ValueError(f"{name}: expected one number, got shape {tuple(step.shape)}")
        if step.layout is not torch.strided or step.is_complex() or step.device.type == "meta":
            raise TypeError(f"{name}: expected one number, got {step}")
        check_storage(step, name)
        step = step.item()
    if not hasattr(type(step), "__float__"):
        raise TypeError(f"{name}: expected the number of steps, got {type(step).__name__}")
    if not 0 <= step < math.inf:
        raise ValueError(f"{name}: expected the number of steps, 0 or more, got {step}")


def _check_product(noted: Any, name: str) -> None:
    is_pair = isinstance(noted, Tensor) and noted.shape == (2,) and noted.is_floating_point() and noted.is_cpu
    if not is_pair or (noted.dtype is torch.float64 and not (0 <= noted[0] <= 1 and 0 <= noted[1] < math.inf)):
        raise ValueError(
            f"{name}: expected the product of alpha over the steps, from 0 to 1, and their number, got {noted!r:.100}"
        )


def _check_slot(tensor: Any, parameter: Tensor, name: str, *, by_row: bool) -> None:
    shape = tuple(parameter.shape)[: 1 if by_row else None]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape {shape}, got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        remedy = ""
        if {tuple(tensor.shape), shape} == {tuple(parameter.shape), tuple(parameter.shape)[:1]}:
            remedy = "; one is elementwise state and the other row-wise, whose square_avg is the mean of each row"
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}{remedy}")
    fits = tensor.is_complex() if parameter.is_complex() and not by_row else tensor.is_floating_point()
    if not fits or tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise TypeError(
            f"{describe(name, tensor)}: expected {state_dtype(parameter.dtype)} and strided, got {tensor.layout} on "
            f"{tensor.device}"
        )
    check_storage(tensor, name)


def _as_step(step: Any) -> Tensor:
    """Return a count of steps as a tensor that can be counted on where it lies."""
    if isinstance(step, Tensor):
        if step.dtype in COUNTS and step.is_cpu and not step.requires_grad:
            return step
        step = step.item()
    in_double = torch.get_default_dtype() is torch.float64  # as PyTorch's own optimizers count
    return torch.tensor(float(step), dtype=torch.float64 if in_double else torch.float32)


def _decays_apart(group: dict[str, Any]) -> bool:
    return bool(group["decoupled_weight_decay"]) and float(group["weight_decay"]) > 0


def _as_product(found: dict[str, Any], step: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the product of alpha over the steps taken so far, and after how many steps it was that.

    For steps that others have taken since, or all of them where nothing tells, alpha is taken to be what it is now.
    Nothing tells, too, where torch.optim.RMSprop has rounded the product to the dtype of the parameter.
    """
    noted, taken = found.get("alpha_product"), step.item()
    product, at = 1.0, 0.0
    if noted is not None and noted.dtype is torch.float64:
        product, at = noted.tolist()
        if at == taken and noted.is_contiguous():
            return noted
    alpha = float(group["alpha"])
    return torch.tensor([product * alpha ** (taken - at) if at <= taken else alpha**taken, taken], dtype=torch.float64)


def _as_slot(tensor: Tensor | None, parameter: Tensor, *, by_row: bool, start: float = 0.0) -> Tensor:
    """Return a slot's tensor as kernels can step it: the same one where it can be, or one that is ``start``."""
    if tensor is None:
        made = zeros_as(parameter, by_row=by_row)
        if start:
            (torch.view_as_real(made) if made.is_complex() else made).fill_(start)
        return made
    is_plain = tensor.is_cpu and not (tensor.is_conj() or tensor.is_neg())
    dtype, stride = state_dtype(parameter.dtype), parameter.stride()
    if by_row:
        dtype, stride = dtype.to_real(), (1,)
    if is_plain and tensor.dtype is dtype and tensor.stride() == stride:
        return tensor
    return zeros_as(parameter, by_row=by_row).copy_(tensor.detach())
