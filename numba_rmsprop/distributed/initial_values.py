"""First values of the rows of a shard, which depend on the row and not on the rank that owns it."""

from __future__ import annotations

from ..arrays.variables import FloatArray, as_array
from ..state.initial_values import Values
from .row_layout import Layout

ITEMS_AT_A_TIME = 1 << 20
"""Elements of a shard that a callable is asked for at once."""


def fill_shard(shard: FloatArray, layout: Layout, rank: int, initializer: Values) -> None:
    """Write the first values of a rank's rows; raise ValueError if a callable returns another shape than theirs."""
    if not callable(initializer):
        shard[...] = initializer
        return
    at_once = max(1, ITEMS_AT_A_TIME // max(1, shard.shape[1]))
    for begin in range(0, len(shard), at_once):
        rows = layout.rows_of(rank, begin, min(begin + at_once, len(shard)))
        values = as_array(initializer(rows), "initializer")
        if values.shape != (len(rows), shard.shape[1]):
            raise ValueError(
                f"initializer: expected an array of shape {(len(rows), shard.shape[1])} for as many rows, "
                f"got {values.shape}"
            )
        shard[begin : begin + len(rows)] = values
