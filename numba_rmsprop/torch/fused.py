"""Embeddings whose gradients become no tensors: they wait for the optimizer as bags of rows.

PyTorch writes the gradient of an embedding out, a row for each index, and the optimizer reads it back and adds it up.
Here backward keeps what it is made of, the indices and the gradient of what the module returned, and the optimizer's
step adds that up itself. Whoever reads ``weight.grad`` before gets the tensor, which is then made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..gradients.bags import check_ends
from ..kernels.bags import number_entries
from .tensor_views import REAL
from .undocumented import has_hooks, is_captured, is_transformed, version_of

INTEGERS = torch.int32, torch.int64


class Waiting(NamedTuple):
    """The gradient of one forward pass: entry ``i`` is ``weights[i] * values[sources[i]]``, at row ``indices[i]``.

    Attributes
    ----------
    indices : ndarray of int64, shape (n,)
        Rows of the table.
    values : Tensor, shape (m, columns)
        The gradient of what the module returned.
    rows, version : int, int or None
        How many rows the values had then, and how many writes to them had been counted.
    sources : ndarray of int32, shape (n,), or None
        None where each entry has a value of its own.
    weights : ndarray, shape (n,), or None
        None for ones.
    """

    indices: NDArray[np.int64]
    values: Tensor
    rows: int
    version: int | None
    sources: NDArray[np.int32] | None
    weights: NDArray[np.floating] | None


class FusedWeight(nn.Parameter):
    """The table of a fused embedding: a parameter whose gradients wait to be stepped; reading ``grad`` makes them."""

    @property
    def waiting(self) -> list[Waiting]:
        """The gradients of all backward passes since they were last cleared."""
        found: list[Waiting] = self.__dict__.setdefault("_waiting", [])
        return found

    @property
    def grad(self) -> Tensor | None:
        """The gradient as a sparse tensor; None where there is none."""
        taken = len(self.waiting)
        if taken:
            made = [_as_tensor(one, self) for one in self.waiting[:taken]]
            before = nn.Parameter.grad.__get__(self)
            total = sum(made[1:], made[0]) if before is None else sum(made, before)
            nn.Parameter.grad.__set__(self, total)
            del self.waiting[:taken]
        return nn.Parameter.grad.__get__(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        nn.Parameter.grad.__set__(self, value)
        self.waiting.clear()

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    def register_hook(self, hook: Any) -> Any:
        """Refuse: a hook is handed a gradient."""
        raise RuntimeError(_no_gradient("register_hook"))

    def register_post_accumulate_grad_hook(self, hook: Any) -> Any:
        """Refuse: PyTorch accumulates nothing here."""
        raise RuntimeError(_no_gradient("register_post_accumulate_grad_hook"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return a plain parameter, as PyTorch's files hold them; a module that is loaded makes it one of these."""
        plain = nn.Parameter(self.data, self.requires_grad)
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_waiting"})
        return plain.__reduce_ex__(protocol)


def _no_gradient(what: str) -> str:
    return (
        f"{what}: the table of a module with fused=True gets no gradient that could be handed over; make the module "
        "with fused=False"
    )


def _as_tensor(one: Waiting, weight: Tensor) -> Tensor:
    check_unchanged(one)
    values = one.values if one.sources is None else one.values[torch.from_numpy(one.sources).long()]
    if one.weights is not None:
        values = values * torch.from_numpy(one.weights).unsqueeze(1)
    return torch.sparse_coo_tensor(
        torch.from_numpy(one.indices).unsqueeze(0), values, weight.shape, check_invariants=True, is_coalesced=False
    )


def check_unchanged(one: Waiting) -> None:
    """Raise RuntimeError if the gradient that was passed to backward has been written to since."""
    if version_of(one.values) != one.version or one.values.shape[0] != one.rows:
        raise RuntimeError(
            "the gradient that a module with fused=True got in backward() was written to before the optimizer's step, "
            "which needs it; pass a copy: output.backward(gradient.clone())"
        )


def waiting_of(parameter: Tensor) -> list[Waiting]:
    """Return the gradients that wait for a step; none if there is a tensor too, to which they must be added."""
    if type(parameter) is not FusedWeight or nn.Parameter.grad.__get__(parameter) is not None:
        return []
    return parameter.waiting


def fuse(weight: Any) -> None:
    """Make a parameter one whose gradients wait; it stays the same object, so that optimizers go on with it."""
    if type(weight) is nn.Parameter and not has_hooks(weight):
        weight.__class__ = FusedWeight


def may_wait(weight: Any, inputs: Tensor) -> bool:
    """Return whether the gradient of a forward pass may wait; if not, PyTorch makes it as ever.

    It may not while PyTorch compiles, traces or transforms the pass, nor with torch.distributed, which sends the tensor
    to other processes.
    """
    return (
        type(weight) is FusedWeight
        and type(inputs) is Tensor
        and weight.requires_grad
        and torch.is_grad_enabled()
        and weight.dtype in REAL
        and weight.is_cpu
        and weight.is_contiguous()
        and inputs.is_cpu
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


class _Rows(torch.autograd.Function):
    """Rows of a table, as torch.nn.functional.embedding returns them, whose gradient waits."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, inputs: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.padding = weight, padding
        ctx.save_for_backward(inputs)
        return functional.embedding(inputs, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        if _may_add_gradient(ctx):
            indices, sources = _as_indices(ctx.saved_tensors[0]), None
            if ctx.padding is not None:
                kept = indices != ctx.padding
                indices, sources = indices[kept], np.flatnonzero(kept).astype(np.int32)
            values = grad.detach().reshape(-1, ctx.weight.shape[1]).contiguous()
            ctx.weight.waiting.append(Waiting(indices, values, len(values), version_of(values), sources, None))
        return None, None, None


class _Bags(torch.autograd.Function):
    """Sums or means of rows, as torch.nn.functional.embedding_bag returns them, whose gradient waits."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, inputs: Tensor, ends: Tensor, mode: str, factors: Tensor | None, padding: int | None
    ) -> Tensor:
        ctx.weight, ctx.mode, ctx.padding = weight, mode, padding
        ctx.save_for_backward(inputs, ends, factors)
        return functional.embedding_bag(
            inputs,
            weight,
            ends,
            mode=mode,
            per_sample_weights=factors,
            include_last_offset=True,
            padding_idx=padding,
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None, None, None]:
        if _may_add_gradient(ctx):
            inputs, ends, factors = ctx.saved_tensors
            indices, offsets = _as_indices(inputs), np.array(ends.numpy(), np.int64)
            check_ends(offsets, len(indices), include_last_offset=True)  # NumPy may have written to them since
            assert len(grad) == len(offsets) - 1, "PyTorch gives a gradient of the output's shape"
            sources, weights = np.empty(len(indices), np.int32), None
            number_entries(offsets, sources)
            if factors is not None:
                weights = np.array(factors.detach().numpy())
            if ctx.padding is not None:
                kept = indices != ctx.padding
                indices, sources = indices[kept], sources[kept]
                weights = None if weights is None else weights[kept]
            if ctx.mode == "mean":
                counts = np.maximum(np.bincount(sources, minlength=len(offsets) - 1), 1)
                grad = grad / torch.from_numpy(counts).to(grad.dtype).unsqueeze(1)
            values = grad.detach().contiguous()
            ctx.weight.waiting.append(Waiting(indices, values, len(values), version_of(values), sources, weights))
        return None, None, None, None, None, None


def _may_add_gradient(ctx: Any) -> bool:
    """Return whether a backward pass is to leave a gradient; raise where it would have to be a tensor."""
    if not (ctx.needs_input_grad[0] and ctx.weight.requires_grad):  # which may have been frozen since
        return False
    if torch.is_grad_enabled():
        raise RuntimeError(_no_gradient("create_graph"))
    if is_captured(ctx.next_functions[0][0]):
        raise RuntimeError(_no_gradient("torch.autograd.grad"))
    return True


def _as_indices(inputs: Tensor) -> NDArray[np.int64]:
    """Return a copy of indices, since whoever has the tensor may write the next batch into it before the step."""
    return np.array(inputs.detach().numpy().reshape(-1), np.int64)


def look_up(weight: FusedWeight, inputs: Tensor, padding: int | None) -> Tensor:
    """Return the rows at ``inputs``, as torch.nn.functional.embedding does."""
    rows: Tensor = _Rows.apply(weight, inputs, padding)
    return rows


def pool(
    weight: FusedWeight,
    inputs: Tensor,
    offsets: Tensor | None,
    mode: str,
    factors: Tensor | None,
    *,
    include_last_offset: bool,
    padding: int | None,
) -> Tensor:
    """Return the sum or mean of each bag, as torch.nn.functional.embedding_bag does.

    Raises
    ------
    ValueError
        If offsets or factors do not fit the input, or are not given with an input of one axis.
    TypeError
        If offsets are not integers.
    """
    if factors is not None and factors.shape != inputs.shape:
        raise ValueError(f"per_sample_weights: expected shape {tuple(inputs.shape)}, got {tuple(factors.shape)}")
    if offsets is not None and offsets.dtype not in INTEGERS:
        raise TypeError(f"offsets: expected int32 or int64, got {offsets.dtype}")
    if inputs.ndim == 2 and offsets is None:
        offsets, include_last_offset = torch.arange(len(inputs) + 1) * inputs.shape[1], True
    elif inputs.ndim != 1 or offsets is None or offsets.ndim != 1:
        raise ValueError(
            f"offsets: expected where each bag begins, shape (bags,), and an input of shape (n,), got "
            f"{None if offsets is None else tuple(offsets.shape)} and {tuple(inputs.shape)}; or an input of two axes"
        )
    ends = offsets if include_last_offset else torch.cat([offsets, offsets.new_tensor([len(inputs)])])
    numbers, used = ends.numpy(), inputs.numel()
    if include_last_offset and len(numbers):
        used = min(int(numbers[-1]), used)
    check_ends(numbers, used, include_last_offset=include_last_offset)
    if inputs.ndim > 1 or used < inputs.numel():  # what comes after the last offset belongs to no bag
        inputs = inputs.reshape(-1)[:used]
        factors = None if factors is None else factors.reshape(-1)[:used]
    found: Tensor = _Bags.apply(weight, inputs, ends.to(inputs.dtype), mode, factors, padding)
    return found
