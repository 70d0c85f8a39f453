"""The optimizer of one rank's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.variables import FloatArray, Occupied
from ..files.checkpoint import AnyPath
from ..files.safetensors_file import checksum
from ..gradients.coalescing import coalesce
from ..gradients.conversion import Gradient
from ..gradients.gradient import BaseGradient
from ..gradients.indexed_slices import IndexedSlices
from ..gradients.rows import Entries
from ..gradients.sparse_product import SparseProduct
from ..kernels.norms import TERMS, row_squares
from ..mpi.ranks import Ranks
from ..optimizer import RMSprop
from ..settings.form import Form
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots
from ..stepping.part import Part
from .exact_sum import exact_sum, partial_sum


class ShardOptimizer(RMSprop):
    """RMSprop for the rows of one rank, which clips by the norm over all ranks."""

    def __init__(self, ranks: Ranks, **options: Any) -> None:
        self._ranks = ranks
        _refuse_variable_options(options)
        if isinstance(options.get("row_norm"), Mapping):
            raise ValueError(
                f"row_norm: expected one norm for a table, which is one variable, got {options['row_norm']!r:.100}"
            )
        if options.get("gradient_accumulation_steps") is not None:
            raise ValueError(
                "gradient_accumulation_steps: expected None for a table, got "
                f"{options['gradient_accumulation_steps']!r:.100}; hand the rows and gradients of several batches to "
                "one call, divided by their number"
            )
        super().__init__(**options)

    @property
    def form(self) -> Form:
        """The form in which state is kept; random bits go by the rows of the whole table."""
        return super().form._replace(ranks=self._ranks.size, rank=self._ranks.rank)

    def _set_variable_options(self, name: str, value: Any) -> None:
        _refuse_variable_options({name: value})

    @property
    def limits(self) -> tuple[float, float]:
        """Limits of norms, -1 for none: all ranks must have the same."""
        clipnorm, global_clipnorm = self.clipnorm, self.global_clipnorm
        return -1.0 if clipnorm is None else clipnorm, -1.0 if global_clipnorm is None else global_clipnorm

    @property
    def occupied(self) -> Occupied:
        """The memory of the shard and its slots, which steps write."""
        return self.known.occupied

    def numbers_of_step(self) -> StepNumbers:
        """Return the hyperparameters of the step to come."""
        return self.numbers_at(self.iterations)

    def make_slots(self, shard: FloatArray) -> None:
        """Allocate all that a step writes, so that no rank runs out of memory in the middle of one."""
        self.build([shard])
        self.known.slots[0].make_clocks()
        self.known.slots[0].scratch.seen()

    def check_arrays(self, *, steps: bool) -> None:
        """Raise ValueError if shard or slots were moved in memory, or are read-only and about to be written."""
        slots = self.known.slots[0]
        slots.check_memory(written=steps or slots.has_rows_behind)

    def shared_state(self) -> str:
        """Return, as JSON, the numbers of steps and the runs of hyperparameters: the same on all ranks."""
        slots = self.known.slots[0]
        products = [slots.rho_product] if self.corrects_bias else []
        return json.dumps([self.iterations, slots.steps, slots.floor, checksum(slots.history.runs), *products])

    def save_shard(self, path: AnyPath) -> None:
        """Write the rows and their state to a file.

        Raises
        ------
        ValueError
            If slots or weights were added, which belong to no row.
        OSError
            If it cannot be written.
        """
        if self.get_slot_names() != list(self.slot_names) or self.own_weights:
            raise ValueError("expected a table's optimizer without slots or weights of your own; save them yourself")
        self.save(path, include_variables=True)

    def step(self, shard: FloatArray, entries: Entries, numbers: StepNumbers) -> int:
        """Take one step with gradients of rows of the shard."""
        rows, sums, sources, weights = entries
        if self.clips_norms:
            rows, sums = coalesce(entries)
        elif sources is not None:
            return self.take_step([(SparseProduct.from_entries(sums, rows, sources, weights), shard)], numbers)
        return self.take_step([(IndexedSlices(sums, rows), shard)], numbers)

    def check_gradient(self, gradient: Gradient, own: Slots) -> None:
        """Check nothing: each rank has checked its gradients, and other ranks read rows by gather alone."""

    def squares_of(self, parts: list[Part], numbers: StepNumbers) -> list[list[float]]:
        """Return the squared norm of the whole table's gradient."""
        gradient = parts[0][0]
        assert isinstance(gradient, BaseGradient)
        values = gradient.values
        squares = np.empty(len(values))
        row_squares(values, numbers.packed(values.dtype)[0], np.empty((1, TERMS)), squares)
        return [[exact_sum(self._ranks.all_gather(partial_sum(squares)[np.newaxis]))]]


def _refuse_variable_options(options: Mapping[str, Any]) -> None:
    for name in ("learning_rate_factors", "excluded_from_weight_decay"):
        if options.get(name):
            raise ValueError(
                f"{name}: expected None for a table, which is one variable, got {options[name]!r:.100}; set its "
                "learning_rate and weight_decay"
            )
