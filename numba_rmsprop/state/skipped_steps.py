"""The hyperparameters of the steps that rows may have missed."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..kernels.rule import Factors
from ..kernels.skip_factors import TABLE_GAPS, fill_table, finish_run
from ..runtime.interrupts import Call, call_in_one_go

Arrays: TypeAlias = tuple[NDArray[np.floating], NDArray[np.float64], NDArray[np.float64]]

FACTORS = len(Factors._fields)
RUN_ITEMS = 5
"""The first step of a run, and its numbers."""
RUNS_AT_START = 16
MAX_RUNS = 65_536
"""Where the numbers change at every step, a variable is flushed after this many, which bounds the log to 7 MB."""


class History:
    """Runs of equal (rho, momentum, shrink, outer rate), from which kernels take the factors of a gap.

    See :mod:`numba_rmsprop.kernels.skip_factors` for the arrays.

    Parameters
    ----------
    dtype : numpy dtype
        The variable's; the table of common gaps is rounded to it.
    """

    def __init__(self, dtype: np.dtype[np.floating]) -> None:
        self._table = np.empty((FACTORS, TABLE_GAPS), dtype)
        self._runs = np.empty((RUNS_AT_START, RUN_ITEMS))
        self._tree = np.zeros((2 * RUNS_AT_START, FACTORS))
        self._count = 0
        self._latest: tuple[float, ...] = ()
        self._table_is_for: tuple[float, ...] | None = None
        self._single: Arrays | None = None

    @property
    def has_momentum(self) -> bool:
        """Whether a row may have missed a step at which its momentum was at work."""
        return bool((self.runs[:, 2] != 1).any() or (self.runs[:, 4] != 0).any())

    @property
    def full(self) -> bool:
        """Whether the variable should be flushed before another step is noted."""
        return self._count >= MAX_RUNS - 1

    @property
    def runs(self) -> NDArray[np.float64]:
        """Rows of (first step, rho, momentum, shrink, outer rate), in order."""
        return self._runs[: self._count]

    def to_note(self, step: int, numbers: tuple[float, ...]) -> list[Call]:
        """Return what notes the numbers of step ``step``, as :attr:`StepRates.when_skipped` gives them."""
        if self._latest[1:] == numbers:
            return []
        count, latest = self._count, (step, *numbers)
        if count == len(self._runs):
            self._grow()
        # Behind the runs that count, so nobody reads it yet.
        self._runs[count] = latest
        if count:
            finish_run(count - 1, step, self._runs, self._tree)
        return [(setattr, self, "_latest", latest), (setattr, self, "_count", count + 1)]

    def note_runs(self, runs: NDArray[np.float64]) -> None:
        """Record runs as :attr:`runs` gave them."""
        for step, *numbers in runs.tolist():
            call_in_one_go(self.to_note(int(step), tuple(numbers)))

    def arrays(self, now: int) -> Arrays:
        """Return ``(table, runs, tree)`` for gaps that end before step ``now``."""
        if self._count == 1 and self._single is not None:
            return self._single
        runs, latest = self.runs, self._latest
        if not latest:
            latest = (now, 1.0, 1.0, 1.0, 1.0)  # no gap: only the table's first column will be read
            runs = np.array([latest])
        # With one run, or long after the last change, the table no longer depends on now.
        settled = len(runs) == 1 or now - latest[0] >= TABLE_GAPS
        wanted = latest[1:] if settled else (now, *latest)
        if wanted != self._table_is_for:
            fill_table(now, self._table, runs)
            self._table_is_for = wanted
        arrays = self._table, runs, self._tree
        self._single = arrays if self._count == 1 else None  # one run answers at any time
        return arrays

    def _grow(self) -> None:
        capacity = 2 * len(self._runs)
        runs = self._runs
        self._runs = np.empty((capacity, RUN_ITEMS))
        self._runs[: len(runs)] = runs
        self._tree = np.zeros((2 * capacity, FACTORS))
        for run in range(len(runs) - 1):
            finish_run(run, int(runs[run + 1, 0]), runs, self._tree)
