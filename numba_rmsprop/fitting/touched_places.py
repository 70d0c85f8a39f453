"""The elements of an array that were touched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class TouchedPlaces:
    """Places that were touched since :meth:`clear`; all of them once there are as many as elements.

    Examples
    --------
    >>> touched = TouchedPlaces(10)
    >>> touched.add(np.array([3, 1]))
    >>> touched.indices()
    array([3, 1])
    >>> touched.add(None)
    >>> touched.indices()
    slice(None, None, None)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[NDArray[np.int64]] | None = []
        self._count = 0

    def add(self, places: NDArray[np.int64] | None) -> None:
        """Add places; None adds all."""
        if self._parts is None:
            return
        if places is not None:
            self._parts.append(places)
            self._count += len(places)
        if places is None or self._count >= self._size:
            self._parts = None

    def indices(self) -> slice | NDArray[np.int64]:
        """Return an index of the touched elements."""
        if self._parts is None:
            return slice(None)
        if len(self._parts) == 1:
            return self._parts[0]
        return np.concatenate([np.empty(0, np.int64), *self._parts])

    def clear(self) -> None:
        """Forget all places."""
        self._parts, self._count = [], 0
