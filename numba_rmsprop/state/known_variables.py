"""Which variables an optimizer knows: seen, named, moved to another array, forgotten, copied and pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.variables import FloatArray, Occupied, as_variable, describe, memory_key
from ..runtime.interrupts import Call, Uninterrupted
from ..runtime.locking import carry_out, in_turn
from ..stepping.remembered_call import Plan
from ..stepping.small_batch import Batch
from .changed_rows import Saved
from .registry import Newcomers, Registry
from .slots import Slots
from .variable_names import check_names, named
from .views import View, settle, views_of

DERIVED = ("_registry", "_occupied", "_batches", "_plan", "_views", "_latest_thread")
"""What is made anew where an optimizer was copied or unpickled, since it speaks of memory."""


class KnownVariables:
    """The variables of an optimizer, each with its slots.

    Variables are told apart by their memory, not by the array object: two views of the same memory with the same
    shape are one variable. Those that nobody else holds any more are let go when others come.
    """

    _batches: dict[Any, Batch]
    _plan: Plan | None
    _gathers = False  # whether anybody reads rows by gather
    _has_warned_of_old_rows = False
    _latest_thread = 0  # which has taken a step

    def __init__(self) -> None:
        self._iterations = 0
        self._saved: Saved | None = None
        self._views: list[View] = []
        self._registry = Registry()
        self._forget_plans()

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in DERIVED}
        # A copied view is no view: what it is one of goes along, to be the same array there as the program's own.
        return state | {"_slots": list(self._slots), "_views_of": views_of(self._slots)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        self._registry = Registry(own.pop("_slots"))  # copied or unpickled variables lie elsewhere in memory
        self._registry.unclaimed.update(self._registry.slots)
        self._views = own.pop("_views_of", [])
        self.__dict__.update(own)
        self._forget_plans()

    @property
    def _slots(self) -> list[Slots]:
        if self._views:
            self._settle_views()
        return self._registry.slots

    def build(self, variables: Iterable[FloatArray] | Mapping[str, FloatArray]) -> None:
        """Make the slots of variables before their first step, and give them names.

        Parameters
        ----------
        variables : iterable of ndarray, one ndarray, or mapping of str to ndarray
            The variables; in a mapping, by their names, which messages and files then tell, so that :meth:`load` need
            not know the order. Variables that were seen before without a name get theirs.

        Raises
        ------
        TypeError, ValueError
            If one of them cannot be a variable, or a name is no text, or another variable's, or not the one that the
            variable has already.

        Examples
        --------
        >>> from numba_rmsprop import RMSprop
        >>> users, items = np.zeros((9, 2)), np.zeros((5, 2))
        >>> opt = RMSprop()
        >>> opt.build({"users": users, "items": items})
        """
        names, arrays = named(variables)
        in_turn(self._build, names, arrays)

    def _build(self, names: Sequence[str], arrays: Sequence[FloatArray]) -> None:
        self._let_go_before(arrays)
        carry_out(self._add_build, names, arrays)

    def _add_build(self, calls: list[Call], names: Sequence[str], arrays: Sequence[FloatArray]) -> bool:
        found = self._find_or_make(arrays, names)
        check_names(names, found, self._slots)
        calls.append((self._register, found))
        calls += [(setattr, own, "name", name) for name, own in zip(names, found, strict=False)]
        return True

    def rebind(self, variable: FloatArray | int | str, array: FloatArray) -> None:
        """Let a variable go on at another array, with the state that it has.

        For arrays that cannot be updated in place, and after loading or unpickling an optimizer without its variables.

        Parameters
        ----------
        variable : ndarray, int or str
            The variable: the array that it was, its number in the order of :attr:`weights`, or its name.
        array : ndarray
            Where it goes on: of its shape and dtype. Its values are taken as they are; rows that are behind (in exact
            mode with momentum or weight decay) stay as far behind, so compute them from an array that was flushed.

        Raises
        ------
        KeyError
            If there is no such variable.
        TypeError, ValueError
            If ``array`` has another shape or dtype, is another variable, or cannot be one.

        Examples
        --------
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.array([[3.0, 4.0]]), RMSprop()
        >>> step_count = opt.apply_gradients([(np.ones((1, 2)), table)])
        >>> normed = table / np.linalg.norm(table, axis=1, keepdims=True)
        >>> opt.rebind(table, normed)
        >>> opt.get_slot(normed, "rms")
        array([[0.1, 0.1]])
        """
        in_turn(carry_out, self._add_rebind, variable, array)

    def _add_rebind(self, calls: list[Call], variable: FloatArray | int | str, array: FloatArray) -> bool:
        own = self._known(variable)
        as_variable(array, "array")
        if array.shape != own.shape or array.dtype != own.dtype:
            raise ValueError(f"array: expected {describe(own.name, own.var)}, got {describe('an array', array)}")
        other = self._registry.find(array)
        if other is not None and other is not own:
            raise ValueError(f"{describe('array', array)} is {other.name}; expected one that is no other variable")
        self._registry.check_apart(array, "array", but=own)
        calls += [(self._registry.move, own, array), (self._forget_plans,)]
        return True

    def forget(self, *variables: FloatArray | int | str) -> None:
        """Drop variables with their state, each given as in :meth:`rebind`; seen again, they start from nothing.

        Rows that are behind stay so: :meth:`flush` first if you go on reading the array. After this,
        :meth:`save_delta` wants a :meth:`save` to go on from.

        Raises
        ------
        KeyError
            If there is no such variable.

        Examples
        --------
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.zeros((3, 2)), RMSprop()
        >>> opt.build([table])
        >>> opt.forget(table)
        >>> len(opt.weights)  # the number of iterations alone
        1
        """
        in_turn(carry_out, self._add_forget, variables)

    def _add_forget(self, calls: list[Call], variables: Iterable[FloatArray | int | str]) -> bool:
        calls.append((self._drop, {self._known(variable) for variable in variables}))
        return True

    def _new_slots(self, var: FloatArray, name: str) -> Slots:
        raise NotImplementedError

    def _find(self, var: FloatArray) -> Slots | None:
        if self._views:
            self._settle_views()
        return self._registry.find(var)

    def _find_or_check(self, var: FloatArray) -> Slots | None:
        """Return the slots of a variable, or None for one not seen yet that could become one, or be read like one."""
        slots = self._find(var)
        if slots is None:
            self._check_new(var)
        else:
            slots.check_memory(written=False)
        return slots

    def _check_new(self, var: FloatArray) -> None:
        """Refuse what has no slots and could not be a variable, or be read like one."""
        Newcomers(self._registry).check(var, "the variable", written=False)

    def _known(self, variable: FloatArray | int | str) -> Slots:
        """Return the slots of a variable given by its array, number or name."""
        found = None
        if isinstance(variable, np.ndarray):
            found = self._find(variable)
            what = describe("the variable", variable)
        elif isinstance(variable, str):
            found = next((own for own in self._slots if own.name == variable), None)
            what = f"variable {variable!r}"
        elif isinstance(variable, (int, np.integer)) and not isinstance(variable, bool):
            found = self._slots[variable] if 0 <= variable < len(self._slots) else None
            what = f"number {variable}"
        else:
            raise TypeError(f"variable: expected an array, a number or a name, got {type(variable).__name__}")
        if found is None:
            names = [own.name for own in self._slots]
            raise KeyError(f"{what} is none of this optimizer's {len(names)} variables: {', '.join(names[:20])}")
        return found

    def _occupied_with(self, found: list[Slots]) -> Occupied:
        """Return the memory of all variables and slots, those included that are not registered yet."""
        new = [own for own in dict.fromkeys(found) if own not in self._registry]
        return self._occupied.with_more(array for own in new for array in own.occupied)

    def _find_or_make(self, variables: Sequence[FloatArray], names: Sequence[str] = ()) -> list[Slots]:
        """Return the slots of each variable; new ones are complete, but not registered."""
        found = [self._find(var) for var in variables]
        unknown = [k for k, own in enumerate(found) if own is None]
        for own in found:
            if own is not None:
                own.check_memory(written=True)
        if not unknown:
            return [own for own in found if own is not None]
        newcomers = Newcomers(self._registry)
        for k in unknown:
            var, name = variables[k], names[k] if names else self._registry.new_name(len(newcomers.made))
            own = newcomers.made.get(memory_key(var)) if isinstance(var, np.ndarray) else None
            if own is None:
                own = self._new_slots(newcomers.check(var, name), name)
                own.since = self._iterations
                own.read_at = 0 if self._gathers else -1
                newcomers.add(own)
            found[k] = own
        return [own for own in found if own is not None]

    def _let_go_before(self, variables: Iterable[Any]) -> None:
        """Let variables go that nobody holds, if there are new ones among these. For a call that is yet to look."""
        new = [var for var in variables if isinstance(var, np.ndarray) and self._find(var) is None]
        if new:
            carry_out(self._add_let_go, new)
            self._registry.warn_of_successors(new, self._iterations)

    def _add_let_go(self, calls: list[Call], new: list[FloatArray]) -> bool:
        calls.append((self._let_go, new))
        return True

    def _let_go(self, new: list[FloatArray]) -> None:
        if self._registry.make_room(new, self._iterations):
            self._forget_variables()

    def _batch(self, key: Any, members: list[Slots]) -> Batch:
        """Return the batch of these variables, which are registered or will be; the last one of each key is kept."""
        batch = self._batches.get(key)
        if batch is None or batch.members != members:
            batch = self._batches[key] = Batch(members)
        return batch

    def _register(self, found: Iterable[Slots]) -> None:
        new = [slots for slots in dict.fromkeys(found) if slots not in self._registry]
        if new:
            self._registry.add(new)
            self._occupied = self._registry.occupied
            self._plan = None

    def _claim_none(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take over what a file says of who the variables are; none has been used yet."""
        for own, entry in zip(self._slots, entries, strict=True):
            own.name, own.since = entry["name"], entry["since"] or 0
        self._registry = Registry(self._slots)
        self._registry.unclaimed.update(self._slots)
        self._forget_plans()

    def _drop(self, gone: set[Slots]) -> None:
        if gone:
            self._registry.remove(gone)
            self._forget_variables()

    def _forget_variables(self) -> None:
        """Make up for variables that are gone: files count them."""
        self._saved = None
        self._forget_plans()

    def _forget_plans(self) -> None:
        """Forget what speaks of memory."""
        self._occupied = self._registry.occupied
        self._batches = {}
        self._plan = None

    def _settle_views(self) -> None:
        """Let variables that were views of an array be views of it again, if it came along and they did not."""
        with Uninterrupted():
            views, self._views = self._views, []
            settle(views, self._registry)
            self._forget_plans()
