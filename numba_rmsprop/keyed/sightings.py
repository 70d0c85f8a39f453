"""Keys that have been seen too rarely for a row of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.sightings import DEPTH, MOST, count_sightings
from ..runtime.whole_calls import in_turn

WIDTH = 1 << 20
"""Counters in a line: 4 MB in all, which tell a million rare keys apart."""

HALVED_AFTER = 4 * WIDTH
"""After so many sightings all counts are halved, as in TinyLFU, so that a long stream does not fill them."""


class Sightings:
    """Counts of keys without a row, and from which sighting on they get one.

    Attributes
    ----------
    least : int
        That sighting.
    counters : ndarray of uint8
        See :mod:`numba_rmsprop.kernels.sightings`.
    counted : int
        How many sightings were counted since counts were halved.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self.counters = np.zeros((DEPTH, WIDTH), np.uint8)  # pages that nobody touches take no memory
        self.counted = 0
        self._latest = np.empty((0, DEPTH), np.int32), 0

    def admit(self, keys: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool]:
        """Count the keys without a row, and return which entries have one, or are to get one."""
        admitted, raised = np.empty(len(keys), bool), np.empty((len(keys), DEPTH), np.int32)
        counted = int(in_turn(count_sightings, keys, rows, self.counters, self.least, admitted, raised))
        self.counted += counted
        self._latest = raised, counted
        return admitted

    def undo(self) -> None:
        """Take back the latest counts."""
        raised, counted = self._latest
        np.subtract.at(self.counters.reshape(-1), raised[raised >= 0], 1)
        self.counted -= counted
        self.settle()

    def settle(self) -> None:
        """Note that the latest counts stay, and halve all where there are many."""
        self._latest = self._latest[0][:0], 0
        if self.counted >= HALVED_AFTER:
            self.counters >>= 1
            self.counted = 0


def check_admission(admit_after: Any) -> int:
    """Return ``admit_after``; raise ValueError unless it is a whole number from 1 to ``MOST``."""
    whole = isinstance(admit_after, (int, np.integer)) and not isinstance(admit_after, bool)
    if not (whole and 1 <= admit_after <= MOST):
        raise ValueError(f"admit_after: expected a whole number from 1 to {MOST}, got {admit_after!r:.100}")
    return int(admit_after)


def restored_sightings(admission: NDArray[Any], counters: NDArray[Any]) -> Sightings:
    """Return what a file says of sightings; raise ValueError if it makes no sense."""
    if admission.shape != (2,) or admission.dtype != np.int64 or not admission[1] >= 0:
        raise ValueError(f"admission: expected two whole numbers, got {admission.tolist()!r:.100}")
    made = Sightings(check_admission(int(admission[0])))
    made.counted = int(admission[1])
    if made.least > 1:
        if counters.dtype != np.uint8 or counters.shape != made.counters.shape:
            raise ValueError(f"sightings: expected shape {made.counters.shape} (uint8), got {counters.shape}")
        made.counters[...] = counters
    return made
