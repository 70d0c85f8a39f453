"""Rows by keys of 64 bits, and when each was touched."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from ..kernels.key_map import EMPTY, KEPT, enter_keys, find_keys, remove_keys
from ..runtime.launching import team_for
from .saved_keys import SavedKeys

LEAST_PLACES = 64

LAST_STEP = np.iinfo(np.int32).max
"""What is touched later counts as touched then."""

WORK = 16
"""To look up a key is as much work as so many elements of a step."""


class KeyMap:
    """Rows by keys: the first key that comes gets row 0, and rows of keys that were removed are given first.

    The caller holds the lock of all launches.

    Which row a key gets depends on the order of the keys alone. A row takes 8 bytes for its key, 4 for when it was
    touched, and 4 for each place, of which there are 1.5 to 3 to a row; a free row takes 8 more.

    Attributes
    ----------
    row_keys : ndarray of int64
        The key of each row.
    touched : ndarray of int32
        After how many steps of the table each row was touched last. Row clocks do not tell: a flush moves all.
    counts : ndarray of int64, shape (3,)
        How many rows were ever given, how many of them are free again, and how many the latest call gave.
    steps : int
        How many steps the table has taken.
    least_free : int
        How many rows of :attr:`free` have stayed where they were since this was set, at least.
    version : int
        A number that is another one whenever keys have come or gone.
    """

    def __init__(self) -> None:
        self.row_keys = np.empty(LEAST_PLACES // 2, np.int64)
        self.touched = np.empty(LEAST_PLACES // 2, np.int32)
        self.counts = np.zeros(3, np.int64)
        self.steps = self.least_free = self.version = 0
        self._free = np.empty(0, np.int64)
        self._make_places(LEAST_PLACES)

    def __len__(self) -> int:
        return int(self.counts[0] - self.counts[1])

    @property
    def free(self) -> NDArray[np.int64]:
        """Rows whose keys were removed."""
        return self._free[: self.counts[1]]

    def rows_in_use(self) -> NDArray[np.int64]:
        """Return the rows that have a key, in order."""
        in_use = np.ones(int(self.counts[0]), bool)
        in_use[self.free] = False
        return np.flatnonzero(in_use)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each key, -1 for those without one."""
        rows, team = np.empty(len(keys), np.int64), team_for(WORK * len(keys))
        homes = np.empty((team[0], KEPT + 1), np.int64)
        find_keys(team, keys, self._places, self.row_keys, self._seed, homes, rows)
        return rows

    def enter(self, keys: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give rows to keys without one, where ``rows`` is what :meth:`find` returned; return the rows that are new."""
        missing = int((rows < 0).sum())
        self.version += 1
        fresh = np.empty(missing, np.int64)
        self._make_room(missing)
        self.counts[2] = begin = 0
        while begin < len(keys):
            common = keys, rows, fresh, self.counts, self._free, self._places, self.row_keys, self._seed
            begin = int(enter_keys(begin, *common))
            if begin < len(keys):  # keys that lie too close, by chance or by intent: another seed, and more places
                self._make_places(2 * len(self._places))
        self.least_free = min(self.least_free, int(self.counts[1]))
        fresh = fresh[: self.counts[2]]
        self.touch(fresh)
        return fresh

    def touch(self, rows: NDArray[np.int64]) -> None:
        """Note that rows are touched now."""
        self.touched[rows] = min(self.steps, LAST_STEP)

    def undo(self, fresh: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Take back the rows of the latest call of :meth:`enter`, before which ``counts`` were these."""
        self._remove(fresh)
        self.counts[:] = counts

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Remove the keys of different rows that are in use."""
        self._remove(rows)
        self._free = np.concatenate([self.free, rows])
        self.counts[1] = len(self._free)
        if 4 * self._gone > len(self._places):  # searches pass over them
            self._make_places(len(self._places))

    def _remove(self, rows: NDArray[np.int64]) -> None:
        self.version += 1
        remove_keys(self.row_keys[rows], self._places, self.row_keys, self._seed)
        self._gone += len(rows)

    def restore(self, saved: SavedKeys) -> None:
        """Take over what a file says."""
        self.counts[:] = len(saved.keys), len(saved.free), 0
        self.row_keys, self.touched = np.array(saved.keys), np.array(saved.touched)
        self.steps, self.least_free = saved.steps, len(saved.free)
        self._free = np.array(saved.free)
        self._make_places(LEAST_PLACES)
        self._make_room(0)

    def reserve(self, rows: int) -> None:
        """Take address space for as many rows: pages that nobody touches take no memory."""
        given = int(self.counts[0])
        for name in ("row_keys", "touched"):
            before = getattr(self, name)
            larger = np.empty(max(rows, given), before.dtype)
            larger[:given] = before[:given]
            setattr(self, name, larger)

    def _make_room(self, more: int) -> None:
        needed = int(self.counts[0]) + more
        if needed > len(self.row_keys):
            self.reserve(max(needed, len(self.row_keys) + len(self.row_keys) // 2))
        places = len(self._places)
        while 3 * (len(self) + more) > 2 * places:
            places *= 2
        if places > len(self._places):
            self._make_places(places)

    def _make_places(self, places: int) -> None:
        """Enter all keys into a new map, with as many places or, if some find none, with more."""
        in_use = self.rows_in_use()
        keys = self.row_keys[in_use]
        while True:
            self._places = np.full(places, EMPTY, np.int32)
            self._seed, self._gone = secrets.randbits(62), 0
            # The rows that they have, last in, first out.
            counts, free = np.array([self.counts[0], len(in_use), 0]), in_use[::-1].copy()
            rows, fresh = np.full(len(keys), -1), np.empty(len(keys), np.int64)
            entered = enter_keys(0, keys, rows, fresh, counts, free, self._places, self.row_keys, self._seed)
            if entered == len(keys):
                return
            places *= 2
