"""The mean of the gradients of one variable over several calls, as far as it has been added up.

Each gradient is divided by the number of calls before it is added, so that finite gradients have a finite sum.
"""

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
"""Places, and the values there, shape (n, columns)."""


class Sum(NamedTuple):
    """A sum of gradients of one variable, in the dtype that steps are computed in.

    Nothing writes to its arrays, so that copies and other sums may share them.

    Attributes
    ----------
    dense : ndarray or None
        The sum of the dense ones, of the variable's shape.
    rows : tuple of pieces
        Rows, by their indices: different ones in the first piece, and then more of them in the order of the calls.
    entries : tuple of pieces
        The same for single elements of matrices, by their places in the flat variable.
    """

    dense: FloatArray | None = None
    rows: tuple[Piece, ...] = ()
    entries: tuple[Piece, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if no gradient was added."""
        return self.dense is None and not self.rows and not self.entries

    def plus(self, gradient: Gradient, own: Slots, count: int) -> tuple[Sum, FloatArray]:
        """Return the sum with a gradient divided by ``count``, and those of its numbers that are new.

        Nothing of the gradient is kept but copies.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if isinstance(gradient, Dense):
                share = np.array(gradient.values, own.dtype)
                share /= count
                total = share if self.dense is None else np.add(self.dense, share, out=share)
                return self._replace(dense=total), total
            more = coalesced(gradient, own)
            if isinstance(more, Rows):
                share = more.values / count
                added = self._replace(rows=_appended(self.rows, (more.indices, share)))
            else:
                places = more.row.astype(np.int64) * math.prod(own.shape[1:]) + more.col
                share = more.data[:, np.newaxis] / count
                added = self._replace(entries=_appended(self.entries, (places, share)))
        return added, share

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

    def as_gradient(self, own: Slots) -> Any:
        """Return the sum as :meth:`Optimizer.apply_gradients` takes it; None if it is empty."""
        if self.is_empty:
            return None
        columns = math.prod(own.shape[1:])
        _, rows, entries = self.merged()
        if self.dense is not None:
            total = self.dense.copy()
            with np.errstate(over="ignore", invalid="ignore"):
                for indices, values in rows:
                    total.reshape(len(total), columns)[indices] += values
                for places, values in entries:
                    total.reshape(-1)[places] += values[:, 0]
            return total
        if rows and entries:
            rows = _merged((*rows, _as_rows(entries[0], columns)))
        if rows:
            indices, values = rows[0]
            return IndexedSlices(values.reshape(len(indices), *own.shape[1:]), indices)
        places, values = entries[0]
        matrix = scipy.sparse.coo_array((values[:, 0], np.divmod(places, columns)), (len(own.var), columns)).tocsr()
        return matrix if len(own.shape) == 2 else matrix.reshape(own.shape)


def _appended(pieces: tuple[Piece, ...], new: Piece) -> tuple[Piece, ...]:
    """Return pieces and a new one; those that are no longer than it are joined with it, so that there are few.

    All are merged where the later ones have grown as long as the first: memory stays below some times the rows.
    """
    joined = list(pieces)
    if not joined:
        return (new,)
    while len(joined) > 1 and len(joined[-1][0]) <= len(new[0]):
        new = _joined([joined.pop(), new])
    if len(new[0]):
        joined.append(new)
    longer = sum(len(places) for places, _ in joined[1:]) >= len(joined[0][0])
    return _merged(tuple(joined)) if longer else tuple(joined)


def _joined(pieces: Any) -> Piece:
    places, values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return places, values


def _merged(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return pieces as one; its bits do not depend on when it is done, since entries are added up in order."""
    return (coalesce((*_joined(pieces), None, None)),) if len(pieces) > 1 else pieces


def _as_rows(entries: Piece, columns: int) -> Piece:
    """Return entries as rows, with 0 where there is none."""
    rows, places = np.divmod(entries[0], columns)
    indices, which = np.unique(rows, return_inverse=True)
    values = np.zeros((len(indices), columns), entries[1].dtype)
    values[which, places] = entries[1][:, 0]
    return indices, values
