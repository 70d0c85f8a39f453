"""The rows of a table by their keys: looked up, read, and given to keys that are new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray
from ..runtime.interrupts import Uninterrupted
from ..runtime.whole_calls import ATTEMPTS, in_turn
from ..state.changed_rows import Changes
from ..stepping.gathering import check_output
from .first_values import FirstValues, values_of
from .key_map import KeyMap
from .keys import NO_KEYS, as_keys
from .optimizer import TableOptimizer, refuse_copies
from .reserve import Reserve, rows_that_fit

First: TypeAlias = tuple[NDArray[np.int64], NDArray[Any]]
"""Keys in order, and the first value of the row of each, shape (n, columns)."""

Result = TypeVar("Result")


class RowsByKey:
    """Rows by key, and an optimizer that has them as its one variable, in which there is room for more.

    Attributes
    ----------
    optimizer : TableOptimizer
        The optimizer.
    """

    optimizer: TableOptimizer
    _map: KeyMap
    _initializer: FirstValues
    _var: FloatArray
    _reserve: Reserve | None

    def _reserve_rows(self) -> None:
        """Go on within reserved address space, if the system gives any."""
        own = self.optimizer.known.called(self._var)
        try:
            self._reserve = Reserve(own, rows_that_fit(own))
            self._map.reserve(self._reserve.rows)
        except MemoryError:
            own.make_clocks()
            self._reserve = None
        else:
            self._grow_in_place(self._reserve, len(self._var))

    def _grow_in_place(self, reserve: Reserve, rows: int) -> None:
        moved = reserve.first(rows, self.optimizer.known.called(self._var))
        self.optimizer.go_on_at(self._var, moved)
        self._var = moved.var

    def __len__(self) -> int:
        """Return how many keys have a row."""
        return len(self._map)

    def __contains__(self, key: object) -> bool:
        """Return whether a key has a row."""
        try:
            return bool(self.rows(cast(int, key)) >= 0)
        except (TypeError, ValueError, OverflowError):  # it is no key
            return False

    def keys(self) -> NDArray[np.int64]:
        """Return the keys that have a row, in the order of the rows."""
        found: NDArray[np.int64] = in_turn(lambda: self._map.row_keys[self._map.rows_in_use()].copy())
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """How many keys have a row, and how many elements a row has."""
        return len(self), self._var.shape[1]

    def rows(self, keys: ArrayLike, *, create: bool = False) -> NDArray[np.int64]:
        """Return the row of each key; -1 for one without, or with ``create`` a new row.

        Parameters
        ----------
        keys : array_like of int, any shape
            Keys of 64 bits with a sign.
        create : bool, default False
            Whether keys that have no row get one, with first values.

        Returns
        -------
        ndarray of int64, of the shape of ``keys``

        Raises
        ------
        TypeError
            If the keys are no integers of 64 bits.
        MemoryError
            If there is not enough memory for the new rows. Nothing has changed then.
        """
        wanted = as_keys(keys)
        flat = wanted.reshape(-1)
        found = self._with_first_values(flat, self._create_rows) if create else in_turn(self._map.find, flat)
        return found.reshape(wanted.shape)

    def _create_rows(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First) -> NDArray[np.int64]:
        self._create(keys, rows, first)
        return rows

    def _with_first_values(self, keys: NDArray[np.int64], call: Callable[..., Result], *arguments: Any) -> Result:
        """Return ``call(keys, rows, first, *arguments)``, made in one go.

        ``rows`` are those of the keys, and ``first`` the first values of keys without one. The initializer may be the
        user's code, and so is called before; if keys have come or gone meanwhile, again.
        """

        def in_one_go() -> Result | None:
            if self._map.version != version:
                return None
            with Uninterrupted():
                return call(keys, rows, (missing, values), *arguments)

        for _ in range(ATTEMPTS):
            version, rows = in_turn(self._look_up, keys)
            unknown = rows < 0
            missing = np.unique(keys[unknown]) if unknown.any() else NO_KEYS
            values = values_of(self._initializer, missing, self._var.shape[1], self._var.dtype)
            found = in_turn(in_one_go)
            if found is not None:
                return found
        raise RuntimeError(
            f"initializer: expected one that does not change the table; keys have come or gone while it was asked for "
            f"first values, {ATTEMPTS} times"
        )

    def _look_up(self, keys: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        return self._map.version, self._map.find(keys)

    def gather(self, keys: ArrayLike, out: FloatArray | None = None, *, averaged: bool = False) -> FloatArray:
        r"""Return the current row of each key, and first values for keys without one, which get none.

        Parameters
        ----------
        keys : array_like of int, any shape
            The keys.
        out : ndarray, shape (\*keys.shape, columns), optional
            Where to put them, as for :meth:`RMSprop.gather`.
        averaged : bool, default False
            Return rows of the moving average (``use_ema``).

        Returns
        -------
        ndarray, shape (\*keys.shape, columns)
            ``out``, or a new array; float32 for a table of 16 bits.
        """
        wanted = as_keys(keys)
        return self._with_first_values(wanted.reshape(-1), self._gather, wanted.shape, out, averaged)

    def _gather(
        self,
        keys: NDArray[np.int64],
        rows: NDArray[np.int64],
        first: First,
        shape: tuple[int, ...],
        out: FloatArray | None,
        averaged: bool,
    ) -> FloatArray:
        known = (rows >= 0).reshape(shape)
        if not len(first[0]):
            return self.optimizer.gather(self._var, rows.reshape(shape), out=out, averaged=averaged)
        keys, rows = keys.reshape(shape), rows.reshape(shape)
        shape, dtype = (*shape, self._var.shape[1]), computed_in(self._var.dtype)
        if out is None:
            out = np.empty(shape, dtype)
        check_output(out, shape, (dtype,))
        if self.optimizer.known.occupied.reached_by(out):
            raise ValueError("out: expected memory apart from the table and its slots; pass a new array")
        out[known] = self.optimizer.gather(self._var, rows[known], averaged=averaged)
        out[~known] = of_keys(keys[~known], first)
        return out

    def take_in(self, other: RowsByKey, keys: NDArray[np.int64]) -> None:
        """Give keys the rows that they have in another table after the same steps, with their state."""
        in_turn(self._take_in, other, keys)

    def _take_in(self, other: RowsByKey, keys: NDArray[np.int64]) -> None:
        there, here = other._map.find(keys), np.full(len(keys), -1)
        self._map.enter(keys, here)
        self._grow(int(self._map.counts[0]))
        own, others = self.optimizer.known.slots[0], other.optimizer.known.slots[0]
        own.var[here], self._map.touched[here] = others.var[there], other._map.touched[there]
        own.make_clocks()[here] = others.row_clocks()[there]
        for name, array in own.slots.items():
            array[here] = others.slots[name][there]
        own.changes, self.optimizer.known.saved = Changes(), None

    def take_steps_of(self, other: RowsByKey) -> None:
        """Go on after the steps that another table has taken."""
        own, others = self.optimizer.known.slots[0], other.optimizer.known.slots[0]
        own.restore(own.clocks, others.steps, others.floor, others.history.runs)
        own.product[()] = others.product
        self._map.steps, self.optimizer.iterations = other._map.steps, other.optimizer.iterations

    def _create(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First) -> NDArray[np.int64]:
        """Give rows to keys without one, and write these rows into ``rows``; return the new ones."""
        if not len(first[0]) or not (rows < 0).any():
            return NO_KEYS
        counts = self._map.counts.copy()
        fresh = self._map.enter(keys, rows)
        try:
            self._grow(int(self._map.counts[0]))
            self.optimizer.reset_rows(self._var, fresh, of_keys(self._map.row_keys[fresh], first))
        except BaseException:
            self._map.undo(fresh, counts)
            raise
        return fresh

    def _grow(self, needed: int) -> None:
        if needed <= len(self._var):
            return
        wanted = max(needed, len(self._var) + len(self._var) // 4)
        if self._reserve is not None and needed <= self._reserve.rows:
            self._grow_in_place(self._reserve, min(wanted, self._reserve.rows))
            return
        self._var = self.optimizer.resize(self._var, max(needed, 2 * len(self._var)))
        self._reserve = None

    def __reduce__(self) -> NoReturn:
        """Refuse copies and pickles."""
        refuse_copies()


def of_keys(keys: NDArray[np.int64], first: First) -> NDArray[Any]:
    """Return the first values of keys, which are among those that they were made for."""
    return first[1][np.searchsorted(first[0], keys)]
