"""What a call comes to that has the same variables as the one before, which is to say nearly every call."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from ..arrays.noted_layouts import HEADER, as_layouts, kind_of
from ..arrays.variables import Occupied
from ..kernels.numpy_layout import LENGTHS, changes_of, collect_addresses
from ..state.slots import Slots
from .small_batch import Batch

PAIRS = frozenset([tuple, list])


class Plan:
    """The variables of a call, and what takes their steps.

    Parameters
    ----------
    found : list of Slots
        The variables of the call, all registered, in its order.
    occupied : Occupied
        The memory of all variables and slots.
    """

    def __init__(self, found: list[Slots], occupied: Occupied) -> None:
        dtype = next((own.dtype for own in found if own.small), np.dtype(np.float32))
        members = [own for own in found if own.small and own.dtype == dtype]
        self.found = found
        self.batch = Batch(members) if members else None
        numbers = {own: number for number, own in enumerate(members)}
        self.rest = [(k, own) for k, own in enumerate(found) if own not in numbers]
        known = np.zeros((len(found), LENGTHS + max(own.var.ndim for own in found)), np.int64)
        for k, own in enumerate(found):
            var = own.var
            known[k, : LENGTHS + var.ndim] = id(var), var.nbytes, numbers.get(own, -1), var.ndim, *var.shape
        addresses = np.empty((0, 5), np.int64) if self.batch is None else self.batch.addresses
        self._clocks = [own.clocks for own in found]  # held, since slots may exchange them
        self._layouts = as_layouts(row for own in found for row in own.layouts.table.tolist())
        self._mapped = [mapped for own in found for mapped in own.layouts.mapped]
        self._expected = known, self._layouts, occupied.array, HEADER, id(np.ndarray), kind_of(dtype), addresses

    def fits(self, pairs: list[Any]) -> bool:
        """Return whether a call has these variables, unchanged, and for small ones gradients that a batch can read.

        The batch then knows where they are.
        """
        n = len(self.found)
        if len(pairs) != n:
            return False
        if n == 1 and self.batch is None:
            return self._fits_alone(pairs[0])
        try:
            # Any other kind of pair may make its gradient when it is asked, and nobody would hold it.
            if not PAIRS.issuperset(map(type, pairs)) or set(map(len, pairs)) != {2}:
                return False
            if any(pairs[k][0] is None for k, _ in self.rest) or not all(mapped.holds for mapped in self._mapped):
                return False
            objects = np.fromiter(map(id, chain.from_iterable(pairs)), np.int64, 2 * n)
        except (KeyError, TypeError):  # something is no pair
            return False
        return bool(collect_addresses(objects, *self._expected))

    def _fits_alone(self, pair: Any) -> bool:
        """Return the same for a call with one variable that is not small, such as a table."""
        own = self.found[0]
        return (
            type(pair) is tuple
            and len(pair) == 2
            and pair[1] is own.var
            and pair[0] is not None
            and (not self._mapped or all(mapped.holds for mapped in self._mapped))
            and changes_of(self._layouts, HEADER) == 0
        )
