"""The sum of the gradients of one variable over several calls: sparse ones stay sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..state.slots import Slots
from .coalescing import coalesce, coalesced
from .conversion import Gradient
from .dense import Dense
from .indexed_slices import IndexedSlices
from .rows import Rows

DENSE, ROWS, ENTRIES = "sum.dense", ("sum.rows", "sum.values"), ("sum.places", "sum.numbers")
"""The names of the arrays of a sum in a file."""

Piece: TypeAlias = tuple[NDArray[np.int64], FloatArray]
"""Different places, and the values there, shape (n, columns)."""


class Sum(NamedTuple):
    """The sum of gradients of one variable, in the dtype that steps are computed in.

    Nothing writes to its arrays, so that copies and other sums may share them.

    Attributes
    ----------
    dense : ndarray or None
        The sum of the dense ones, of the variable's shape.
    rows : tuple of pieces
        Rows, by their indices; the sum is that of all pieces.
    entries : tuple of pieces
        Single elements of matrices, by their places in the flat variable.
    """

    dense: FloatArray | None = None
    rows: tuple[Piece, ...] = ()
    entries: tuple[Piece, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if no gradient was added."""
        return self.dense is None and not self.rows and not self.entries

    def plus(self, gradient: Gradient, own: Slots) -> Sum:
        """Return the sum with one more gradient, of which nothing is kept but copies."""
        if isinstance(gradient, Dense):
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.array(gradient.values, own.dtype, order="C")
                return self._replace(dense=values if self.dense is None else np.add(self.dense, values, out=values))
        more = coalesced(gradient, own)
        if isinstance(more, Rows):
            return self._replace(rows=_with((*self.rows, (more.indices, more.values))))
        places = more.row.astype(np.int64) * math.prod(own.shape[1:]) + more.col
        return self._replace(entries=_with((*self.entries, (places, more.data[:, np.newaxis]))))

    def merged(self) -> Sum:
        """Return the same sum with one piece of each kind at most."""
        return self._replace(rows=_merged(self.rows), entries=_merged(self.entries))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the sum, by the names that they have in files."""
        _, rows, entries = self.merged()
        found: dict[str, NDArray[Any]] = {} if self.dense is None else {DENSE: self.dense}
        for names, pieces in ((ROWS, rows), (ENTRIES, entries)):
            for places, values in pieces:
                found |= {names[0]: places, names[1]: values}
        return found

    @classmethod
    def of_arrays(cls, found: Mapping[str, NDArray[Any]]) -> Sum:
        """Return the sum whose :meth:`arrays` these are, with copies of them."""
        rows, entries = (
            ((np.array(found[names[0]]), np.array(found[names[1]])),) if names[0] in found else ()
            for names in (ROWS, ENTRIES)
        )
        return cls(np.array(found[DENSE]) if DENSE in found else None, rows, entries)

    def divided(self, count: int, own: Slots) -> Any:
        """Return the sum divided by a number, as :meth:`Optimizer.apply_gradients` takes it; None if it is empty."""
        if self.is_empty:
            return None
        columns = math.prod(own.shape[1:])
        if self.dense is not None:
            total = self.dense.copy()
            for indices, values in self.rows:
                total.reshape(len(total), columns)[indices] += values
            for places, values in self.entries:
                total.reshape(-1)[places] += values[:, 0]
            return np.divide(total, count, out=total)
        rows, entries = self.merged()[1:]
        if rows and entries:
            rows = _merged((*rows, _as_rows(entries[0], columns)))
        if rows:
            indices, values = rows[0]
            return IndexedSlices((values / count).reshape(len(indices), *own.shape[1:]), indices)
        places, values = entries[0]
        shape = len(own.var), columns
        matrix = scipy.sparse.coo_array((values[:, 0] / count, np.divmod(places, columns)), shape).tocsr()
        return matrix if len(own.shape) == 2 else matrix.reshape(own.shape)


def _with(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return pieces, merged where the later ones have grown as long as the first, so that memory stays in bounds."""
    return _merged(pieces) if sum(len(indices) for indices, _ in pieces[1:]) >= len(pieces[0][0]) else pieces


def _merged(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return pieces as one; its bits do not depend on when it is done, since entries are added up in order."""
    if len(pieces) < 2:
        return pieces
    indices, values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return (coalesce((indices, values, None, None)),)


def _as_rows(entries: Piece, columns: int) -> Piece:
    """Return entries as rows, with 0 where there is none."""
    rows, places = np.divmod(entries[0], columns)
    indices, which = np.unique(rows, return_inverse=True)
    values = np.zeros((len(indices), columns), entries[1].dtype)
    values[which, places] = entries[1][:, 0]
    return indices, values
