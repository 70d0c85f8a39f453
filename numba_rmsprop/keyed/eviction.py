"""Which keys of a table are dropped: those that no step has touched for long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Age = tuple[int, int]
"""After which step a row was touched last, and its key: rows go in this order."""


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


def go_before(touched: NDArray[np.int32], keys: NDArray[np.int64], last: Age) -> NDArray[np.bool]:
    """Return which rows go before one of this age, and that one: the oldest, of equally old ones the smallest keys."""
    step, key = last
    before: NDArray[np.bool] = (touched < step) | ((touched == step) & (keys <= key))
    return before


def oldest(touched: NDArray[np.int32], keys: NDArray[np.int64], count: int) -> Age:
    """Return the last of so many rows, at least one, that go first."""
    step = np.partition(touched, count - 1)[count - 1]
    ties = keys[touched == step]
    place = count - 1 - np.count_nonzero(touched < step)
    return int(step), int(np.partition(ties, place)[place])
