"""Bags of several features, each with a table of its own, looked up and stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.bags import stack_tables
from .embedding import EmbeddingBag


class EmbeddingBagCollection(nn.Module):
    """Tables of several features in one parameter, so that one launch looks up, and one steps, the bags of all.

    The tables lie one under the other in ``table.weight``. Recommenders have eight to a hundred features; a module for
    each takes a launch for each, and a step in which each is looked at.

    Parameters
    ----------
    num_embeddings : sequence of int
        The rows of each feature's table.
    embedding_dim : int
        The columns of all of them.
    mode : {"sum", "mean"}, default "sum"
        What is done with the rows of a bag.
    include_last_offset : bool, default False
        Whether ``offsets`` have one item more, the number of indices.
    fused : bool, default True
        As in :class:`~numba_rmsprop.torch.EmbeddingBag`.
    device, dtype
        As in torch.nn.EmbeddingBag.

    Raises
    ------
    ValueError
        If there is no table.

    Examples
    --------
    >>> tables = EmbeddingBagCollection([10, 1000], 4)
    >>> tables(torch.tensor([9, 3, 3, 999]), torch.tensor([0, 1, 3, 3])).shape  # two bags of each of two features
    torch.Size([2, 2, 4])
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int,
        mode: str = "sum",
        include_last_offset: bool = False,
        *,
        fused: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not len(num_embeddings):
            raise ValueError("num_embeddings: expected the rows of at least one table, got none")
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.include_last_offset = include_last_offset
        self._starts = np.cumsum([0, *self.num_embeddings])
        rows = int(self._starts[-1])
        self.table = EmbeddingBag(
            rows, embedding_dim, mode=mode, include_last_offset=True, fused=fused, device=device, dtype=dtype
        )

    def tables(self) -> list[Tensor]:
        """Return each feature's table, current: views of the parameter."""
        return list(self.table.weight.detach().split(self.num_embeddings))

    def forward(
        self,
        input: Tensor,  # noqa: A002 - PyTorch's name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the sum or mean of each bag, shape (features, bags, columns).

        Parameters
        ----------
        input : Tensor of int, shape (n,) or (features, bags, rows of each)
            Rows, those of the first feature's bags first, each counted from the beginning of its own table.
        offsets : Tensor of int, shape (features * bags,), optional
            Where each bag begins, as in torchrec's KeyedJaggedTensor; None only where ``input`` has three axes.
        per_sample_weights : Tensor, of the shape of ``input``, optional
            A factor for each entry; with the mode "sum".

        Raises
        ------
        ValueError
            If the offsets are not as many for each feature, or do not fit the input.
        IndexError
            If an index is negative, or beyond its feature's table.
        """
        features = len(self.num_embeddings)
        if offsets is None and input.ndim == 3 and len(input) == features:
            offsets = torch.arange(0, input.numel() + 1, max(input.shape[2], 1))
            offsets = offsets if input.shape[2] else torch.zeros(features * input.shape[1] + 1, dtype=torch.int64)
        elif offsets is not None and input.ndim == 1 and not self.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([len(input)])])
        if offsets is None or offsets.ndim != 1 or not len(offsets) or (len(offsets) - 1) % features:
            got = None if offsets is None else tuple(offsets.shape)
            raise ValueError(
                f"offsets: expected one for each bag, as many bags for each of {features} features, got {got} for an "
                f"input of shape {tuple(input.shape)}"
            )
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        bags = (len(offsets) - 1) // features
        sums: Tensor = self.table(self._stacked(input, offsets, bags), offsets, weights)
        return sums.reshape(features, bags, sums.shape[1])

    def _stacked(self, inputs: Tensor, offsets: Tensor, bags: int) -> Tensor:
        """Return rows counted from the beginning of the first table."""
        indices, ends = (tensor.detach().reshape(-1).to(torch.int64).numpy() for tensor in (inputs, offsets))
        if not ((np.diff(ends) >= 0).all() and ends[0] == 0 and ends[-1] == len(indices)):
            raise ValueError(
                f"offsets: expected numbers from 0 to {len(indices)}, none less than the one before it, got {offsets}"
            )
        stacked, ends = (
            np.empty(len(indices), np.int64),
            ends[::bags] if bags else np.zeros(len(self._starts), np.int64),
        )
        bad = int(stack_tables(np.ascontiguousarray(indices), np.ascontiguousarray(ends), self._starts, stacked))
        if bad >= 0:
            feature = int(np.searchsorted(ends, bad, side="right")) - 1
            raise IndexError(
                f"input[{bad}] is {indices[bad]}; expected 0 <= index < {self.num_embeddings[feature]}, the rows of "
                f"feature {feature}"
            )
        return torch.from_numpy(stacked)
