"""Variables that are views of a program's own array, kept so where both are copied or unpickled together.

Copies and pickles make of each view an array of its own. So what it is a view of goes along: copied or unpickled
together with the program's, it is one array with that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .holders import OF_A_CALL, Holders, references
from .slots import Slots
from .variables import FloatArray

View: TypeAlias = tuple[Slots, NDArray[np.generic], int, tuple[int, ...]]
"""A variable, what it is a view of, how many bytes from its beginning, and the strides."""


def views_of(slots: Iterable[Slots]) -> list[View]:
    """Return where variables lie in the arrays that they are views of."""
    found: list[View] = []
    for own in slots:
        base = own.var.base
        if type(base) is np.ndarray and base.base is None and base.flags.forc and not base.dtype.hasobject:
            found.append((own, base, own.var.ctypes.data - base.ctypes.data, own.var.strides))
    return found


def where_they_belong(views: list[View], slots: Iterable[Slots]) -> Iterator[tuple[Slots, FloatArray]]:
    """Return those variables that only the optimizer holds, while the program holds what they were views of."""
    holders, ours = Holders(slots), Counter(id(view[1]) for view in views)
    moves = [
        not holders.someone_holds(view[0]) and references(view[1]) - OF_A_CALL > ours[id(view[1])] for view in views
    ]
    for k, moved in enumerate(moves):
        if moved:
            own, base, offset, strides = views[k]
            memory = base if base.flags.c_contiguous else base.T
            yield own, np.ndarray(own.shape, own.dtype, memory, offset, strides)
