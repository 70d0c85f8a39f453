"""The optimizer of one rank's rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray, Occupied
from ..files.safetensors_file import checksum
from ..gradients.kinds import Gradient, IndexedSlices
from ..kernels.norms import TERMS, row_squares
from ..mpi.coalescing import coalesced
from ..mpi.ranks import Ranks
from ..optimizer import RMSprop
from ..settings.step_numbers import StepRates
from ..state.slots import Slots
from ..stepping.small_batch import Part


class ShardOptimizer(RMSprop):
    """RMSprop for the rows of one rank; the clipping of norms asks all ranks."""

    def __init__(self, ranks: Ranks, **options: Any) -> None:
        self._ranks = ranks
        super().__init__(**options)

    @property
    def limits(self) -> tuple[float, ...]:
        """What else must be the same on all ranks: limits of norms, -1 for none."""
        return tuple(-1.0 if limit is None else limit for limit in (self.clipnorm, self.global_clipnorm))

    @property
    def occupied(self) -> Occupied:
        """The memory of the shard and its slots, which steps write."""
        return self._occupied

    def rates_of_step(self) -> StepRates:
        """Return the hyperparameters of the step to come."""
        return self._rates(self.iterations)

    def make_slots(self, shard: FloatArray) -> None:
        """Make all that a step writes, so that no rank finds out amid one that there is no room."""
        self.build([shard])
        self._slots[0].make_clocks()
        self._slots[0].seen()

    def check_arrays(self, *, steps: bool) -> None:
        """Raise ValueError if shard or slots were changed in place, or are read-only and are to be written."""
        slots = self._slots[0]
        slots.check_memory(written=steps or slots.has_rows_behind)

    def shared_state(self) -> str:
        """Return what is the same on all ranks after the same calls: steps, and those that rows may have missed."""
        slots = self._slots[0]
        return json.dumps([self.iterations, slots.steps, slots.floor, checksum(slots.history.runs)])

    def step(self, shard: FloatArray, rows: NDArray[np.int64], sums: FloatArray, rates: StepRates) -> int:
        """Take one step with gradients of these rows of the shard."""
        if self._clips_norms:
            rows, sums = coalesced(rows, sums)
        return self._take_step([(IndexedSlices(sums, rows), shard)], rates)

    def _check_values(self, gradient: Gradient, own: Slots) -> None:
        """Leave sums as they are: what ranks send was checked, and sums may overflow, as they may in one process."""

    def _check_read(self, gradient: Gradient, own: Slots) -> None:
        """Warn of nothing: what rows of other ranks are cannot be read but by gather."""

    def _scales(self, parts: list[Part], rates: StepRates) -> list[float]:
        """Return by what to scale the gradient so that its norm over all ranks is within the limit."""
        values = parts[0][0].values
        squares = np.empty(len(values))
        row_squares(values, rates.packed(values.dtype), np.empty((1, TERMS)), squares)
        norm = math.sqrt(exact_sum(self._ranks.tell_all(partial_sum(squares))))
        limit = self.global_clipnorm if self.clipnorm is None else self.clipnorm
        assert limit is not None
        return [1.0 if norm <= limit else limit / norm]


def partial_sum(terms: NDArray[np.float64]) -> Fraction | float:
    """Return a sum without rounding; NaN or infinity if a term is."""
    if not np.isfinite(terms).all():
        return float(np.sum(terms))
    mantissas, exponents = np.frexp(terms)
    whole = (mantissas * 2.0**53).astype(np.int64)
    total = 0
    for exponent in np.unique(exponents):
        # In two halves, so that no sum of 2³¹ of them passes 64 bits.
        of_one = whole[exponents == exponent]
        part = (int((of_one >> 27).sum()) << 27) + int((of_one & (2**27 - 1)).sum())
        total += part << (int(exponent) + 1100)
    return Fraction(total, 2 ** (1100 + 53))


def exact_sum(parts: Sequence[Fraction | float]) -> float:
    """Return the sum of what :func:`partial_sum` returned, rounded once.

    >>> exact_sum([partial_sum(np.array([1e16, 1.0])), partial_sum(np.array([1.0, -1e16]))])
    2.0
    """
    not_finite = [part for part in parts if isinstance(part, float)]
    if not_finite:
        return sum(not_finite)
    try:
        return float(sum(parts))
    except OverflowError:
        return math.inf
