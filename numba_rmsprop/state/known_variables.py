"""The variables that an optimizer knows: seen, named, moved to another array, forgotten, copied and pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray, Occupied, as_variable, describe, memory_key
from ..runtime.interrupts import Call, Uninterrupted
from ..runtime.whole_calls import carry_out
from .changed_rows import Changes, Saved
from .slots import Slots
from .variable_names import check_names
from .variables_by_memory import Newcomers, Registry
from .views import View, settle, views_of

MakeSlots: TypeAlias = Callable[[FloatArray, str], Slots]
"""Makes the slots of a variable of that name."""

DERIVED = ("registry", "occupied", "remembered", "_views")
"""Attributes that depend on memory, and so are made anew in a copy and after unpickling."""


class Accumulation(NamedTuple):
    """Gradients that were added up since the last step; nothing changes it, and a later call puts another in its place.

    Attributes
    ----------
    calls : int
        How many calls they come from.
    sums : dict of Slots to :class:`numba_rmsprop.gradients.sums.Sum`
        The sum for each variable.
    """

    calls: int
    sums: dict[Slots, Any]


NO_SUMS = Accumulation(0, {})


class KnownVariables:
    """The variables of an optimizer, each with its slots.

    Variables are told apart by their memory, not by the array object: two views of the same memory with the same
    shape are one variable. Those that nobody else holds any more are let go when others come.

    Attributes
    ----------
    iterations : int
        Steps taken so far.
    norms : dict of str to float
        The norms of the gradients of the latest step that clipped norms, by the names of the variables.
    accumulation : Accumulation
        Gradients that wait for a step.
    saved : Saved or None
        The last file, from which deltas go on.
    occupied : Occupied
        The memory of all variables and slots.
    remembered : dict
        What steps remember of earlier calls; empty again whenever a variable has come, moved or gone.
    gathers : bool
        True if anybody reads rows by ``gather``.
    has_warned_of_old_rows : bool
        True once a warning has told of a step for rows that nobody can have read as they are.
    """

    gathers = False
    has_warned_of_old_rows = False
    has_warned_of_names = False

    def __init__(self) -> None:
        self.iterations = 0
        self.norms: dict[str, float] = {}
        self.accumulation = NO_SUMS
        self.saved: Saved | None = None
        self._views: list[View] = []
        self.registry = Registry()
        self._note_change()

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in DERIVED}
        # A copied view is no view: what it is one of goes along, to be the same array there as the program's own.
        return state | {"slots": list(self.slots), "views_of": views_of(self.slots)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        self.registry = Registry(own.pop("slots"))  # copied or unpickled variables lie elsewhere in memory
        self.registry.unclaimed.update(self.registry.slots)
        self._views = own.pop("views_of", [])
        self.__dict__.update(own)
        self._note_change()

    @property
    def slots(self) -> list[Slots]:
        """The slots of all variables, in the order in which these were first seen."""
        if self._views:
            self._settle_views()
        return self.registry.slots

    # Looking up

    def find(self, var: FloatArray) -> Slots | None:
        """Return the slots of a variable, or None."""
        if self._views:
            self._settle_views()
        return self.registry.find(var)

    def find_or_check(self, var: FloatArray) -> Slots | None:
        """Return the slots of a variable, or None for one not seen yet that could become one, or be read like one."""
        slots = self.find(var)
        if slots is None:
            self.check_new(var)
        else:
            slots.check_memory(written=False)
        return slots

    def check_new(self, var: FloatArray) -> None:
        """Refuse what has no slots and could not be a variable, or be read like one."""
        Newcomers(self.registry).check(var, "the variable", written=False)

    def called(self, variable: FloatArray | int | str) -> Slots:
        """Return the slots of a variable given by its array, number or name; raise KeyError if there is none."""
        found = None
        if isinstance(variable, np.ndarray):
            found = self.find(variable)
            what = describe("the variable", variable)
        elif isinstance(variable, str):
            found = next((own for own in self.slots if own.name == variable), None)
            what = f"variable {variable!r}"
        elif isinstance(variable, (int, np.integer)) and not isinstance(variable, bool):
            found = self.slots[variable] if 0 <= variable < len(self.slots) else None
            what = f"number {variable}"
        else:
            raise TypeError(f"variable: expected an array, a number or a name, got {type(variable).__name__}")
        if found is None:
            names = [own.name for own in self.slots]
            raise KeyError(f"{what} is none of this optimizer's {len(names)} variables: {', '.join(names[:20])}")
        return found

    def find_or_make(self, variables: Sequence[FloatArray], make: MakeSlots, names: Sequence[str] = ()) -> list[Slots]:
        """Return the slots of each variable; ``make`` makes those of new ones, which are not registered yet."""
        found = [self.find(var) for var in variables]
        unknown = [k for k, own in enumerate(found) if own is None]
        for own in found:
            if own is not None:
                own.check_memory(written=True)
        newcomers = Newcomers(self.registry)
        for k in unknown:
            var, name = variables[k], names[k] if names else self.registry.new_name(len(newcomers.made))
            own = newcomers.made.get(memory_key(var)) if isinstance(var, np.ndarray) else None
            if own is None:
                own = make(newcomers.check(var, name), name)
                own.since = self.iterations
                own.read_at = 0 if self.gathers else -1
                newcomers.add(own)
            found[k] = own
        return [own for own in found if own is not None]

    def occupied_with(self, found: list[Slots]) -> Occupied:
        """Return the memory of all variables and slots, those included that are not registered yet."""
        new = [own for own in dict.fromkeys(found) if own not in self.registry]
        return self.occupied.with_more(array for own in new for array in own.occupied)

    # Changes, as commits of their own or in the list of another

    def build(self, make: MakeSlots, names: Sequence[str], arrays: Sequence[FloatArray]) -> None:
        """Make the slots of variables, and give them names. The caller holds the lock."""
        self.let_go_before(arrays)
        carry_out(self._add_build, make, names, arrays)

    def _add_build(
        self, calls: list[Call], make: MakeSlots, names: Sequence[str], arrays: Sequence[FloatArray]
    ) -> bool:
        found = self.find_or_make(arrays, make, names)
        check_names(names, found, self.slots)
        calls.append((self.register, found))
        if names:  # by which variables may have options of their own
            calls += [(setattr, own, "name", name) for name, own in zip(names, found, strict=False)]
            calls.append((self._note_change,))
        return True

    def add_rebind(self, calls: list[Call], variable: FloatArray | int | str, array: FloatArray) -> bool:
        """Add what lets a variable go on at another array."""
        own = self.called(variable)
        as_variable(array, "array")
        if array.shape != own.shape or computed_in(array.dtype) != own.dtype:
            raise ValueError(f"array: expected {describe(own.name, own.var)}, got {describe('an array', array)}")
        other = self.registry.find(array)
        if other is not None and other is not own:
            raise ValueError(f"{describe('array', array)} is {other.name}; expected one that is no other variable")
        self.registry.check_apart(array, "array", but=own)
        calls += [(self.registry.move, own, own.rebind, array), (self._note_change,), (self._renew_sums,)]
        if array.dtype != own.var.dtype:  # a delta would not fit the files that it goes on from
            calls.append((setattr, self, "saved", None))
        return True

    def change_arrays(self, own: Slots, moved: Any, changes: Changes | None) -> None:
        """Let a variable go on with other arrays.

        ``changes`` are those since the last file, new rows at the end included; None if it is not to be gone on from.
        """
        self.registry.move(own, own.take_over, moved)
        if changes is None:
            self._forget_files()
        else:
            own.changes = changes
            self._note_change()

    def add_forget(self, calls: list[Call], variables: Iterable[FloatArray | int | str]) -> bool:
        """Add what drops variables with their state."""
        calls.append((self._drop, {self.called(variable) for variable in variables}))
        return True

    def let_go_before(self, variables: Iterable[Any]) -> None:
        """Let variables go that nobody holds, if there are new ones among these. For a call that is yet to look."""
        new = [var for var in variables if isinstance(var, np.ndarray) and self.find(var) is None]
        if new:
            carry_out(self._add_let_go, new)
            self.registry.warn_of_successors(new, self.iterations)

    def _add_let_go(self, calls: list[Call], new: list[FloatArray]) -> bool:
        calls.append((self._let_go, new))
        return True

    def _let_go(self, new: list[FloatArray]) -> None:
        if self.registry.make_room(new, self.iterations):
            self._drop_sums()
            self._forget_files()

    def _drop_sums(self) -> None:
        """Drop the sums of variables that are gone."""
        calls, sums = self.accumulation
        left = {own: total for own, total in sums.items() if own in self.registry}
        if len(left) < len(sums):  # or else steps of other threads that are under way would begin again
            self.accumulation = Accumulation(calls, left)

    def _renew_sums(self) -> None:
        """Let steps that are under way look for the arrays of variables again."""
        calls, sums = self.accumulation
        self.accumulation = Accumulation(calls, sums)

    def register(self, found: Iterable[Slots]) -> None:
        """Take in variables that :meth:`find_or_make` has made."""
        new = [slots for slots in dict.fromkeys(found) if slots not in self.registry]
        if new:
            self.registry.add(new)
            self._note_change()

    def claim_none(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take over what a file says of who the variables are; none has been used yet."""
        for own, entry in zip(self.slots, entries, strict=True):
            own.name, own.since = entry["name"], entry["since"] or 0
        self.registry = Registry(self.slots)
        self.registry.unclaimed.update(self.slots)
        self._note_change()

    def _drop(self, gone: set[Slots]) -> None:
        if gone:
            self.registry.remove(gone)
            self._drop_sums()
            self._forget_files()

    def note_new_form(self) -> None:
        """Make up for slots of another form, which go on from no file."""
        self._forget_files()

    def _forget_files(self) -> None:
        """Make up for variables that are gone: files count them."""
        self.saved = None
        self._note_change()

    def _note_change(self) -> None:
        self.occupied = self.registry.occupied
        self.remembered: dict[str, Any] = {}

    def _settle_views(self) -> None:
        """Let variables that were views of an array be views of it again, if it came along and they did not."""
        with Uninterrupted():
            views, self._views = self._views, []
            settle(views, self.registry)
            self._note_change()
