"""Variables that are views of a program's own array, kept so where both are copied or unpickled together.

Copies and pickles make of each view an array of its own. So what it is a view of goes along: copied or unpickled
together with the program's, it is one array with that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from .holders import OF_A_CALL, Holders, references
from .registry import Registry
from .slots import Slots

View: TypeAlias = tuple[Slots, NDArray[np.generic], int, tuple[int, ...]]
"""A variable, what it is a view of, how many bytes from its beginning, and the strides."""


def views_of(slots: Iterable[Slots]) -> list[View]:
    """Return where variables lie in the arrays that they are views of."""
    found: list[View] = []
    for own in slots:
        base = own.var.base if own.part_of is None else own.part_of()
        if type(base) is np.ndarray and (base.base is None or own.part_of is not None) and base.flags.forc:
            found.append((own, base, own.var.ctypes.data - base.ctypes.data, own.var.strides))
    return found


def settle(views: list[View], registry: Registry) -> None:
    """Move those variables that only the optimizer holds, while the program holds what they were views of."""
    holders, ours = Holders(registry.slots), Counter(id(view[1]) for view in views)
    moves = [
        not holders.someone_holds(view[0]) and references(view[1]) - OF_A_CALL > ours[id(view[1])] for view in views
    ]
    for moved, (own, base, offset, strides) in zip(moves, views, strict=True):
        if moved:
            memory = base if base.flags.c_contiguous else base.T
            registry.move(own, np.ndarray(own.shape, own.dtype, memory, offset, strides))
            own.part_of = ref(base)  # an unpickled array may itself be a view, of a buffer
            registry.unclaimed.add(own)
