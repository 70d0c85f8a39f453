"""Rows that a step has written, scaled to norms within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_dtypes import finfo
from numpy.typing import NDArray

from ..arrays.storage import as_stored
from ..arrays.variables import FloatArray
from ..gradients.gradient import BaseGradient
from ..kernels.row_norms import bound_rows
from ..runtime.interrupts import Call
from ..runtime.launching import team_for
from ..settings.row_norms import Bounds
from ..state.slots import Slots


def add_bounds(
    calls: list[Call], gradient: Any, members: Iterable[Slots], bounds_of: Callable[[str], Bounds | None]
) -> bool:
    """Add what keeps the norms of the rows that a step writes within bounds; return whether it may compile.

    ``gradient`` is that of the one member, or stands for dense ones of all; ``bounds_of`` a name are those of a
    variable.
    """
    rows = None
    if isinstance(gradient, BaseGradient) and not gradient.touches_all:
        rows = gradient.rows_of()
    compiles = False
    for own in members:
        bounds = bounds_of(own.name)
        if bounds is None or own.var.ndim < 2 or not own.var.size:
            continue
        numbers = np.empty(0, own.dtype), *bounds, _spare(own)
        if own.table is None:  # strided and of three axes or more
            calls.append((_bound_strided, own.var, rows, numbers))
            compiles = True  # it is Python
            continue
        count = len(own.var) if rows is None else len(rows)
        calls.append((bound_rows, team_for(count * own.columns), rows, own.table[0], *numbers))
        compiles |= own.may_compile(calls, (bound_rows, rows is None))
    return compiles


def _spare(own: Slots) -> float:
    """Return by what share rounding may change a norm that was scaled: sums of few squares are added up in lanes."""
    return float(finfo(own.var.dtype).eps) * (8 if own.var.dtype == own.dtype else 2)  # type: ignore[no-untyped-call]


def _bound_strided(var: FloatArray, rows: NDArray[np.int64] | None, numbers: tuple[Any, ...]) -> None:
    """Scale rows of an array that has no view of shape (rows, columns)."""
    places: Any = ... if rows is None else np.unique(rows)
    copies = np.array(var[places], order="C")
    table = copies.reshape(len(copies), -1)
    bound_rows(team_for(0), None, as_stored(table), *numbers)
    var[places] = copies
