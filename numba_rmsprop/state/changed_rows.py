"""The rows of a variable that have changed since it was last saved, as its clocks tell."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLOCKS_AT_A_TIME = 1 << 20
"""Clocks that are compared at once, for a scratch of a megabyte."""

MAX_FLUSHES = 64
"""After so many flushes since the last save, writing all rows beats repeating the flushes when loading."""


@dataclass(frozen=True)
class Saved:
    """An optimizer's last file, from which deltas go on, and the paths of those that it goes on from itself.

    ``run`` is what the files of one training have in common, over all its restarts; "" in files that do not say so.
    """

    identity: str
    include_variables: bool
    paths: tuple[str, ...]
    run: str = ""


class Changes:
    """The changes of a variable since it was last saved.

    A step or a gather sets the clock of each row it writes, so such rows need no list. A flush moves every clock; so
    the rows that had changed before it are listed then, and the flush itself is noted, to be repeated when loading.

    Attributes
    ----------
    everything : bool
        Whether any row may have changed, so that all must be written.
    flushes : list of (int, ndarray)
        For each flush, before which step it came, and the runs of hyperparameters (see
        :mod:`numba_rmsprop.kernels.skip_factors`) that it went by.
    """

    def __init__(self) -> None:
        self.everything = True
        self.flushes: list[tuple[int, NDArray[np.float64]]] = []
        self._since = 0
        self._current: NDArray[np.uint8] | None = None
        self._before_flushes = np.empty(0, np.int64)
        self._noted: tuple[NDArray[np.int64], ...] = ()

    @classmethod
    def since(cls, clocks: NDArray[np.int32] | None, floor: int, steps: int) -> Changes:
        """Return none at all, where everything is saved before step ``steps``."""
        none = cls()
        none.everything = False
        none._since = steps
        if clocks is not None and floor != steps:
            # A row that is caught up by a gather, without a step, also gets the clock ``steps``.
            none._current = np.concatenate(
                [np.packbits(block == steps, bitorder="little") for _, block in _blocks(clocks)]
            )
        return none

    def after_flush(self, clocks: NDArray[np.int32], steps: int, runs: NDArray[np.float64]) -> Changes:
        """Return what these are once all rows have been caught up with the steps before step ``steps``."""
        after = Changes()
        if not self.everything and len(self.flushes) < MAX_FLUSHES:
            after.everything = False
            after.flushes = [*self.flushes, (steps, runs.copy())]
            after._before_flushes = self.rows(clocks)
            after._since = steps
        return after

    def with_rows(self, rows: NDArray[np.int64]) -> Changes:
        """Return these changes and some rows, which no clock tells of."""
        if self.everything:
            return self
        more, noted = copy(self), list(self._noted)
        while noted and len(noted[-1]) <= len(rows):  # few lists, of which each row is in few one after the other
            rows = np.union1d(noted.pop(), rows)
        more._noted = (*noted, rows)
        return more

    def rows(self, clocks: NDArray[np.int32] | None) -> NDArray[np.int64]:
        """Return the rows that a step or a gather has written, in order."""
        if clocks is None:
            return np.unique(np.concatenate([self._before_flushes, *self._noted]))
        found = [self._before_flushes, *self._noted]
        for begin, block in _blocks(clocks):
            changed = block > self._since
            if self._current is not None:
                current = np.unpackbits(self._current[begin // 8 :], count=len(block), bitorder="little")
                changed |= (block == self._since) & (current == 0)
            found.append(begin + np.flatnonzero(changed))
        return np.unique(np.concatenate(found))


def _blocks(clocks: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int32]]]:
    for begin in range(0, max(len(clocks), 1), CLOCKS_AT_A_TIME):
        yield begin, clocks[begin : begin + CLOCKS_AT_A_TIME]
