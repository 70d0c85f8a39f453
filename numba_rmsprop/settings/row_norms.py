"""The setting ``row_norm``: between what bounds the norms of the rows of a variable are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from ..arrays.real_numbers import as_float

RowNorm: TypeAlias = float | str
"""The largest norm of a row, or "unit"."""

Bounds: TypeAlias = tuple[float, float]
"""The least and the largest norm."""


def check_row_norm(value: Any) -> RowNorm | dict[str, RowNorm] | None:
    """Return ``row_norm``; raise unless it is None, "unit", a number above 0, or a mapping of names to these."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"row_norm: expected a mapping of names of variables to norms, got {value!r:.100}")
        return {name: _check(f"row_norm[{name!r}]", norm) for name, norm in value.items()}
    return None if value is None else _check("row_norm", value)


def _check(name: str, value: Any) -> RowNorm:
    if isinstance(value, str):
        if value != "unit":
            raise ValueError(f"{name}: expected 'unit' or the largest norm of a row, got {value!r:.100}")
        return value
    number = as_float(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected 'unit' or a finite number above 0, got {number!r}")
    return number


def check_with_others(value: Any, *, exact: bool, momentum: bool, overwrites: bool, weight_decay: float) -> None:
    """Raise ValueError if rows that a step leaves out would have to be scaled at each step.

    In exact mode, what such a row misses is a linear map, and to scale it to a norm is none.
    """
    if value is None or not exact:
        return
    norms = value.values() if isinstance(value, Mapping) else [value]
    moves = "momentum" if momentum else "ema_overwrite_frequency" if overwrites else ""
    if not moves and weight_decay > 0 and "unit" in norms:
        moves = "weight_decay"
    if moves:
        raise ValueError(
            f"row_norm: expected None with {moves} in exact mode, got {value!r:.100}: rows that a step leaves out move "
            f"too, and would have to be scaled each time. Leave {moves} out, or give sparse_update='lazy'"
        )


def bounds_of(value: Any, name: str) -> Bounds | None:
    """Return the bounds of a variable of this name."""
    norm = value.get(name) if isinstance(value, Mapping) else value
    if norm is None:
        return None
    return (1.0, 1.0) if norm == "unit" else (0.0, norm)
