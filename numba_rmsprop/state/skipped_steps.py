"""The hyperparameters of the steps that rows may have missed."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..kernels.compile_for_rule import kernels_of
from ..kernels.rule import Rule
from ..kernels.skip_factors import TABLE_GAPS
from ..runtime.interrupts import Call, call_in_one_go

HistoryArrays: TypeAlias = tuple[NDArray[np.floating], NDArray[np.float64], NDArray[np.float64]]

RUNS_AT_START = 16
MAX_RUNS = 65_536
"""The longest log, some 7 MB: a variable whose numbers change at every step is flushed after so many steps."""


class History:
    """Runs of steps with equal numbers, from which kernels take the factors of a gap.

    See :mod:`numba_rmsprop.kernels.skip_factors` for the arrays.

    Parameters
    ----------
    rule : Rule
        The optimizer's rule, which says on which numbers a skipped step depends.
    dtype : numpy dtype
        The variable's; the table of common gaps is rounded to it.
    """

    def __init__(self, rule: Rule, dtype: np.dtype[np.floating]) -> None:
        self._rule = rule
        self._factors = len(rule.factors._fields)
        self._table = np.empty((self._factors, TABLE_GAPS), dtype)
        self._runs = np.empty((RUNS_AT_START, 1 + len(rule.skipped)))
        self._tree = np.zeros((2 * RUNS_AT_START, self._factors))
        self._count = 0
        self._latest: tuple[int, tuple[float, ...]] = (0, ())  # the first step of the last run, and its numbers
        self._table_is_for: tuple[float, ...] | None = None
        self._single: HistoryArrays | None = None

    def fresh(self) -> History:
        """Return a history without steps."""
        return History(self._rule, self._table.dtype)

    def had_at_work(self, slot: str) -> bool:
        """Return whether a row may have missed a step at which a slot was at work."""
        names = list(self._rule.skipped)
        at_rest = self._rule.at_rest[slot]
        return any(bool((self.runs[:, 1 + names.index(name)] != value).any()) for name, value in at_rest.items())

    @property
    def full(self) -> bool:
        """True if the variable must be flushed before another step is noted."""
        return self._count >= MAX_RUNS - 1

    @property
    def runs(self) -> NDArray[np.float64]:
        """Rows of (first step, the numbers that the rule calls ``skipped``), in order."""
        return self._runs[: self._count]

    def to_note(self, step: int, numbers: tuple[float, ...]) -> list[Call]:
        """Return what notes the numbers of step ``step``, as :attr:`StepNumbers.when_skipped` tells them."""
        if self._latest[1] == numbers:
            return []
        count = self._count
        if count == len(self._runs):
            self._grow()
        # Behind the runs that count, so nobody reads it yet.
        self._runs[count] = step, *numbers
        if count:
            self._kernels.finish_run(count - 1, step, self._runs, self._tree)
        return [(setattr, self, "_latest", (step, numbers)), (setattr, self, "_count", count + 1)]

    def note_runs(self, runs: NDArray[np.float64]) -> None:
        """Record runs as :attr:`runs` gave them."""
        for step, *numbers in runs.tolist():
            call_in_one_go(self.to_note(int(step), tuple(numbers)))

    def arrays(self, now: int) -> HistoryArrays:
        """Return ``(table, runs, tree)`` for gaps that end before step ``now``."""
        if self._count == 1 and self._single is not None:
            return self._single
        runs, (first, numbers) = self.runs, self._latest
        if not numbers:
            first, numbers = now, (1.0,) * len(self._rule.skipped)  # no gap: only the table's first column will be read
            runs = np.array([(first, *numbers)])
        # With one run, or long after the last change, the table no longer depends on now.
        settled = len(runs) == 1 or now - first >= TABLE_GAPS
        wanted = numbers if settled else (now, first, *numbers)
        if wanted != self._table_is_for:
            self._kernels.fill_table(now, self._table, runs)
            self._table_is_for = wanted
        arrays = self._table, runs, self._tree
        self._single = arrays if self._count == 1 else None  # one run answers at any time
        return arrays

    @property
    def unread(self) -> HistoryArrays:
        """Arrays for a launch in which no row is behind."""
        return self._table, self._runs[:1], self._tree

    @property
    def _kernels(self) -> Any:
        return kernels_of(self._rule)

    def _grow(self) -> None:
        capacity = 2 * len(self._runs)
        runs = self._runs
        self._runs = np.empty((capacity, runs.shape[1]))
        self._runs[: len(runs)] = runs
        self._tree = np.zeros((2 * capacity, self._factors))
        for run in range(len(runs) - 1):
            self._kernels.finish_run(run, int(runs[run + 1, 0]), runs, self._tree)
