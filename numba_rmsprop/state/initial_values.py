"""First values of rows, which depend on their numbers or keys alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.real_numbers import as_float
from ..arrays.variables import as_array
from ..kernels.row_dealing import uniform_rows

Values: TypeAlias = float | Callable[[NDArray[np.int64]], ArrayLike]
Initializer: TypeAlias = Values | str

FILLS = {"zeros": 0.0, "ones": 1.0}


@dataclass(frozen=True)
class Uniform:
    """Random numbers from ``low`` to ``high``, the same for each row on any number of ranks.

    Parameters
    ----------
    low, high : float
        The bounds.
    columns : int
        Numbers for each row.
    seed : int, default 0
        From 0 to 2³² - 1; another seed gives other numbers.

    Examples
    --------
    >>> draw = Uniform(-1.0, 1.0, columns=2, seed=1)
    >>> bool((draw(np.array([7, 3]))[1] == draw(np.array([3]))[0]).all())
    True
    """

    low: float
    high: float
    columns: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"expected low <= high, got {self.low} and {self.high}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, got {self.seed}")

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the numbers of some rows, shape (len(indices), columns)."""
        rows = as_array(indices, "indices")
        if rows.ndim != 1:
            raise ValueError(f"indices: expected shape (n,), got {rows.shape}")
        if rows.size and rows.dtype.kind not in "iu":
            raise TypeError(f"indices: expected integers, got {rows.dtype}")
        rows = rows.astype(np.int64)
        out = np.empty((len(rows), self.columns))
        uniform_rows(rows, self.seed, float(self.low), float(self.high) - self.low, out)
        return out


def check_initializer(initializer: Any) -> Values:
    """Return an initializer as a number or callable; raise ValueError or TypeError if it is none."""
    if callable(initializer):
        return initializer  # type: ignore[no-any-return]
    if isinstance(initializer, str):
        if initializer not in FILLS:
            raise ValueError(f"initializer: expected one of {list(FILLS)}, a number or a callable, got {initializer!r}")
        return FILLS[initializer]
    return as_float("initializer", initializer)
