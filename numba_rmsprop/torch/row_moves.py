"""Rows of an embedding taken to another parameter together with their state: to grow, to prune, to sort."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import stale_rows
from .fused import FusedWeight
from .parameter_state import SLOTS, ParameterState
from .tensor_views import describe

NEW = -1
"""The index of a row that is new."""


class RowMoves:
    """The calls of an optimizer that take rows to other parameters."""

    param_groups: list[dict[str, Any]]
    state: Any
    flush: Callable[..., None]
    _own: Callable[[Tensor], ParameterState | None]

    def resize(self, table: nn.Module | Tensor, rows: int, fill: float | Tensor = 0.0) -> nn.Parameter:
        """Return a longer or shorter parameter in the place of a table, with the state of the rows that stay.

        Parameters
        ----------
        table : nn.Embedding, nn.EmbeddingBag, a module like them, or Parameter
            A module has the new parameter as its ``weight`` then, and ``num_embeddings``.
        rows : int
            How many rows it is to have.
        fill : float or Tensor, shape (new rows, columns), default 0
            The values of new rows. Their state is that of rows that no step has touched.

        Returns
        -------
        Parameter
            The new one, which stands in the parameter groups where the old one stood. The old one is left without rows:
            another module that shares it, as with tied weights, fails until it gets the new one.

        Raises
        ------
        ValueError
            If the parameter is in no group or has a gradient, or the padding row would go.
        TypeError
            If ``rows`` is no whole number.

        Examples
        --------
        >>> from numba_rmsprop.torch import Embedding, RMSprop
        >>> table = Embedding(1000, 2)
        >>> optimizer = RMSprop(table.parameters())
        >>> optimizer.resize(table, 1500, fill=torch.randn(500, 2) / 10).shape
        torch.Size([1500, 2])
        >>> table.num_embeddings
        1500
        """
        try:
            rows = -1 if isinstance(rows, bool) else operator.index(rows)
        except TypeError:
            rows = -1
        if rows < 0:
            raise TypeError("rows: expected a whole number, 0 or more, got another")
        before = len(_parameter_of(table))
        indices = torch.full((rows,), NEW)
        indices[:before] = torch.arange(min(rows, before))
        return self.take_rows(table, indices, fill)

    def take_rows(self, table: nn.Module | Tensor, indices: Tensor, fill: float | Tensor = 0.0) -> nn.Parameter:
        """Return a parameter of some rows, in any order, in the place of a table, with their state.

        Parameters
        ----------
        indices : Tensor of int, shape (n,)
            Which row each one was, or -1 for a new one.
        table, fill
            As for :meth:`resize`.

        Raises
        ------
        IndexError
            If an index is out of bounds.
        ValueError, TypeError
            As for :meth:`resize`.
        """
        parameter = _parameter_of(table)
        own = self._own(parameter)
        name = "parameter" if own is None else own.name
        places = _checked(indices, parameter, name)
        padding = _padding_after(table, places)
        if (type(parameter) is FusedWeight and parameter.waiting) or parameter.grad is not None:
            raise ValueError(f"{describe(name, parameter)}: it has a gradient; call step() or zero_grad() first")
        new = int((places == NEW).sum())
        if isinstance(fill, Tensor) and fill.ndim and fill.shape != (new, *parameter.shape[1:]):
            raise ValueError(f"fill: expected a number or shape {(new, *parameter.shape[1:])}, got {tuple(fill.shape)}")
        self.flush(parameter)
        made = nn.Parameter(_taken(parameter.detach(), places, fill), parameter.requires_grad)
        made.__class__ = type(parameter)
        values = made.detach()[places == NEW]
        entry = dict(self.state.get(parameter, {}))
        for key in SLOTS:
            if key in entry:
                entry[key] = _taken(entry[key], places, values if key == "average" else self._start_of(key, parameter))
        self._replace(parameter, made, entry)
        if isinstance(table, nn.Module):
            table.weight = made
            if hasattr(table, "num_embeddings"):
                table.num_embeddings = len(made)
            if padding is not None:
                table.padding_idx = padding
        parameter.data = parameter.data[:0].clone()  # so that nobody goes on with it and wonders
        return made

    def _start_of(self, key: str, parameter: Tensor) -> float:
        group = next(group for group in self.param_groups if any(parameter is each for each in group["params"]))
        return float(group["initial_scale"]) if key == "square_avg" else 0.0

    def _replace(self, before: Tensor, made: nn.Parameter, entry: dict[str, Any]) -> None:
        """Let a parameter stand in the groups and in the state where another one stood."""
        table = stale_rows.table_of(before)
        if table is not None:
            table.retire(before)
        for group in self.param_groups:
            group["params"] = [made if each is before else each for each in group["params"]]
        if before in self.state:
            del self.state[before]
            self.state[made] = entry


def _parameter_of(table: nn.Module | Tensor) -> Tensor:
    found = getattr(table, "weight", None) if isinstance(table, nn.Module) else table
    if not isinstance(found, nn.Parameter) or not found.ndim:
        raise TypeError(
            f"table: expected a parameter with rows, or a module whose weight is one, got {type(table).__name__}"
        )
    return found


def _checked(indices: Tensor, parameter: Tensor, name: str) -> Tensor:
    whole = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    if not isinstance(indices, Tensor) or indices.ndim != 1 or indices.dtype not in whole:
        raise TypeError(
            f"indices: expected a tensor of integers of shape (n,), got {indices!r:.100}; for a mask, "
            "torch.nonzero(mask).flatten()"
        )
    if indices.numel() and not (indices.min() >= NEW and indices.max() < len(parameter)):
        raise IndexError(
            f"indices: expected -1 <= index < {len(parameter)} for {describe(name, parameter)}, got "
            f"{int(indices.min())} to {int(indices.max())}"
        )
    return indices.long()


def _padding_after(table: nn.Module | Tensor, places: Tensor) -> int | None:
    """Return where the padding row of a module goes; None if it has none."""
    padding = getattr(table, "padding_idx", None)
    if padding is None:
        return None
    found = torch.nonzero(places == padding).flatten()
    if len(found) != 1:
        raise ValueError(f"indices: expected the padding row {padding} once, got it {len(found)} times")
    return int(found[0])


def _taken(tensor: Tensor, places: Tensor, fill: float | Tensor) -> Tensor:
    """Return rows of a tensor, and what they are filled with where they are new."""
    made = torch.empty((len(places), *tensor.shape[1:]), dtype=tensor.dtype)
    is_new = places == NEW
    made[~is_new] = tensor[places[~is_new]]
    made[is_new] = torch.as_tensor(fill, dtype=tensor.dtype)
    return made
