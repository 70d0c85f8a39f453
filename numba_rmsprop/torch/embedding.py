"""Embeddings whose forward pass reads current rows."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional

from . import stale_rows


class _Current(nn.Module):
    """What both have in common: a table whose rows are brought up to date before anybody sees them."""

    weight: Tensor

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if isinstance(found, nn.Parameter):
            stale_rows.flush(found)  # whoever asks for the table may read any row, or write to it
        return found

    def _table(self) -> Tensor:
        """Return the table, some of whose rows may be behind."""
        weight = self._parameters.get("weight")
        if weight is None:  # computed, as by a parametrization, from a parameter that only that knows
            stale_rows.flush_all()
            return self.weight
        return weight

    def __getstate__(self) -> dict[str, Any]:
        stale_rows.flush(self.weight)  # copies and pickles are read elsewhere
        return self.__dict__.copy()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        stale_rows.flush(self.weight)  # it may be about to get other memory, or another dtype
        return super()._apply(*args, **kwargs)

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        stale_rows.flush(self.weight)
        super().reset_parameters()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        stale_rows.flush(self.weight)
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        stale_rows.flush(self.weight)  # or else what rows have missed would move those that are loaded
        super()._load_from_state_dict(*args, **kwargs)


class Embedding(_Current, nn.Embedding):
    """An nn.Embedding with sparse gradients whose forward pass catches up the rows it reads.

    With momentum, a sparse step of :class:`~numba_rmsprop.torch.RMSprop` in exact mode leaves the rows that it does
    not touch behind; this brings them up to date when they are looked up, and all of them for ``state_dict``, copies
    and pickles. With other optimizers it is an nn.Embedding.

    Parameters
    ----------
    num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight, _freeze, \
device, dtype
        Those of torch.nn.Embedding, where ``sparse`` is False by default. ``max_norm`` acts on current rows. PyTorch
        has no sparse gradients with ``scale_grad_by_freq``, which so needs ``sparse=False``.

    Notes
    -----
    ``module.weight`` brings every row up to date before it hands out the table, which costs a pass over it where rows
    are behind: read it after training, or now and then. So do ``torch.func.functional_call``, torch.vmap, fake tensors
    and parametrizations, which do not tell which rows they read. A parameter that was kept from before, or comes from
    ``parameters()``, as for AveragedModel, is the table as it lies: call ``optimizer.flush()`` before you read it, and
    before you write to it, or else what rows have missed moves what you have written.

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
    ) -> None:
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
    ) -> Self:
        """Return an embedding of these rows, as torch.nn.Embedding.from_pretrained does."""
        made: Self = super().from_pretrained(
            embeddings, freeze, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
        return made

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Return the rows at the indices ``input``."""
        weight = self._table()
        with stale_rows.forward(weight, input, writes=self.max_norm is not None):
            return functional.embedding(
                input,
                weight,
                self.padding_idx,
                self.max_norm,
                self.norm_type,
                self.scale_grad_by_freq,
                self.sparse,
            )


class EmbeddingBag(_Current, nn.EmbeddingBag):
    """An nn.EmbeddingBag with sparse gradients whose forward pass catches up the rows it reads.

    See :class:`Embedding`. PyTorch has no sparse gradients for ``mode="max"``. With ``per_sample_weights`` that want a
    gradient, autograd keeps the table: before several forward passes in one graph, catch up all their rows, or flush.

    Parameters
    ----------
    num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, _weight, \
include_last_offset, padding_idx, device, dtype
        Those of torch.nn.EmbeddingBag, where ``sparse`` is False by default.

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
    ) -> None:
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
    ) -> Self:
        """Return bags of these rows, as torch.nn.EmbeddingBag.from_pretrained does."""
        made: Self = super().from_pretrained(
            embeddings,
            freeze,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            include_last_offset,
            padding_idx,
        )
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
