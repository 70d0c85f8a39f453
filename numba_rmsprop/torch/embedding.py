"""Embeddings whose forward pass catches up the rows that it reads."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional

from ..runtime.caller_warnings import warn
from . import stale_rows
from .fused import fuse, look_up, may_wait, pool
from .undocumented import tells_captures


class _CurrentTable(nn.Module):
    """The common part of both modules: a table whose rows are caught up before they are read.

    It overrides methods with an underscore that PyTorch's own modules override, too, such as ``_apply`` in nn.LSTM.
    """

    weight: Tensor
    fused = False

    def _fuse(self, *, fused: bool) -> None:
        """Let the gradients of the table wait, if asked; after anything that may have put another table in place."""
        if fused and not tells_captures():
            warn("fused=True needs another version of PyTorch; gradients are made as with fused=False")
            fused = False
        self.fused = fused
        if fused:
            fuse(self._parameters.get("weight"))

    @staticmethod
    def _check_fused(*, fused: bool, sparse: bool, **refused: Any) -> None:
        if fused and not sparse:
            raise ValueError("sparse: expected True with fused=True, got False; make the module with fused=False")
        for name, value in refused.items():
            if fused and value:
                raise ValueError(
                    f"{name}: expected none with fused=True, got {value!r}; make the module with fused=False"
                )

    @property
    def _is_fused(self) -> bool:
        """Whether gradients may wait, also if options have been changed since the module was made."""
        return self.fused and bool(self.sparse) and self.max_norm is None and not self.scale_grad_by_freq

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if isinstance(found, nn.Parameter):
            stale_rows.flush(found)  # the caller may read any row, or write to it
        return found

    def _table(self) -> Tensor:
        """Return the table without catching up its rows."""
        weight = self._parameters.get("weight")
        if weight is None:  # a parametrization computes it from another parameter
            stale_rows.flush_all()
            return self.weight
        return weight

    def __getstate__(self) -> dict[str, Any]:
        stale_rows.flush(self.weight)  # the copy or pickle does not know which rows are behind
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fuse(fused=self.fused)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        stale_rows.flush(self.weight)  # the table may get other memory, or another dtype
        found = super()._apply(*args, **kwargs)
        self._fuse(fused=self.fused)
        return found

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        stale_rows.flush(self.weight)
        super().reset_parameters()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        stale_rows.flush(self.weight)
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        stale_rows.flush(self.weight)  # otherwise missed steps would be applied to the loaded rows
        super()._load_from_state_dict(*args, **kwargs)
        self._fuse(fused=self.fused)


class Embedding(_CurrentTable, nn.Embedding):
    """An nn.Embedding with sparse gradients whose forward pass catches up the rows that it reads.

    With momentum, a sparse step of :class:`~numba_rmsprop.torch.RMSprop` in exact mode leaves behind the rows that it
    does not touch. This module brings them up to date when they are looked up, and all rows for ``state_dict``, copies
    and pickles. With other optimizers it is a plain nn.Embedding.

    Parameters
    ----------
    num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight, _freeze, \
device, dtype
        As in torch.nn.Embedding, where ``sparse`` is False by default. ``max_norm`` acts on current rows.
        ``scale_grad_by_freq`` needs ``sparse=False``, since PyTorch has no sparse gradients with it.
    fused : bool, default False
        Make no tensor of the gradient: backward keeps the indices and the gradient of the rows for the optimizer,
        whose step adds them up. See the notes.

    Notes
    -----
    ``module.weight`` brings every row up to date before it returns the table. If rows are behind, that takes a pass
    over the table, so read it after training, or now and then. ``torch.func.functional_call``, torch.vmap, fake tensors
    and parametrizations do the same, since they do not tell which rows they read.

    With ``fused``, ``zero_grad`` and steps mean what they always do, and gradients of several backward passes add up.
    :class:`~numba_rmsprop.torch.RMSprop` takes them as they are. Whatever reads ``weight.grad``, as other optimizers or
    ``zero_grad`` of the module do, makes the tensor, which takes its time; call the optimizer's ``zero_grad``. Hooks
    on the table, ``create_graph`` and torch.autograd.grad for it are refused. Tables of other dtypes than float32 and
    float64, torch.compile, torch.func and torch.distributed take the usual way.

    A parameter that you have kept, or that comes from ``parameters()``, as in AveragedModel, may have rows that are
    behind. Call ``optimizer.flush()`` before you read it, and before you write to it: otherwise the steps that a row
    has missed are applied to your values.

    Examples
    --------
    >>> import torch
    >>> from numba_rmsprop.torch import RMSprop
    >>> table = Embedding(1000, 4)
    >>> optimizer = RMSprop(table.parameters(), momentum=0.9)
    >>> for step in range(3):
    ...     loss = table(torch.tensor([7, step])).square().sum()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        fused: bool = False,
    ) -> None:
        self._check_fused(fused=fused, sparse=sparse, max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq)
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            _freeze,
            device,
            dtype,
        )
        self._fuse(fused=fused)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        *,
        fused: bool = False,
    ) -> Self:
        """Return an embedding of these rows, as torch.nn.Embedding.from_pretrained does."""
        cls._check_fused(fused=fused, sparse=sparse, max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq)
        made: Self = super().from_pretrained(
            embeddings, freeze, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
        made._fuse(fused=fused)
        return made

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Return the rows at the indices ``input``."""
        weight = self._table()
        with stale_rows.forward(weight, input, writes=self.max_norm is not None):
            if self._is_fused and may_wait(weight, input):
                return look_up(weight, input, self.padding_idx)
            return functional.embedding(
                input, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
            )


class EmbeddingBag(_CurrentTable, nn.EmbeddingBag):
    """An nn.EmbeddingBag with sparse gradients whose forward pass catches up the rows that it reads.

    See :class:`Embedding`. PyTorch has no sparse gradients for ``mode="max"``. With ``per_sample_weights`` that require
    a gradient, autograd keeps the table: if one graph has several forward passes, catch up all their rows before the
    first, or flush.

    Parameters
    ----------
    num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, _weight, \
include_last_offset, padding_idx, device, dtype
        As in torch.nn.EmbeddingBag, where ``sparse`` is False by default.
    fused : bool, default False
        As in :class:`Embedding`. ``per_sample_weights`` that require a gradient take the usual way.

    Examples
    --------
    >>> import torch
    >>> bags = EmbeddingBag(1000, 4, mode="sum")
    >>> bags(torch.tensor([[1, 2], [3, 3]])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = True,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        fused: bool = False,
    ) -> None:
        refused = {"scale_grad_by_freq": scale_grad_by_freq, "mode": "max" if mode == "max" else None}
        self._check_fused(fused=fused, sparse=sparse, max_norm=max_norm, **refused)
        super().__init__(
            num_embeddings,
            embedding_dim,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            _weight,
            include_last_offset,
            padding_idx,
            device,
            dtype,
        )
        self._fuse(fused=fused)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = True,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        fused: bool = False,
    ) -> Self:
        """Return bags of these rows, as torch.nn.EmbeddingBag.from_pretrained does."""
        refused = {"scale_grad_by_freq": scale_grad_by_freq, "mode": "max" if mode == "max" else None}
        cls._check_fused(fused=fused, sparse=sparse, max_norm=max_norm, **refused)
        made: Self = super().from_pretrained(
            embeddings, freeze, max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset, padding_idx
        )
        made._fuse(fused=fused)
        return made

    def forward(
        self,
        input: Tensor,  # noqa: A002 - PyTorch's name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the sum or mean of each bag of indices."""
        weight = self._table()
        with stale_rows.forward(weight, input, writes=self.max_norm is not None):
            factors = per_sample_weights
            wants_gradient = factors is not None and factors.requires_grad
            if self._is_fused and self.mode != "max" and not wants_gradient and may_wait(weight, input):
                last, padding = self.include_last_offset, self.padding_idx
                return pool(weight, input, offsets, self.mode, factors, include_last_offset=last, padding=padding)
            return functional.embedding_bag(
                input,
                weight,
                offsets,
                self.max_norm,
                self.norm_type,
                self.scale_grad_by_freq,
                self.mode,
                self.sparse,
                per_sample_weights,
                self.include_last_offset,
                self.padding_idx,
            )
