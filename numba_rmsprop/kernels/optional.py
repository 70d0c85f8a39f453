"""Elements of arrays that a variant may lack.

``None`` stands for an absent array, and for its elements. Numba drops a branch on ``argument is None`` while it
compiles, but only where it is an argument of the function at hand: hence these functions.
"""

from __future__ import annotations

from typing import Any

from .jit import Integer, compiled


@compiled
def load_item(array: Any, i: Integer) -> Any:
    """Return ``array[i]``."""
    return None if array is None else array[i]


@compiled
def store_item(array: Any, i: Integer, value: Any) -> None:
    """Write ``array[i]``."""
    if array is not None:
        array[i] = value


@compiled
def load_element(array: Any, row: Integer, j: Integer) -> Any:
    """Return ``array[row, j]``."""
    return None if array is None else array[row, j]


@compiled
def store_element(array: Any, row: Integer, j: Integer, value: Any) -> None:
    """Write ``array[row, j]``."""
    if array is not None:
        array[row, j] = value


@compiled
def line_of(array: Any, row: Integer) -> Any:
    """Return ``array[row]``, an array."""
    return None if array is None else array[row]
