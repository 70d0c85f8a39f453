"""Rows of a variable taken to another array together with their state: to grow, to prune, to put in another order."""

from __future__ import annotations

from operator import setitem
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.variables import FloatArray, as_array, as_variable, describe, memory_key
from ..runtime.interrupts import Call
from ..runtime.whole_calls import carry_out, in_turn
from .slot_arrays import SMALL_ITEMS, zeros
from .slots import Slots
from .weights import Initializer, WeightStore, initial

NEW = -1
"""The index of a row that is new."""


class Moved(NamedTuple):
    """The arrays of a variable after its rows have moved."""

    var: FloatArray
    slots: dict[str, FloatArray]
    clocks: NDArray[np.int32] | None
    custom: dict[str, NDArray[Any]]
    folder: Any = None


class RowMoves(WeightStore):
    """The calls of an optimizer that take rows to other arrays."""

    def resize(
        self,
        variable: FloatArray | int | str,
        rows: int,
        initializer: Initializer = "zeros",
        *,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Return a longer or shorter array at which a variable goes on, with the state of the rows that stay.

        Parameters
        ----------
        variable : ndarray, int or str
            The variable, as for :meth:`rebind`.
        rows : int
            How many rows it is to have.
        initializer : {"zeros", "ones"}, float, callable or array_like, default "zeros"
            The values of new rows: a callable is called as ``initializer(shape, dtype=dtype)``. Their state is that of
            rows that no step has touched, and they miss no step from now on.
        out : ndarray, shape (rows, \*row_shape), optional
            Where it goes on: of its dtype, and memory apart from all variables.

        Returns
        -------
        ndarray, shape (rows, \*row_shape)
            ``out``, or a new array. The old array is the program's alone from now on, and is not written to any more.

        Raises
        ------
        KeyError
            If there is no such variable.
        TypeError, ValueError
            If ``rows`` is no number of rows, ``out`` or the initial values do not fit, the variable has no rows, or
            gradients wait for a step (:attr:`accumulated_calls`).
        MemoryError
            If there is not enough memory. Nothing has changed then.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.ones((2, 2)), RMSprop()
        >>> step_count = opt.apply_gradients([(np.ones((2, 2)), table)])
        >>> table = opt.resize(table, 3, initializer=0.5)
        >>> table[2], opt.get_slot(table, "rms")[:, 0].round(6)
        (array([0.5, 0.5]), array([0.1, 0.1, 0. ]))
        """
        own = in_turn(self.known.called, variable)
        count = _as_count(rows)
        _check_rows(own)
        sources = np.full(count, NEW)
        sources[: len(own.var)] = np.arange(min(count, len(own.var)))
        return self._move_rows(own, sources, initializer, out)

    def take_rows(
        self,
        variable: FloatArray | int | str,
        indices: ArrayLike,
        initializer: Initializer = "zeros",
        *,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Return an array of some rows, in any order, at which a variable goes on with their state.

        For a table that is pruned, sorted or packed: ``table = opt.take_rows(table, np.flatnonzero(keep))``.

        Parameters
        ----------
        indices : array_like of int, shape (n,)
            Which row each one was, in [0, rows), or -1 for a new one. A row that comes twice goes on as two.
        variable, initializer, out
            As for :meth:`resize`.

        Returns
        -------
        ndarray, shape (n, \*row_shape)
            ``out``, or a new array.

        Raises
        ------
        IndexError
            If an index is out of bounds.
        KeyError, TypeError, ValueError, MemoryError
            As for :meth:`resize`.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.arange(4.0).reshape(4, 1), RMSprop()
        >>> opt.build([table])
        >>> opt.take_rows(table, [3, -1, 1]).ravel()
        array([3., 0., 1.])
        """
        own = in_turn(self.known.called, variable)
        _check_rows(own)
        sources = _as_sources(indices, own)
        return self._move_rows(own, sources, initializer, out)

    def reset_rows(
        self, variable: FloatArray | int | str, indices: ArrayLike, initializer: Initializer = "zeros"
    ) -> None:
        """Give rows new values, and the state of rows that no step has touched.

        Parameters
        ----------
        indices : array_like of int, shape (n,)
            The rows, in [0, rows).
        variable, initializer
            As for :meth:`resize`, for values of shape (n, *row_shape).

        Raises
        ------
        IndexError
            If an index is out of bounds.
        KeyError, TypeError, ValueError
            As for :meth:`resize`; or an array is read-only.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.ones((3, 1)), RMSprop()
        >>> step_count = opt.apply_gradients([(np.ones((3, 1)), table)])
        >>> opt.reset_rows(table, [1], initializer=7.0)
        >>> table[1], opt.get_slot(table, "rms")[1]
        (array([7.]), array([0.]))
        """
        own = in_turn(self.known.called, variable)
        _check_rows(own)
        rows = _as_sources(indices, own, least=0)
        values = initial(initializer, (len(rows), *own.shape[1:]), own.var.dtype, f"rows of {own.name}")
        in_turn(carry_out, self._look_to_reset, own, rows, values)

    def _look_to_reset(self, calls: list[Call], own: Slots, rows: NDArray[np.int64], values: NDArray[Any]) -> bool:
        self._check_movable(own)
        own.check_memory(written=True)
        if len(rows) and rows.max() >= len(own.var):
            raise IndexError(f"{describe(own.name, own.var)}: its rows were moved meanwhile; call again")
        for other in self.known.registry.others_on(own.var, own):
            other.pay(rows if memory_key(other.var) == memory_key(own.var) else None)
        starts = dict(own.form.starts)
        calls.append((setitem, own.var, rows, values))
        for slot, array in own.slots.items():
            start = values if slot in own.rule.slots_of_values else starts.get(slot, 0)
            calls.append((setitem, array, rows, start))
        if own.clocks is not None:
            calls.append((setitem, own.clocks, rows, own.steps))
        calls.append((setattr, own, "changes", own.changes.with_rows(rows)))
        return True

    def _check_movable(self, own: Slots) -> None:
        """Raise unless rows of a variable may move, or begin anew, now."""
        known = self.known
        if own not in known.registry:
            raise KeyError(f"{own.name} is no variable of this optimizer any more")
        if known.accumulation.calls:
            raise ValueError(
                f"{describe(own.name, own.var)}: expected rows to move between steps, got {known.accumulation.calls} "
                "calls whose gradients wait for one; move them when opt.accumulated_calls is 0"
            )

    def _move_rows(
        self, own: Slots, sources: NDArray[np.int64], initializer: Initializer, out: FloatArray | None
    ) -> FloatArray:
        new = np.flatnonzero(sources == NEW)
        # No lock is held, since the initializer may be the user's code.
        values = initial(initializer, (len(new), *own.shape[1:]), own.var.dtype, f"new rows of {own.name}")
        found: list[FloatArray] = []
        in_turn(carry_out, self._look_to_move, own, sources, new, values, out, found)
        return found[-1]

    def _look_to_move(
        self,
        calls: list[Call],
        own: Slots,
        sources: NDArray[np.int64],
        new: NDArray[np.int64],
        values: NDArray[Any],
        out: FloatArray | None,
        found: list[FloatArray],
    ) -> bool:
        known = self.known
        self._check_movable(own)
        if len(sources) and sources.max() >= len(own.var):
            raise IndexError(f"{describe(own.name, own.var)}: its rows were moved meanwhile; call again")
        own.check_memory(written=False)
        own.check_process()
        if out is not None:
            self._check_out(out, own, len(sources))
        others = known.registry.others_on(own.var, own)
        for other in others:
            other.check_memory(written=other.must_catch_up)
        for other in others:
            other.pay(None)
        folder = self.slots_folder if len(sources) * own.columns > SMALL_ITEMS else None
        moved = moved_rows(own, sources, new, values, out, folder)
        found.append(moved.var)
        before = len(own.var)
        grows = np.array_equal(sources[:before], np.arange(before)) and len(new) == len(sources) - before
        calls.append((known.change_arrays, own, moved, own.changes.with_rows(new) if grows else None))
        return True

    def go_on_at(self, variable: FloatArray | int | str, moved: Moved) -> None:
        """Let a variable go on at arrays that hold its rows and state already, and maybe more rows, of zeros."""
        own = self.known.called(variable)
        in_turn(carry_out, self._look_to_go_on, own, moved)

    def _look_to_go_on(self, calls: list[Call], own: Slots, moved: Moved) -> bool:
        calls.append((self.known.change_arrays, own, moved, own.changes))
        return True

    def _check_out(self, out: FloatArray, own: Slots, rows: int) -> None:
        as_variable(out, "out")
        shape = (rows, *own.shape[1:])
        if out.shape != shape or out.dtype != own.var.dtype:
            raise ValueError(f"out: expected shape {shape} ({own.var.dtype}), got {describe('an array', out)}")
        self.known.registry.check_apart(out, "out")


def moved_rows(
    own: Slots,
    sources: NDArray[np.int64],
    new: NDArray[np.int64],
    values: NDArray[Any],
    out: FloatArray | None,
    folder: Any,
) -> Moved:
    """Return the arrays that hold the rows ``sources`` of a variable and its slots, and ``values`` in the ``new`` ones.

    Nothing of the variable's own is written.
    """
    fortran = own.var.flags.f_contiguous and not own.var.flags.c_contiguous

    def taken(array: NDArray[Any], folder: Any = None, into: NDArray[Any] | None = None) -> NDArray[Any]:
        if into is None:
            into = zeros(folder, (len(sources), *array.shape[1:]), array.dtype, "F" if fortran else "C")
        if len(new) < len(sources):  # in parts, since NumPy would copy what it takes
            for begin in range(0, len(sources), 1 << 16):
                part = sources[begin : begin + (1 << 16)]
                kept = part != NEW
                into[begin : begin + (1 << 16)][kept] = array[part[kept]]
        return into

    starts = dict(own.form.starts)
    slots = {slot: taken(array, folder) for slot, array in own.slots.items()}
    for slot, array in slots.items():
        array[new] = values if slot in own.rule.slots_of_values else starts.get(slot, 0)
    clocks = None if own.clocks is None else taken(own.clocks, folder)
    if clocks is not None:
        clocks[new] = own.steps
    custom = {
        name: taken(array) if array.ndim and len(array) == len(own.var) else array for name, array in own.custom.items()
    }
    var = taken(own.var, into=out)  # last, since memory may be short, and ``out`` is to stay as it is then
    var[new] = values
    return Moved(var, slots, clocks, custom, folder)


def _as_count(rows: Any) -> int:
    found = as_array(rows, "rows")
    if found.ndim or found.dtype.kind not in "iu" or not 0 <= found[()] < 2**31:
        raise ValueError(f"rows: expected a whole number from 0 to {2**31 - 1}, got {rows!r:.100}")
    return int(found)


def _check_rows(own: Slots) -> None:
    if not own.shape:
        raise ValueError(f"{describe(own.name, own.var)} has no rows to move; expected an array of one axis or more")


def _as_sources(indices: ArrayLike, own: Slots, *, least: int = NEW) -> NDArray[np.int64]:
    found = as_array(indices, "indices")
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TypeError(f"indices: expected integers of shape (n,), got {found.dtype} of shape {found.shape}")
    if found.size and not (found.min() >= least and found.max() < len(own.var)):
        raise IndexError(
            f"indices: expected {least} <= index < {len(own.var)} for {describe(own.name, own.var)}, got "
            f"{found.min()} to {found.max()}"
        )
    return found.astype(np.int64)
