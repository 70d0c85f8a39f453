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

from ..gradients.bags import as_bags, sources_of
from ..gradients.indexed_slices import check_rows
from ..gradients.scipy_sparse import NO_VALUES, NOWHERE
from ..kernels.bags import Bags
from ..state.reading import copy_rows, pool_rows
from .undocumented import is_captured

REAL = torch.float32, torch.float64


class Waiting(NamedTuple):
    """The gradient of one forward pass: entry ``i`` is ``weights[i] * values[sources[i]]``, at row ``indices[i]``.

    Attributes
    ----------
    indices : ndarray of int64, shape (n,)
        Rows of the table.
    values : Tensor, shape (m, columns)
        The gradient of what the module returned.
    sources : ndarray of int32, shape (n,), or None
        None where each entry has a value of its own.
    weights : ndarray, shape (n,), or None
        None for ones.
    """

    indices: NDArray[np.int64]
    values: Tensor
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
        if self.waiting:
            made = [_as_tensor(one, self) for one in self.waiting]
            before = nn.Parameter.grad.__get__(self)
            total = sum(made[1:], made[0]) if before is None else sum(made, before)
            self.waiting.clear()
            nn.Parameter.grad.__set__(self, total)
        return nn.Parameter.grad.__get__(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.waiting.clear()
        nn.Parameter.grad.__set__(self, value)

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
        return nn.Parameter(self.data, self.requires_grad).__reduce_ex__(protocol)


def _no_gradient(what: str) -> str:
    return (
        f"{what}: the table of a module with fused=True gets no gradient that could be handed over; make the module "
        "with fused=False"
    )


def _as_tensor(one: Waiting, weight: Tensor) -> Tensor:
    values = one.values if one.sources is None else one.values[torch.from_numpy(one.sources).long()]
    if one.weights is not None:
        values = values * torch.from_numpy(one.weights).unsqueeze(1)
    return torch.sparse_coo_tensor(
        torch.from_numpy(one.indices).unsqueeze(0), values, weight.shape, check_invariants=False, is_coalesced=False
    )


def waiting_of(parameter: Tensor) -> list[Waiting]:
    """Return the gradients that wait for a step of this parameter, if there is no tensor that they add up to."""
    if type(parameter) is not FusedWeight or nn.Parameter.grad.__get__(parameter) is not None:
        return []
    return parameter.waiting


def fuse(weight: Any) -> None:
    """Make a parameter one whose gradients wait; it stays the same object, so that optimizers go on with it."""
    if type(weight) is nn.Parameter:
        weight.__class__ = FusedWeight


def may_wait(weight: Any, inputs: Tensor) -> bool:
    """Return whether the gradient of a forward pass may wait; if not, PyTorch makes it as ever.

    It may not under torch.compile and torch.func, nor with processes that share gradients, which look for the tensor.
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
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


class _Looked(torch.autograd.Function):
    """Rows, or sums of bags of rows, whose gradient waits."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bags: Bags | None, indices: NDArray[np.int64], kept: NDArray[np.bool_] | None
    ) -> Tensor:
        table = weight.detach().numpy()
        ctx.weight, ctx.bags, ctx.indices, ctx.kept = weight, bags, indices, kept
        out = torch.empty(len(indices) if bags is None else len(bags.offsets) - 1, table.shape[1], dtype=weight.dtype)
        if bags is None:
            copy_rows(table, indices, out.numpy())
        else:
            pool_rows(table, bags, out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError(_no_gradient("create_graph"))
        if is_captured(ctx.weight):
            raise RuntimeError(_no_gradient("torch.autograd.grad"))
        sources, weights, indices, bags = None, None, ctx.indices, ctx.bags
        if bags is not None:
            weights, sources = bags.weights, sources_of(bags)
            if bags.mean:
                counts = np.maximum(np.diff(bags.offsets), 1)
                grad = grad / torch.from_numpy(counts).to(grad.dtype).unsqueeze(1)
        elif ctx.kept is not None:
            indices, sources = indices[ctx.kept], np.flatnonzero(ctx.kept).astype(np.int32)
        ctx.weight.waiting.append(Waiting(indices, grad.contiguous(), sources, weights))
        return None, None, None, None


def look_up(weight: FusedWeight, inputs: Tensor, padding: int | None) -> Tensor:
    """Return the rows at ``inputs``, as torch.nn.functional.embedding does."""
    indices = _as_rows(inputs, weight)
    kept = None if padding is None else indices != padding % len(weight)
    rows: Tensor = _Looked.apply(weight, None, indices, kept)
    return rows.reshape(*inputs.shape, weight.shape[1])


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
    """Return the sum or mean of each bag, as torch.nn.functional.embedding_bag does."""
    indices = _as_rows(inputs, weight)
    given = None if offsets is None else offsets.detach().numpy()
    weights = None if factors is None else factors.detach().numpy()
    shaped = indices.reshape(inputs.shape)
    dtype = np.dtype(str(weight.dtype).removeprefix("torch."))
    bags = as_bags(shaped, given, weights, mode, include_last_offset=include_last_offset, dtype=dtype)
    if padding is not None:
        bags = _without(padding % len(weight), bags)
    found: Tensor = _Looked.apply(weight, bags, bags.indices, None)
    return found


def _as_rows(inputs: Tensor, weight: Tensor) -> NDArray[np.int64]:
    """Return indices as an array that nobody else writes to, since the gradient is made of it later."""
    if inputs.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"input: expected int32 or int64, got {inputs.dtype}")
    indices = np.array(inputs.detach().numpy().reshape(-1), np.int64)
    checked, _ = check_rows(indices, NO_VALUES, len(weight), "input", NOWHERE)
    return checked


def _without(padding: int, bags: Bags) -> Bags:
    """Return bags without the entries of one row."""
    kept = bags.indices != padding
    before = np.concatenate([[0], np.cumsum(kept)])
    weights = None if bags.weights is None else bags.weights[kept]
    return Bags(bags.indices[kept], before[bags.offsets], weights, bags.mean)
