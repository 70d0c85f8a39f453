"""The variables of a call, remembered: nearly every call has the same ones as the one before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.noted_layouts import HEADER, as_layouts, kind_of
from ..arrays.variables import Occupied
from ..kernels.numpy_layout import LENGTHS, changes_of, collect_addresses
from ..state.slots import Slots
from .small_batch import Batch

PAIRS = frozenset([tuple, list])
NONE_SMALL = np.empty((0, 1), np.int64)


class Plan:
    """The variables of a call, and what takes their steps.

    Parameters
    ----------
    found : list of Slots
        The variables of the call, all registered, in its order.
    occupied : Occupied
        The memory of all variables and slots.
    kind : callable
        ``kind(own)`` returns what small variables have in common that are stepped together.
    """

    def __init__(self, found: list[Slots], occupied: Occupied, kind: Callable[[Slots], Any]) -> None:
        small = [own for own in found if own.small]
        dtype = small[0].dtype if small else np.dtype(np.float32)
        kinds: dict[Any, list[Slots]] = {}
        for own in small:
            if own.dtype == dtype:
                kinds.setdefault(kind(own), []).append(own)
        members = [own for group in kinds.values() for own in group]
        self.found = found
        self.batches = [Batch(group) for group in kinds.values()]
        self._addresses = np.concatenate([batch.addresses for batch in self.batches]) if members else None
        numbers = {own: number for number, own in enumerate(members)}
        self.rest = [(k, own) for k, own in enumerate(found) if own not in numbers]
        known = np.zeros((len(found), LENGTHS + max(own.var.ndim for own in found)), np.int64)
        for k, own in enumerate(found):
            var = own.var
            known[k, : LENGTHS + var.ndim] = id(var), var.nbytes, numbers.get(own, -1), var.ndim, *var.shape
        self._clocks = [own.clocks for own in found]  # held, since slots may exchange them
        self._layouts = as_layouts(row for own in found for row in own.layouts.table.tolist())
        self._mapped = [mapped for own in found for mapped in own.layouts.mapped]
        self._expected = known, self._layouts, occupied.array, HEADER, id(np.ndarray), kind_of(dtype)
        # Compiled now and not at the second step.
        if self._addresses is None:
            changes_of(self._layouts, HEADER)
        else:
            collect_addresses(np.empty(0, np.int64), known[:0], *self._expected[1:], self._addresses)

    def addresses_in(self, pairs: list[Any]) -> NDArray[np.int64] | None:
        """Return the addresses of small variables and their gradients in a call.

        None, if the call has not these variables, unchanged, or a small one has a gradient that a batch cannot read.
        """
        if len(pairs) != len(self.found):
            return None
        if self._addresses is None:
            return NONE_SMALL if self._fits_without_batch(pairs) else None
        try:
            # Any other kind of pair may make its gradient when it is asked, and nobody would hold it.
            if not PAIRS.issuperset(map(type, pairs)) or set(map(len, pairs)) != {2}:
                return None
            if any(pairs[k][0] is None for k, _ in self.rest) or not self._mapped_files_hold():
                return None
            objects = np.fromiter(map(id, chain.from_iterable(pairs)), np.int64, 2 * len(pairs))
        except (KeyError, TypeError):  # something is no pair
            return None
        addresses = self._addresses.copy()
        return addresses if collect_addresses(objects, *self._expected, addresses) else None

    def _fits_without_batch(self, pairs: list[Any]) -> bool:
        """Return whether a call has these variables, none of which is small, unchanged."""
        for k, own in enumerate(self.found):
            pair = pairs[k]
            if type(pair) not in PAIRS or len(pair) != 2 or pair[1] is not own.var or pair[0] is None:
                return False
        return (not self._mapped or self._mapped_files_hold()) and changes_of(self._layouts, HEADER) == 0

    def _mapped_files_hold(self) -> bool:
        return all(mapped.holds for mapped in self._mapped)
