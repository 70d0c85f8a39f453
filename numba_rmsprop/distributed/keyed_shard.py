"""The rows by key of one rank."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.variables import FloatArray
from ..keyed.eviction import Age, too_old
from ..keyed.keys import NO_KEYS
from ..keyed.optimizer import TableOptimizer
from ..keyed.rows_by_key import First
from ..keyed.table import KeyedTable
from ..mpi.ranks import Ranks
from ..runtime.whole_calls import in_turn
from ..settings.step_numbers import StepNumbers
from .shard import ShardOptimizer


class KeyedShardOptimizer(ShardOptimizer, TableOptimizer):
    """RMSprop for the rows by key of one rank."""


class LocalTable(KeyedTable):
    """The keys that one rank owns, with their rows."""

    optimizer: KeyedShardOptimizer

    def __init__(self, ranks: Ranks, *arguments: Any, **options: Any) -> None:
        self._ranks = ranks
        self._numbers: StepNumbers | None = None
        self._entered: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        super().__init__(*arguments, **options)

    def _new_optimizer(self, options: dict[str, Any]) -> KeyedShardOptimizer:
        return KeyedShardOptimizer(self._ranks, **options)

    def rows(self, keys: ArrayLike, *, create: bool = False) -> NDArray[np.int64]:
        """Return the row of each key, -1 for one without; refuse to make rows on this rank alone."""
        if create:
            _refuse("rows(create=True)", "apply_gradients")
        return super().rows(keys)

    def apply_gradients(self, keys: ArrayLike, values: ArrayLike) -> NoReturn:
        """Refuse: all ranks take a step together."""
        _refuse("apply_gradients", "apply_gradients")

    def evict(self, *, max_age: int | None = None, max_rows: int | None = None) -> NoReturn:
        """Refuse: all ranks drop keys together."""
        _refuse("evict", "evict")

    @property
    def var(self) -> FloatArray:
        """The array in which the rows lie now."""
        return self._var

    def enter(self, keys: NDArray[np.int64]) -> None:
        """Give rows to keys without one, before the ranks agree that a step is taken."""
        self._entered = None
        self._with_first_values(keys, self._enter)

    def _enter(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First) -> bool:
        counts = self._map.counts.copy()
        self._entered = self._create(keys, rows, first), counts
        return True

    def leave(self) -> None:
        """Take back the rows of :meth:`enter`."""
        fresh, counts = self._entered or (NO_KEYS, self._map.counts)
        in_turn(self._map.undo, fresh, counts)

    def step(self, keys: NDArray[np.int64], grads: FloatArray, numbers: StepNumbers) -> int:
        """Take one step with the numbers that all ranks have agreed on."""
        self._numbers = numbers
        return self._with_first_values(keys, self._step, grads)

    def _take_step(self, rows: NDArray[np.int64], grads: NDArray[Any]) -> int:
        assert self._numbers is not None
        return self.optimizer.step(self._var, (rows, grads, None, None), self._numbers)

    def ages(self, max_age: int | None) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return when the rows that are not too old were touched, and their keys."""

        def read() -> tuple[NDArray[np.int32], NDArray[np.int64]]:
            in_use = self._map.rows_in_use()
            touched, keys = self._map.touched[in_use], self._map.row_keys[in_use]
            left = ~too_old(touched, self._map.steps, max_age)
            return touched[left], keys[left]

        return in_turn(read)

    def evict_until(self, max_age: int | None, last: Age | None) -> NDArray[np.int64]:
        """Drop keys that are too old, and those that go before ``last``, and it; return them."""
        return self._evict(max_age, lambda touched, keys: last)


def _refuse(call: str, of_all: str) -> NoReturn:
    raise TypeError(
        f"local.{call}: expected a call that all ranks make together; call {of_all} of the ShardedKeyedTable"
    )
