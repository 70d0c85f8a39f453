"""Whether anybody but an optimizer still holds a variable: who holds none can neither read nor train it.

Python counts the references to each object. Those of the optimizer are known: its slots hold the variable, and views
of it hold the variable or what that is a view of. More than these are somebody else's. A debugger or a forgotten frame
only adds to them, so that what is said to be held by nobody is.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np

from .slots import Slots


def references(thing: object) -> int:
    """Return how many references there are to what an attribute or an item holds, this call's own among them."""
    return sys.getrefcount(thing)


_probe = SimpleNamespace(held=object())
OF_A_CALL = references(_probe.held) - 1
"""How many of them are the call's own, which differs between versions of Python."""


class Holders:
    """Who holds the variables of some slots.

    Nothing here gives an array a name of its own, which would be one more reference.

    Parameters
    ----------
    slots : iterable of Slots
        All slots of an optimizer.
    """

    def __init__(self, slots: Iterable[Slots]) -> None:
        self._slots = list(slots)
        self._ours: Counter[int] = Counter()
        for own in self._slots:
            self._ours.update(map(id, own.own_references()))

    def someone_holds(self, own: Slots) -> bool:
        """Return whether somebody else holds the variable, or the array that it is a view of."""
        if references(own.var) - OF_A_CALL > self._ours[id(own.var)]:
            return True
        return own.var.base is not None and references(own.var.base) - OF_A_CALL > self._ours[id(own.var.base)]

    def let_go(self) -> set[Slots]:
        """Return those whose memory nobody else can reach.

        Views of one array stay together, since each leads to the whole of it. Memory that NumPy has not allocated, as
        that of a file, may be in use elsewhere, whoever holds the array.
        """
        held = {_owner(own) for own in self._slots if not _is_numpys(own) or self.someone_holds(own)}
        return {own for own in self._slots if _owner(own) not in held}


def _owner(own: Slots) -> int:
    return id(own.var) if own.var.base is None else id(own.var.base)


def _is_numpys(own: Slots) -> bool:
    if own.var.base is None:
        return own.var.flags.owndata
    return type(own.var.base) is np.ndarray and own.var.base.flags.owndata
