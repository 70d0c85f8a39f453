"""The state of an optimizer: the slots of its variables, weights of its own, and the number of steps."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from operator import setitem
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.real_numbers import as_float
from ..arrays.variables import FloatArray, Occupied, as_array, describe
from ..runtime.interrupts import Call, Uninterrupted
from ..runtime.whole_calls import carry_out, in_turn
from .any_optimizer import AnyOptimizer
from .known_variables import NO_SUMS

Initializer: TypeAlias = str | float | NDArray[Any] | Callable[..., ArrayLike]


class WeightStore(AnyOptimizer):
    """The state of an optimizer, and those attributes and methods of tf.keras optimizers that read and write it."""

    @property
    def iterations(self) -> int:
        """The number of steps taken so far; settable."""
        return self.known.iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        in_turn(carry_out, self._add_iterations, _check_iterations(value))

    def _add_iterations(self, calls: list[Call], iterations: int) -> bool:
        calls.append((setattr, self.known, "iterations", iterations))
        return False

    @property
    def gradient_norms(self) -> dict[str, float]:
        """The norm of each gradient of the latest step with ``clipnorm`` or ``global_clipnorm``, by variable names.

        They are norms of sums (duplicates added up, values clipped), before they were clipped themselves. A limit of
        ``math.inf`` clips nothing, and lets you log them; that of all together is
        ``math.hypot(*opt.gradient_norms.values())``.

        Examples
        --------
        >>> import math, numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.zeros((3, 2)), RMSprop(global_clipnorm=math.inf)
        >>> opt.build({"table": table})
        >>> step_count = opt.apply_gradients([(np.full((3, 2), 0.5), table)])
        >>> {name: round(norm, 3) for name, norm in opt.gradient_norms.items()}
        {'table': 1.225}
        """
        return dict(self.known.norms)

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The list ``[iterations, *all rms, *all momentum, *all mg, *added slots, *added weights]``, with current rows.

        Each kind is in the order in which the variables were first seen, whatever their names. All but ``iterations``
        are the arrays themselves, and a later sparse step may leave rows of them behind again.
        """
        self.flush()
        return [np.array(self.known.iterations, np.int64), *self._arrays()]

    def variables(self) -> list[NDArray[Any]]:
        """Return :attr:`weights`, which tf.keras calls the variables of the optimizer."""
        return self.weights

    def get_weights(self) -> list[NDArray[Any]]:
        """Return a copy of :attr:`weights`."""
        return in_turn(self._copies)

    def _copies(self) -> list[NDArray[Any]]:
        with Uninterrupted():
            return [array.copy() for array in self.weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Overwrite :attr:`weights`.

        Parameters
        ----------
        weights : sequence of array_like
            Weights from :meth:`get_weights`. A new optimizer has no slots to overwrite until :meth:`build` makes them.
            The products of bias correction are not among them: where the number of iterations changes, every variable
            is taken to have made all of them, with the rho of now. ``save`` keeps the products. Gradients that were
            added up since the last step (``gradient_accumulation_steps``) are dropped.

        Raises
        ------
        ValueError
            If the number of arrays or a shape is wrong, or an array to overwrite is read-only.
        TypeError
            If an array has a mask, or a dtype of another kind.
        """
        present = list(self._arrays())
        given = [as_array(weight, f"weights[{i}]") for i, weight in enumerate(weights)]
        if len(given) != 1 + len(present):
            raise ValueError(
                f"weights: expected {1 + len(present)} arrays, iterations and slots of {len(self.known.slots)} "
                f"variables, got {len(given)}; opt.build(variables) makes the slots of variables that were not seen yet"
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
        # Cast before anything is written, since a cast may raise. What lies in memory that is written is copied.
        written = Occupied(present)
        values = [
            value.astype(array.dtype, copy=written.reached_by(value))
            for array, value in zip(present, given[1:], strict=True)
        ]
        in_turn(carry_out, self._add_overwrite, present, values, iterations)

    def _add_overwrite(
        self, calls: list[Call], present: list[NDArray[Any]], values: list[NDArray[Any]], iterations: int
    ) -> bool:
        self.flush()  # if any row was behind, this is a commit, and the look begins again
        calls += [(setattr, slots.changes, "everything", True) for slots in self.known.slots]
        calls += [(setitem, array, ..., value) for array, value in zip(present, values, strict=True)]
        if iterations != self.known.iterations:
            product = self.product_after(iterations)
            calls += [(setitem, slots.product, (), product) for slots in self.known.slots]
        calls.append((setattr, self.known, "iterations", iterations))
        calls.append((setattr, self.known, "accumulation", NO_SUMS))
        return False

    def flush(self, *variables: FloatArray) -> None:
        """Catch up every row of some variables, or of all, and of their slots.

        It takes one pass over the rows that are behind, also over those that other optimizers have left behind. You
        never need it before :meth:`apply_gradients`, :meth:`gather`, ``save``, or anything that reads weights through
        the optimizer. In exact mode with momentum or weight decay, call it

        - before you read a whole table,
        - before you *write* to a table: otherwise the steps that a row has missed are applied to your values (with
          ``use_ema`` alone, too: the average of those steps would be that of your values),
        - and before you drop the optimizer, or continue with another one after it is gone.

        Raises
        ------
        ValueError
            If rows are behind and an array is read-only, or if the memory or layout of an array has changed since it
            was first seen. Nothing is written then.
        """
        found = [self.known.find_or_check(var) for var in variables] if variables else list(self.known.slots)
        for slots in found:
            if slots is not None:
                slots.check_memory(written=slots.has_rows_behind)
        for slots, var in zip(found, variables or [own.var for own in self.known.slots], strict=True):
            if slots is not None:
                slots.flush()
                slots.read_at = slots.steps
            for other in self.known.registry.others_on(var, slots):
                other.flush()

    def get_slot(self, var: FloatArray, slot_name: str) -> NDArray[Any]:
        """Return a slot of a variable: the array itself, with all rows current.

        Raises
        ------
        KeyError
            If the variable was not seen yet, or has no such slot.
        """
        slots = self.known.find_or_check(var)
        if slots is None:
            raise KeyError(f"{describe('the variable', var)} has no slots yet; opt.build([var]) makes them")
        if slot_name not in slots.arrays:
            raise KeyError(f"{slots.name} has no slot {slot_name!r}; expected one of {list(slots.arrays)}")
        self.flush(var)
        return slots.arrays[slot_name]

    def get_slot_names(self) -> list[str]:
        """Return the names of all slots, in the order of :attr:`weights`."""
        return list(dict.fromkeys([*self.slot_names, *(name for s in self.known.slots for name in s.custom)]))

    def add_slot(
        self, var: FloatArray, slot_name: str, initializer: Initializer = "zeros", shape: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Return a slot of a variable, which is made if it does not exist, and saved with the others.

        Steps do not touch it.

        Parameters
        ----------
        var : ndarray
            The variable.
        slot_name : str
            Name of the slot.
        initializer : {"zeros", "ones"}, float or callable, default "zeros"
            The values of a new slot; a callable is called as ``initializer(shape, dtype=dtype)``.
        shape : tuple of int, optional
            Shape of a new slot; the variable's by default.
        """
        known = in_turn(self.known.find_or_check, var)
        if known is None or slot_name not in known.arrays:  # no lock is held, since the initializer may be user code
            value = initial(initializer, var.shape if shape is None else tuple(shape), var.dtype, slot_name)
            in_turn(self.known.let_go_before, [var])
            in_turn(carry_out, self._add_new_slot, var, slot_name, value)
        return self.get_slot(var, slot_name)

    def _add_new_slot(self, calls: list[Call], var: FloatArray, slot_name: str, value: NDArray[Any]) -> bool:
        slots = self.known.find_or_make([var], self.new_slots)[0]
        calls.append((self.known.register, [slots]))
        if slot_name in slots.arrays:
            calls.append((setitem, slots.arrays[slot_name], ..., value))
        else:
            calls.append((setitem, slots.custom, slot_name, value))
        return True

    def add_weight(
        self,
        name: str,
        shape: tuple[int, ...] = (),
        dtype: DTypeLike = np.float32,
        initializer: Initializer = "zeros",
    ) -> NDArray[Any]:
        """Return a new array that belongs to the optimizer and is saved with the slots.

        Raises
        ------
        ValueError
            If there is a weight of that name already.
        """
        if name in self.own_weights:
            raise ValueError(f"name: there is a weight {name!r} already; expected another name")
        value = initial(initializer, tuple(shape), np.dtype(dtype), name)
        in_turn(self.own_weights.__setitem__, name, value)
        return value

    def _arrays(self) -> Iterable[NDArray[Any]]:
        for name in self.get_slot_names():
            yield from (slots.arrays[name] for slots in self.known.slots if name in slots.arrays)
        yield from self.own_weights.values()


def initial(initializer: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Return the first values of an array: "zeros", "ones", a number, or of a callable of shape and dtype."""
    label, fills = f"initializer of {name!r}", {"zeros": 0.0, "ones": 1.0}
    if callable(initializer):
        value = np.array(as_array(initializer(shape, dtype=dtype), label), dtype)
        if value.shape != shape:
            raise ValueError(f"{label}: expected shape {shape}, got {value.shape}")
        return value
    if isinstance(initializer, str):
        if initializer not in fills:
            raise ValueError(f"{label}: expected 'zeros', 'ones', a number or a callable, got {initializer!r}")
        initializer = fills[initializer]
    given = as_array(initializer, label)
    if given.ndim and given.shape != shape:
        raise ValueError(f"{label}: expected a number or shape {shape}, got {given.shape}")
    return np.full(shape, given, dtype)


def _check_iterations(value: Any) -> int:
    number: float
    try:
        number = operator.index(value)
    except TypeError:
        try:
            number = as_float("iterations", value)
        except TypeError:
            number = math.nan
    if isinstance(value, bool) or not (0 <= number < 2**63 and number % 1 == 0):
        raise ValueError(f"iterations: expected a whole number >= 0 and below 2**63, got {value!r:.100}")
    return int(number)
