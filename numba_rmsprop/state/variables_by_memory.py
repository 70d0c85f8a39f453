"""The variables of an optimizer: found by their memory, kept apart, and dropped when nothing else holds them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from weakref import WeakSet, ref

import numpy as np

from ..arrays.variables import (
    FloatArray,
    Occupied,
    as_variable,
    describe,
    memory_bounds,
    memory_key,
    refuse_overlap,
    share_memory,
)
from ..runtime.caller_warnings import warn
from ..settings.variable_options import AUTOMATIC
from .reference_counts import ReferenceCounts
from .slots import Slots

Kind: TypeAlias = tuple[tuple[int, ...], np.dtype[np.floating]]


class MemoryRanges:
    """The memory of variables, sorted by address, so that only neighbours need a closer look."""

    def __init__(self) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        self._highest: list[int] = []  # of this range and those before it
        self._owners: list[Slots] = []
        self._low_of: dict[Slots, int] = {}

    def add(self, own: Slots) -> None:
        """Add a variable."""
        if not own.var.size:
            return
        low, high = memory_bounds(own.var)
        i = bisect_left(self._lows, low)
        self._low_of[own] = low
        for column, value in ((self._lows, low), (self._highs, high), (self._highest, -1)):
            column.insert(i, value)
        self._owners.insert(i, own)
        self._update_highest(i)

    def remove(self, own: Slots) -> None:
        """Remove a variable, which may have moved since it was added."""
        low = self._low_of.pop(own, None)
        if low is None:
            return
        i = self._owners.index(own, bisect_left(self._lows, low))
        for column in (self._lows, self._highs, self._highest, self._owners):
            del column[i]
        self._update_highest(i)

    def near(self, array: FloatArray) -> Iterator[Slots]:
        """Return the variables of which a part lies between the first and the last byte of an array."""
        if not array.size:
            return
        low, high = memory_bounds(array)
        i = bisect_left(self._lows, high)
        while i > 0 and self._highest[i - 1] > low:
            i -= 1
            if self._highs[i] > low:
                yield self._owners[i]

    def _update_highest(self, i: int) -> None:
        highest = self._highest[i - 1] if i else 0
        for k in range(i, len(self._highs)):
            highest = max(highest, self._highs[k])
            if self._highest[k] == highest:
                return
            self._highest[k] = highest


@dataclass
class Generations:
    """Variables of one shape and dtype that replaced one another, as in a loop that makes a new array at each step.

    ``first`` and ``latest`` are the steps at which the first and the latest of them came, ``count`` their number.
    """

    first: int
    latest: int
    count: int = 1


class Registry:
    """The variables of an optimizer.

    Parameters
    ----------
    slots : iterable of Slots
        The slots of its first variables.

    Attributes
    ----------
    slots : list of Slots
        The slots of its variables, in the order in which these were first seen.
    occupied : Occupied
        The memory of the variables and their slots.
    unclaimed : set of Slots
        The variables that were unpickled, copied or loaded, and not used since.
    changes : int
        Count, over all optimizers, of variables that came, moved or went and whose values may fall behind.
    seen : int
        ``changes`` when ``shared`` was last brought up to date.
    shared : dict of Slots to list
        For each variable on which other optimizers may have left rows behind, the slots of those optimizers.
    """

    changes: ClassVar[int] = 0
    _owing: ClassVar[WeakSet[Registry]] = WeakSet()

    def __init__(self, slots: Iterable[Slots] = ()) -> None:
        self.slots: list[Slots] = []
        self.occupied = Occupied([])
        self.unclaimed: set[Slots] = set()
        self._by_id: dict[int, Slots] = {}
        self._by_memory: dict[Any, Slots] = {}
        self._ranges = MemoryRanges()
        self._number = 0
        self._credit = 0
        self._keys: dict[Slots, tuple[int, Any]] = {}
        self._generations: dict[Kind, Generations] = {}
        self._has_warned = False
        self.shared: dict[Slots, list[ref[Slots]]] = {}
        self.seen = Registry.changes
        self.add(slots)

    def __contains__(self, own: Slots) -> bool:
        return self._by_id.get(id(own.var)) is own

    @property
    def may_share(self) -> bool:
        """True if other optimizers may have left rows of some variable behind."""
        return self.seen != Registry.changes or bool(self.shared)

    def find(self, var: FloatArray) -> Slots | None:
        """Return the slots of a variable, or None."""
        slots = self._by_id.get(id(var))
        if slots is None or slots.var is not var:
            slots = self._by_memory.get(memory_key(var)) if isinstance(var, np.ndarray) else None
        if slots is not None and self.unclaimed:
            self.unclaimed.discard(slots)
        return slots

    def new_name(self, further: int = 0) -> str:
        """Return the name for the next variable without one, or for the one after ``further`` others."""
        return f"variable {self._number + further}"

    def add(self, slots: Iterable[Slots]) -> None:
        """Add variables."""
        new = list(slots)
        for own in new:
            self._enter(own)
            automatic = AUTOMATIC.fullmatch(own.name)
            self._number = max(self._number + 1, int(automatic[1]) + 1 if automatic else 0)
        self.slots.extend(new)
        self.occupied = self.occupied.with_more(_memory(new))

    def remove(self, gone: set[Slots]) -> None:
        """Forget variables."""
        if not gone:
            return
        self.occupied = self.occupied.without(_memory(gone))
        for own in gone:
            self._leave(own)
        self.slots[:] = [own for own in self.slots if own not in gone]
        self.unclaimed -= gone

    def move(self, own: Slots, change: Callable[..., None], *arguments: Any) -> None:
        """Let a variable go on at another array, to which ``change`` brings it."""
        self.occupied = self.occupied.without(_memory([own]))
        self._leave(own)
        change(*arguments)
        self._enter(own)
        self.occupied = self.occupied.with_more(_memory([own]))
        self.unclaimed.discard(own)

    def check_apart(self, var: FloatArray, name: str, *, but: Slots | None = None) -> None:
        """Raise ValueError if an array shares memory with a slot, or with a variable other than ``but``."""
        refuse_overlap(var, name, ((other.var, other.name) for other in self._ranges.near(var) if other is not but))
        if self.occupied.reached_by(var):
            slots = ((array, f"{slot} of {own.name}") for own in self.slots for slot, array in own.arrays.items())
            refuse_overlap(var, name, slots)

    def check_stranger(self, var: FloatArray, name: str) -> None:
        """Raise ValueError for a new array that was probably meant as one of the variables that were restored.

        That is likely while a restored variable of its shape and dtype has not been used and is held by nobody else:
        a program that has restored its variables together with the optimizer holds them.
        """
        kind = _kind(var)
        if not any(_kind(own.var) == kind for own in self.unclaimed):
            return
        alike = [own for own in self.slots if own in self.unclaimed and _kind(own.var) == kind]
        lost = [repr(own.name) for own in self.held_by_nobody(alike)]
        if lost:
            raise ValueError(
                f"{describe(name, var)} is no variable of this optimizer, which was unpickled, copied or loaded with "
                f"{', '.join(lost[:5])}{', ...' * (len(lost) > 5)} of that shape, held by nobody else. To go on with "
                f"one at this array, call opt.rebind({lost[0]}, array); if this is a new variable, "
                f"opt.forget({lost[0]}) first"
            )

    def held_by_nobody(self, among: Iterable[Slots]) -> list[Slots]:
        """Return those variables that were restored and not used since, and whose arrays nobody else holds."""
        restored = [own for own in among if own in self.unclaimed]
        if not restored:
            return []
        counts = ReferenceCounts(self.slots)
        return [own for own in restored if not counts.held_elsewhere(own)]

    def make_room(self, new: list[FloatArray], iterations: int) -> bool:
        """Drop variables that nobody else holds, before new ones come; return whether there were any.

        This looks at all variables, and so it is not done each time. New variables earn credit, large ones more since
        they soon fill the memory, until the credit pays for a look.
        """
        self._credit += sum(16 + var.nbytes // 4096 for var in new)
        if self._credit < len(self.slots):
            return False
        self._credit = 0
        gone = ReferenceCounts(self.slots).unreachable() - self.unclaimed
        self._note_generations([own for own in self.slots if own in gone], iterations)
        self.remove(gone)
        return bool(gone)

    def _note_generations(self, gone: list[Slots], iterations: int) -> None:
        """Note when those variables came that took a step and were then dropped."""
        for own in gone:
            if own.since < iterations:
                seen = self._generations.setdefault(_kind(own.var), Generations(own.since, own.since))
                seen.count += own.since != seen.latest
                seen.latest = own.since

    def warn_of_successors(self, new: list[FloatArray], iterations: int) -> None:
        """Warn once of a loop that passes a new array at nearly every step."""
        for var in new:
            seen = self._generations.get(_kind(var))
            if seen is None or seen.count < 2 or 2 * seen.count < iterations - seen.first or self._has_warned:
                continue
            self._has_warned = True
            warn(
                f"{describe('the variable', var)} is a new array, as at the steps before, and nothing holds the old "
                "ones any more: each starts from nothing, and a copy, such as table[[1, 2]], takes its changes with "
                "it. Update the variable in place (table /= norms, table[...] = values); or, after "
                "new = table / norms, call opt.rebind(table, new)"
            )

    def others_on(self, var: FloatArray, own: Slots | None) -> list[Slots]:
        """Return slots of other optimizers that may have left rows of this array behind; ``own`` is None if unknown."""
        if own is None or own not in self:
            return self._search_others(var)
        if self.seen != Registry.changes:
            self.seen, self.shared = Registry.changes, {}
            for one in self.slots:
                self._note_others(one)
        return [other for other in (alive() for alive in self.shared.get(own, ())) if other is not None]

    def _note_others(self, own: Slots) -> None:
        others = self._search_others(own.var)
        if others:
            self.shared[own] = list(map(ref, others))

    def _search_others(self, var: FloatArray) -> list[Slots]:
        return [
            other
            for registry in list(Registry._owing)
            if registry is not self
            for other in registry._ranges.near(var)
            if other.owes and other not in self and share_memory(other.var, var)
        ]

    def _enter(self, own: Slots) -> None:
        self._keys[own] = number, key = id(own.var), memory_key(own.var)
        self._by_id[number] = self._by_memory[key] = own
        self._ranges.add(own)
        self._note_others(own)
        self._note_change(own)

    def _leave(self, own: Slots) -> None:
        number, key = self._keys.pop(own)
        del self._by_id[number], self._by_memory[key]
        self._ranges.remove(own)
        self.shared.pop(own, None)
        self._note_change(own)

    def _note_change(self, own: Slots) -> None:
        """Have other optimizers look again for variables that they share with this one."""
        if own.owes:
            Registry._owing.add(self)
            Registry.changes += 1
            self.seen += 1  # its own changes are known to it


class Newcomers:
    """New variables of a call, which are not registered yet.

    Parameters
    ----------
    registry : Registry
        The variables that are registered.

    Attributes
    ----------
    made : dict
        The slots of the new variables, by their memory.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ranges = MemoryRanges()
        self.made: dict[Any, Slots] = {}

    def check(self, var: Any, name: str, *, written: bool = True) -> FloatArray:
        """Return an array that may become a variable, or with ``written=False`` be read like one."""
        checked = as_variable(var, name, written=written)
        self._registry.check_stranger(checked, name)
        self._registry.check_apart(checked, name)
        refuse_overlap(checked, name, ((other.var, other.name) for other in self._ranges.near(checked)))
        return checked

    def add(self, own: Slots) -> None:
        """Add the slots of a new variable."""
        self.made[memory_key(own.var)] = own
        self._ranges.add(own)


def _memory(slots: Iterable[Slots]) -> Iterator[FloatArray]:
    return (array for own in slots for array in own.occupied)


def _kind(var: FloatArray) -> Kind:
    return var.shape, var.dtype
