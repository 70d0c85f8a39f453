"""Address space for the rows of a table that are still to come, so that it can grow where it lies."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..state.row_moves import Moved
from ..state.slots import Slots

MOST_ROWS = 2**31 - 1
BYTES_BESIDE = 24
"""The bytes of a row's key, of its clocks and of its places in the map."""


def memory_size() -> int:
    """Return how many bytes of memory the machine has; a guess where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 33


class Reserve:
    """Arrays of zeros for more rows than a table has: pages that nobody touches take no memory.

    Parameters
    ----------
    own : Slots
        The table, whose arrays go on here.
    rows : int
        For how many rows there is room.

    Raises
    ------
    MemoryError
        If the system gives no address space that it has no memory for.
    """

    def __init__(self, own: Slots, rows: int) -> None:
        self.rows = rows
        self._var = self._room(own.var)
        self._slots = {slot: self._room(array) for slot, array in own.slots.items()}
        self._clocks = np.zeros(rows, np.int32)
        self._copy(own)

    def _room(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.zeros((self.rows, *array.shape[1:]), array.dtype)

    def _copy(self, own: Slots) -> None:
        count = len(own.var)
        self._var[:count] = own.var
        for slot, array in own.slots.items():
            self._slots[slot][:count] = array
        self._clocks[:count] = own.row_clocks()

    def first(self, rows: int, own: Slots) -> Moved:
        """Return longer views of the arrays, of so many rows."""
        if own.clocks is None or not np.may_share_memory(own.clocks, self._clocks):  # they began anew elsewhere
            self._clocks[: len(own.var)] = own.row_clocks()
        slots = {slot: array[:rows] for slot, array in self._slots.items()}
        return Moved(self._var[:rows], slots, self._clocks[:rows], own.custom)


def rows_that_fit(own: Slots) -> int:
    """Return how many rows of a table fit into the memory of the machine."""
    arrays = [own.var, *own.slots.values()]
    bytes_each = sum(array.itemsize * int(np.prod(array.shape[1:])) for array in arrays)
    return max(len(own.var), min(MOST_ROWS, memory_size() // (bytes_each + BYTES_BESIDE)))
