"""What an optimizer remembers: its variables' slots, its own weights, and how many steps it has taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .batches import Batch
from .changes import Saved
from .interrupts import Uninterrupted
from .plans import Plan
from .slots import Slots
from .threads import launch_lock
from .variables import FloatArray, Occupied, as_array, as_variable, describe, memory_key, refuse_overlap

Initializer: TypeAlias = str | float | Callable[..., ArrayLike]


DERIVED = ("_by_id", "_by_memory", "_occupied", "_batches", "_plan")
"""What is made anew where an optimizer was copied or unpickled, since it speaks of memory."""


class WeightStore:
    """The slots of an optimizer's variables, and the members of tf.keras optimizers that read and write them.

    Variables are told apart by their memory, not by the array object: two views of the same memory with the same
    shape are one variable.
    """

    def __init__(self) -> None:
        self._iterations = 0
        self._slots: list[Slots] = []
        self._own_weights: dict[str, NDArray[Any]] = {}
        self._saved: Saved | None = None
        self._index()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index()  # copied or unpickled variables lie elsewhere in memory

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
            If there are too many or too few, or one has another shape, or an array to overwrite is read-only.
        TypeError
            If one cannot be cast to its dtype without losing its kind, or has a mask.
        """
        present = list(self._arrays())
        given = [as_array(weight, f"weights[{i}]") for i, weight in enumerate(weights)]
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
            if not array.flags.writeable:
                raise ValueError(f"weights[{i}]: the array to overwrite is read-only; expected a writable one")
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

    def build(self, variables: Iterable[FloatArray]) -> None:
        """Make the slots of variables before their first step, as for :meth:`set_weights`.

        Raises
        ------
        TypeError, ValueError
            If one of them cannot be a variable.
        """
        with launch_lock:
            self._register(self._find_or_make(list(variables)))

    def flush(self, *variables: FloatArray) -> None:
        """Catch up every row of the given variables, or of all: their values and slots.

        Costs one pass over the rows that are behind. Never needed before :meth:`apply_gradients`, :meth:`gather`,
        ``save`` or anything that reads weights through the optimizer.

        Raises
        ------
        ValueError
            If rows are behind and an array is read-only, or an array was changed in place since it was first seen;
            nothing has been written then.
        """
        found = [self._find_or_check(var) for var in variables] if variables else self._slots
        for slots in found:
            if slots is not None:
                slots.check_memory(written=slots.has_rows_behind)
        for slots in found:
            if slots is not None:
                slots.flush()

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
        self.flush(var)
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

    def _index(self) -> None:
        self._by_id = {id(slots.var): slots for slots in self._slots}
        self._by_memory = {memory_key(slots.var): slots for slots in self._slots}
        self._occupied = occupied_by(self._slots)
        self._batches: dict[Any, Batch] = {}
        self._plan: Plan | None = None

    def _find(self, var: FloatArray) -> Slots | None:
        slots = self._by_id.get(id(var))
        if slots is None or slots.var is not var:
            slots = self._by_memory.get(memory_key(var)) if isinstance(var, np.ndarray) else None
        return slots

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
        as_variable(var, "the variable", written=False)
        refuse_overlap(var, "the variable", [(other.var, other.name) for other in self._slots])

    def _occupied_with(self, found: list[Slots]) -> Occupied:
        """Return the memory of all variables and slots, those included that are not registered yet."""
        if all(id(own.var) in self._by_id for own in found):
            return self._occupied
        return occupied_by([*self._slots, *found])

    def _find_or_make(self, variables: Sequence[FloatArray]) -> list[Slots]:
        """Return the slots of each variable; new ones are complete, but not registered."""
        found: list[Slots] = []
        made: dict[Any, Slots] = {}
        for var in variables:
            slots = self._find(var)
            if slots is None:
                name = f"variable {len(self._slots) + len(made)}"
                key = memory_key(as_variable(var, name))
                if key not in made:
                    others = [*self._slots, *made.values()]
                    refuse_overlap(var, name, [(other.var, other.name) for other in others])
                    made[key] = self._new_slots(var, name)
                slots = made[key]
            else:
                slots.check_memory(written=True)
            found.append(slots)
        return found

    def _batch(self, key: Any, members: list[Slots]) -> Batch:
        """Return the batch of these variables, which are registered or will be; the last one of each key is kept."""
        batch = self._batches.get(key)
        if batch is None or batch.members != members:
            batch = self._batches[key] = Batch(members)
        return batch

    def _register(self, found: Iterable[Slots]) -> None:
        new = [slots for slots in found if id(slots.var) not in self._by_id]
        if new:
            self._slots.extend(dict.fromkeys(new))
            self._index()


def occupied_by(slots: Iterable[Slots]) -> Occupied:
    """Return the memory of variables and their slots."""
    return Occupied(array for own in slots for array in own.occupied)


def _initial(initializer: Initializer, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    fills = {"zeros": 0.0, "ones": 1.0}
    if callable(initializer):
        value = np.array(as_array(initializer(shape, dtype=dtype), f"initializer of {name!r}"), dtype)
        if value.shape != shape:
            raise ValueError(f"initializer of {name!r}: expected shape {shape}, got {value.shape}")
        return value
    if isinstance(initializer, str):
        if initializer not in fills:
            raise ValueError(
                f"initializer of {name!r}: expected 'zeros', 'ones', a number or a callable, got {initializer!r}"
            )
        return np.full(shape, fills[initializer], dtype)
    return np.full(shape, as_array(initializer, f"initializer of {name!r}"), dtype)


def _check_iterations(value: Any) -> int:
    number = value.item() if isinstance(value, np.generic) else value
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not (0 <= number < 2**63 and number % 1 == 0)
    ):
        raise ValueError(f"iterations: expected a whole number >= 0 and below 2**63, got {value!r}")
    return int(number)
