"""Which keys of a table are dropped: those that no step has touched for long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_limits(max_age: Any, max_rows: Any) -> tuple[int | None, int | None]:
    """Return limits; raise ValueError unless they are whole numbers, or None."""
    for name, limit in (("max_age", max_age), ("max_rows", max_rows)):
        whole = isinstance(limit, (int, np.integer)) and not isinstance(limit, bool)
        if limit is not None and not (whole and limit >= 0):
            raise ValueError(f"{name}: expected a whole number, 0 or more, or None, got {limit!r:.100}")
    return None if max_age is None else int(max_age), None if max_rows is None else int(max_rows)


def too_old(touched: NDArray[np.int32], steps: int, max_age: int | None) -> NDArray[np.bool]:
    """Return which rows no step has touched for more than ``max_age`` steps; none where that is None."""
    if max_age is None:
        return np.zeros(len(touched), bool)
    return steps - touched.astype(np.int64) > max_age


def to_drop(
    touched: NDArray[np.int32], keys: NDArray[np.int64], steps: int, max_age: int | None, max_rows: int | None
) -> NDArray[np.bool]:
    """Return which keys go: those that are too old, then the oldest, and of equally old ones the smallest."""
    gone = too_old(touched, steps, max_age)
    left = np.flatnonzero(~gone)
    if max_rows is not None and len(left) > max_rows:
        gone[left[np.lexsort((keys[left], touched[left]))[: len(left) - max_rows]]] = True
    return gone
