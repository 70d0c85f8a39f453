"""Variables that are views of a larger array: they stay so when both are copied or pickled together.

Copying or pickling turns each view into an array of its own. So an optimizer's pickle holds the larger array, too.
If the program pickles that array together with the optimizer, both come back as one, and the variables are made views
of it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from .reference_counts import ReferenceCounts, references
from .slots import Slots
from .variables_by_memory import Registry

View: TypeAlias = tuple[Slots, NDArray[np.generic], int, tuple[int, ...]]
"""A variable, the array that it is a view of, its offset there in bytes, and its strides."""


def views_of(slots: Iterable[Slots]) -> list[View]:
    """Return the place of each variable in the array that it is a view of, if it is one."""
    found: list[View] = []
    for own in slots:
        base = own.var.base if own.part_of is None else own.part_of()
        if type(base) is np.ndarray and (base.base is None or own.part_of is not None) and base.flags.forc:
            found.append((own, base, own.var.ctypes.data - base.ctypes.data, own.var.strides))
    return found


def settle(views: list[View], registry: Registry) -> None:
    """Make variables views again if the program holds the array that they were views of, and does not hold them."""
    counts, ours = ReferenceCounts(registry.slots), Counter(id(view[1]) for view in views)
    moves = [not counts.held_elsewhere(view[0]) and references(view[1]) > ours[id(view[1])] for view in views]
    for moved, (own, base, offset, strides) in zip(moves, views, strict=True):
        if moved:
            memory = base if base.flags.c_contiguous else base.T
            view = np.ndarray(own.shape, own.var.dtype, memory, offset, strides)
            registry.move(own, own.rebind, view)
            own.part_of = ref(base)  # an unpickled array may itself be a view, of a buffer
            registry.unclaimed.add(own)
