"""Reference counts, which tell whether the program still holds a variable of its optimizer.

Python counts the references to each object. An optimizer knows its own: its slots hold the variable, and each view
holds the array that it is a view of. Any others are the program's. A debugger or a forgotten frame can only add some,
so a variable without other references can be dropped safely.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np

from .slots import Slots


def references(thing: object) -> int:
    """Return how many references there are to an object, which must be passed as an attribute or an item.

    A local name would be one more reference.
    """
    return sys.getrefcount(thing) - _of_a_call


_of_a_call = 0  # references that the call itself makes: their number depends on the version of Python
_probe = SimpleNamespace(held=object())
_of_a_call = references(_probe.held) - 1


class ReferenceCounts:
    """The references that an optimizer itself holds to its variables.

    Parameters
    ----------
    slots : iterable of Slots
        All slots of the optimizer.
    """

    def __init__(self, slots: Iterable[Slots]) -> None:
        self._slots = list(slots)
        self._ours: Counter[int] = Counter()
        for own in self._slots:
            self._ours.update(map(id, own.own_references()))

    def held_elsewhere(self, own: Slots) -> bool:
        """Return whether the program holds the variable, or the array that it is a view of."""
        if references(own.var) > self._ours[id(own.var)]:
            return True
        return own.var.base is not None and references(own.var.base) > self._ours[id(own.var.base)]

    def unreachable(self) -> set[Slots]:
        """Return the slots of variables whose memory the program cannot reach any more.

        Views of one array stay together, since each view leads to the whole array. Memory that NumPy has not allocated,
        as that of a mapped file, counts as reachable: others may use it without the array.
        """
        held = {_owner(own) for own in self._slots if not _numpy_allocated(own) or self.held_elsewhere(own)}
        return {own for own in self._slots if _owner(own) not in held}


def _owner(own: Slots) -> int:
    return id(own.var) if own.var.base is None else id(own.var.base)


def _numpy_allocated(own: Slots) -> bool:
    if own.var.base is None:
        return own.var.flags.owndata
    return type(own.var.base) is np.ndarray and own.var.base.flags.owndata
