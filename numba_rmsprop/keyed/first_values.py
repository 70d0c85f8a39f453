"""The first values of rows, which depend on their keys alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.variables import as_array
from ..state.initial_values import Uniform, check_initializer

FirstValues: TypeAlias = float | Callable[[NDArray[np.int64]], ArrayLike]
"""A number, or a function of keys that returns an array of shape (n, columns)."""


def values_of(initializer: FirstValues, keys: NDArray[np.int64], columns: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the first values of the rows of some keys, shape (n, columns); of none, without asking for them."""
    if not len(keys):
        return np.empty((0, columns), dtype)
    if not callable(initializer):
        return np.full((len(keys), columns), initializer, dtype)
    found = as_array(initializer(keys.copy()), "initializer")
    if found.shape != (len(keys), columns):
        raise ValueError(
            f"initializer: expected an array of shape {(len(keys), columns)} for as many keys, got {found.shape}"
        )
    return found.astype(dtype)


def described(initializer: FirstValues) -> NDArray[np.uint8]:
    """Return an initializer as bytes for a file; of a function, its name."""
    found: Any = initializer
    if isinstance(initializer, Uniform):
        numbers = float(initializer.low), float(initializer.high), int(initializer.columns), int(initializer.seed)
        found = {"uniform": numbers}
    elif callable(initializer):
        found = {"function": str(getattr(initializer, "__name__", type(initializer).__name__))}
    return np.frombuffer(json.dumps(found).encode(), np.uint8)


def restored(description: NDArray[Any], given: Any, columns: int) -> FirstValues:
    """Return the initializer that a file describes, or the one that is given in its place.

    Raises
    ------
    ValueError
        If it was a function, and none is given; or what the file says makes no sense.
    """
    if given is not None:
        return check_initializer(given)
    try:
        found = json.loads(bytes(description)) if description.dtype == np.uint8 else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, float) and math.isfinite(found):
        return found
    if isinstance(found, dict) and isinstance(found.get("function"), str):
        raise ValueError(
            f"initializer was the function {found['function']!r:.100}, which a file cannot hold; pass "
            "initializer=the function"
        )
    uniform = found.get("uniform") if isinstance(found, dict) else None
    if isinstance(uniform, list) and [type(number) for number in uniform] == [float, float, int, int]:
        low, high, width, seed = uniform
        if math.isfinite(low) and math.isfinite(high) and width == columns:
            return Uniform(low, high, width, seed)
    raise ValueError(f"initializer: expected a number or that of a table with {columns} columns, got {found!r:.100}")
