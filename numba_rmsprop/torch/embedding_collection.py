"""Bags of several features, each with a table of its own, looked up and stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..gradients.bags import check_ends
from ..kernels.bags import stack_tables
from .embedding import EmbeddingBag
from .fused import INTEGERS


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
    dtype : torch.dtype, optional
        As in torch.nn.EmbeddingBag.

    Raises
    ------
    ValueError
        If there is no table, or one has no row.

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
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not len(num_embeddings) or min(num_embeddings) < 1:
            raise ValueError(f"num_embeddings: expected at least one table, of one row or more, got {num_embeddings}")
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.include_last_offset = include_last_offset
        self._starts = np.cumsum([0, *self.num_embeddings])
        rows = int(self._starts[-1])
        self.table = EmbeddingBag(rows, embedding_dim, mode=mode, include_last_offset=True, fused=fused, dtype=dtype)

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
        features, weights = len(self.num_embeddings), per_sample_weights
        if weights is not None and weights.shape != input.shape:
            raise ValueError(f"per_sample_weights: expected shape {tuple(input.shape)}, got {tuple(weights.shape)}")
        if offsets is None and input.ndim == 3 and len(input) == features:
            offsets = torch.arange(features * input.shape[1] + 1) * input.shape[2]
        elif offsets is not None and input.ndim == offsets.ndim == 1 and not self.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([len(input)])])
        elif offsets is None or input.ndim != 1 or offsets.ndim != 1:
            offsets = torch.empty(0, dtype=torch.int64)
        if len(offsets) % features != 1 % features or not len(offsets):
            raise ValueError(
                f"offsets: expected one for each bag, as many bags for each of {features} features, for an input of "
                f"shape (n,); or none for one of {features} features, bags, and rows of each; got {len(offsets)} for "
                f"shape {tuple(input.shape)}"
            )
        for name, tensor in (("input", input), ("offsets", offsets)):
            if tensor.dtype not in INTEGERS:
                raise TypeError(f"{name}: expected int32 or int64, got {tensor.dtype}")
        bags = (len(offsets) - 1) // features
        stacked = self._stacked(input, offsets, bags)
        sums: Tensor = self.table(stacked, offsets, None if weights is None else weights.reshape(-1))
        return sums.reshape(features, bags, sums.shape[1])

    def _stacked(self, inputs: Tensor, offsets: Tensor, bags: int) -> Tensor:
        """Return rows counted from the beginning of the first table."""
        indices, ends = (np.array(tensor.detach().reshape(-1).numpy(), np.int64) for tensor in (inputs, offsets))
        check_ends(ends, len(indices), include_last_offset=True)
        starts = np.ascontiguousarray(ends[::bags]) if bags else np.zeros(len(self._starts), np.int64)
        stacked = np.empty(len(indices), np.int64)
        bad = int(stack_tables(indices, starts, self._starts, stacked))
        if bad >= 0:
            feature = int(np.searchsorted(starts, bad, side="right")) - 1
            raise IndexError(
                f"input[{bad}] is {indices[bad]}; expected 0 <= index < {self.num_embeddings[feature]}, the rows of "
                f"feature {feature}"
            )
        return torch.from_numpy(stacked)
