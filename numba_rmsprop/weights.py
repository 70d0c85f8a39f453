"""What an optimizer remembers: its variables' slots, its own weights, and how many steps it has taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .batches import Batch
from .changes import Saved
from .interrupts import Uninterrupted
from .names import check_names, named
from .plans import Plan
from .registry import Newcomers, Registry
from .slots import Slots
from .threads import launch_lock
from .variables import FloatArray, Occupied, as_variable, describe, memory_key
from .views import View, views_of, where_they_belong

Initializer: TypeAlias = str | float | Callable[..., ArrayLike]


DERIVED = ("_registry", "_occupied", "_batches", "_plan", "_views")
"""What is made anew where an optimizer was copied or unpickled, since it speaks of memory."""


class WeightStore:
    """The slots of an optimizer's variables, and the members of tf.keras optimizers that read and write them.

    Variables are told apart by their memory, not by the array object: two views of the same memory with the same
    shape are one variable. Those that nobody else holds any more are let go when others come.
    """

    _batches: dict[Any, Batch]
    _plan: Plan | None
    _gathers = False  # whether anybody reads rows by gather
    _has_warned = False  # that somebody does not

    def __init__(self) -> None:
        self._iterations = 0
        self._own_weights: dict[str, NDArray[Any]] = {}
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

    @property
    def iterations(self) -> int:
        """Steps taken so far; settable."""
        return self._iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._iterations = _check_iterations(value)

    @property
    def weights(self) -> list[NDArray[Any]]:
        """``[iterations, *all rms, *all momentum, *all mg, *added slots, *added weights]``, every row current.

        Within each kind, variables come in the order in which they were first seen. All but ``iterations`` are the
        arrays themselves; a later sparse step may leave rows of theirs behind again.
        """
        self.flush()
        return [np.array(self._iterations, np.int64), *self._arrays()]

    def variables(self) -> list[NDArray[Any]]:
        """Return :attr:`weights`: in tf.keras, "variables" are the optimizer's own."""
        return self.weights

    def get_weights(self) -> list[NDArray[Any]]:
        """Return a copy of :attr:`weights`."""
        with launch_lock:
            return [array.copy() for array in self.weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Overwrite :attr:`weights`.

        Parameters
        ----------
        weights : sequence of array_like
            As :meth:`get_weights` gave them. An optimizer that has seen no variable yet has no slots to overwrite:
            :meth:`build` makes them.

        Raises
        ------
        ValueError
            If there are too many or too few, or one has another shape.
        TypeError
            If one cannot be cast to its dtype without losing its kind.
        """
        present = list(self._arrays())
        given = [np.asarray(weight) for weight in weights]
        if len(given) != 1 + len(present):
            raise ValueError(
                f"weights: expected {1 + len(present)} arrays, iterations and slots of {len(self._slots)} variables, "
                f"got {len(given)}; opt.build(variables) makes the slots of variables that were not seen yet"
            )
        for i, (array, value) in enumerate(zip(present, given[1:], strict=True), start=1):
            if array.shape != value.shape:
                raise ValueError(f"weights[{i}]: expected shape {array.shape}, got {value.shape}")
            if not np.can_cast(value.dtype, array.dtype, "same_kind"):
                raise TypeError(f"weights[{i}]: expected dtype {array.dtype}, got {value.dtype}")
        if given[0].ndim:
            raise ValueError(f"weights[0]: expected the number of iterations, got an array of shape {given[0].shape}")
        iterations = _check_iterations(given[0][()])
        # Before anything is written, since a cast may raise; copies of what lies in a slot that is written first.
        written = Occupied(present)
        values = [
            value.astype(array.dtype, copy=written.reached_by(value))
            for array, value in zip(present, given[1:], strict=True)
        ]
        with launch_lock:
            self.flush()
            with Uninterrupted():
                for slots in self._slots:
                    slots.changes.everything = True
                for array, value in zip(present, values, strict=True):
                    array[...] = value
                self._iterations = iterations

    def build(self, variables: Iterable[FloatArray] | Mapping[str, FloatArray]) -> None:
        """Make the slots of variables before their first step, and give them names.

        Parameters
        ----------
        variables : iterable of ndarray, or mapping of str to ndarray
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
        with launch_lock:
            names, arrays = named(variables)
            found = self._find_or_make(arrays, names)
            check_names(names, found, self._slots)
            self._register(found)
            for name, own in zip(names, found, strict=False):
                own.name = name

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
        with launch_lock:
            own = self._known(variable)
            as_variable(array, "array")
            if array.shape != own.shape or array.dtype != own.dtype:
                raise ValueError(f"array: expected {describe(own.name, own.var)}, got {describe('an array', array)}")
            other = self._registry.find(array)
            if other is not None and other is not own:
                raise ValueError(f"{describe('array', array)} is {other.name}; expected one that is no other variable")
            self._registry.check_apart(array, "array", but=own)
            with Uninterrupted():
                self._registry.move(own, array)
                self._forget_plans()

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
        with launch_lock:
            gone = {self._known(variable) for variable in variables}
            with Uninterrupted():
                self._drop(gone)

    def flush(self, *variables: FloatArray) -> None:
        """Catch up every row of the given variables, or of all: their values and slots.

        Costs one pass over the rows that are behind. Never needed before :meth:`apply_gradients`, :meth:`gather`,
        ``save`` or anything that reads weights through the optimizer. In exact mode with momentum or weight decay, call
        it before you read a table as a whole, before you *write* to it yourself (or else what a row has missed is
        applied to what you wrote), and before you drop the optimizer or go on with another one after it is gone. What
        other optimizers owe to the same arrays is caught up, too.
        """
        found = [self._find_or_check(var) for var in variables] if variables else list(self._slots)
        for slots, var in zip(found, variables or [own.var for own in self._slots], strict=True):
            if slots is not None:
                slots.flush()
                slots.read_at = slots.steps
            for other in self._registry.others_on(var, slots):
                other.flush()

    def get_slot(self, var: FloatArray, slot_name: str) -> NDArray[Any]:
        """Return a slot of a variable, every row current: the array itself.

        Raises
        ------
        KeyError
            If the variable was not seen yet, or has no such slot.
        """
        slots = self._find_or_check(var)
        if slots is None:
            raise KeyError(f"{describe('the variable', var)} has no slots yet; opt.build([var]) makes them")
        if slot_name not in slots.arrays:
            raise KeyError(f"{slots.name} has no slot {slot_name!r}; expected one of {list(slots.arrays)}")
        slots.flush()
        return slots.arrays[slot_name]

    def get_slot_names(self) -> list[str]:
        """Return the names of all slots, in the order of :attr:`weights`."""
        return list(dict.fromkeys([*self._built_in_slots(), *(name for s in self._slots for name in s.custom)]))

    def add_slot(
        self, var: FloatArray, slot_name: str, initializer: Initializer = "zeros", shape: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Return the slot of that name, made if there is none yet; it is saved with the rest and otherwise left alone.

        Parameters
        ----------
        var : ndarray
            The variable.
        slot_name : str
            Name of the slot.
        initializer : {"zeros", "ones"}, float or callable, default "zeros"
            What fills a new slot; a callable is called as ``initializer(shape, dtype=dtype)``.
        shape : tuple of int, optional
            Shape of a new slot; the variable's by default.
        """
        with launch_lock:
            known = self._find_or_check(var)
            if known is None or slot_name not in known.arrays:
                slots = self._find_or_make([var])[0]
                value = _initial(initializer, var.shape if shape is None else tuple(shape), var.dtype, slot_name)
                if slot_name in slots.arrays:
                    slots.arrays[slot_name][...] = value
                else:
                    slots.custom[slot_name] = value
                self._register([slots])
            return self.get_slot(var, slot_name)

    def add_weight(
        self,
        name: str,
        shape: tuple[int, ...] = (),
        dtype: DTypeLike = np.float32,
        initializer: Initializer = "zeros",
    ) -> NDArray[Any]:
        """Return a new array of the optimizer's own, which is saved with the slots.

        Raises
        ------
        ValueError
            If there is one of that name.
        """
        if name in self._own_weights:
            raise ValueError(f"name: there is a weight {name!r} already; expected another name")
        self._own_weights[name] = _initial(initializer, tuple(shape), np.dtype(dtype), name)
        return self._own_weights[name]

    def _built_in_slots(self) -> Sequence[str]:
        raise NotImplementedError

    def _new_slots(self, var: FloatArray, name: str) -> Slots:
        raise NotImplementedError

    def _arrays(self) -> Iterable[NDArray[Any]]:
        for name in self.get_slot_names():
            yield from (slots.arrays[name] for slots in self._slots if name in slots.arrays)
        yield from self._own_weights.values()

    def _find(self, var: FloatArray) -> Slots | None:
        if self._views:
            self._settle_views()
        return self._registry.find(var)

    def _find_or_check(self, var: FloatArray) -> Slots | None:
        """Return the slots of a variable, or None for one not seen yet that could become one."""
        slots = self._find(var)
        if slots is None:
            Newcomers(self._registry).check(var, "the variable")
        return slots

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
        return self._occupied.with_more(array for own in new for array in (own.var, *own.arrays.values()))

    def _find_or_make(self, variables: Sequence[FloatArray], names: Sequence[str] = ()) -> list[Slots]:
        """Return the slots of each variable; new ones are complete, but not registered."""
        found = [self._find(var) for var in variables]
        unknown = [k for k, own in enumerate(found) if own is None]
        for own in found:
            if own is not None and not own.var.flags.writeable:
                as_variable(own.var, own.name)
        if not unknown:
            return [own for own in found if own is not None]
        self._let_go_before([variables[k] for k in unknown])
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

    def _let_go_before(self, new: list[Any]) -> None:
        arrays = [var for var in new if isinstance(var, np.ndarray)]
        if self._registry.make_room(arrays, self._iterations):
            self._forget_variables()
        self._registry.warn_of_successors(arrays, self._iterations)

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
        views, self._views = self._views, []
        for own, var in where_they_belong(views, self._registry.slots):
            self._registry.move(own, var)
            self._registry.unclaimed.add(own)
        self._forget_plans()


def _initial(initializer: Initializer, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    fills = {"zeros": 0.0, "ones": 1.0}
    if callable(initializer):
        value = np.array(initializer(shape, dtype=dtype), dtype)
        if value.shape != shape:
            raise ValueError(f"initializer of {name!r}: expected shape {shape}, got {value.shape}")
        return value
    if isinstance(initializer, str):
        if initializer not in fills:
            raise ValueError(
                f"initializer of {name!r}: expected 'zeros', 'ones', a number or a callable, got {initializer!r}"
            )
        return np.full(shape, fills[initializer], dtype)
    return np.full(shape, initializer, dtype)


def _check_iterations(value: Any) -> int:
    number = value.item() if isinstance(value, np.generic) else value
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not (0 <= number < 2**63 and number % 1 == 0)
    ):
        raise ValueError(f"iterations: expected a whole number >= 0 and below 2**63, got {value!r}")
    return int(number)
