"""The slots of one variable over time: its steps, and how far behind each row is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from operator import setitem
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arrays.storage import as_stored
from ..arrays.variables import FloatArray
from ..kernels.bags import Bags, sum_bags
from ..kernels.compile_for_rule import kernels_of
from ..kernels.rule import Rule
from ..runtime import launching
from ..runtime.interrupts import Call, call_in_one_go
from ..runtime.launching import team_for
from ..runtime.whole_calls import carry_out, in_turn, whole
from ..settings.form import USUAL, Form
from ..settings.step_numbers import StepNumbers
from .changed_rows import Changes
from .reading import copy_rows, pool_rows
from .scratch import Scratch
from .skipped_steps import History, HistoryArrays
from .slot_arrays import SlotArrays, State, zeros

Ages: TypeAlias = tuple[NDArray[np.int32], int, int]
"""Row clocks, floor, and the number of the step that comes next."""

Borrowed: TypeAlias = tuple[NDArray[np.int64] | None, State, Ages, Sequence[Call]]
"""Rows in arrays of shape (n, columns): the places of the rows asked for, the arrays, their ages, and the calls that
write them back. Views need no such call; only a strided variable of three axes or more has no view."""

CLOCK_LIMIT = np.iinfo(np.int32).max - 1

FEW_STEPS = 3
"""So many steps may follow one gather: those of the parts of a batch."""

DERIVED = ("scratch", "kernels", "_first_clocks", "compiled")
"""Attributes that are left out of copies and pickles."""


class Slots(SlotArrays):
    """The slots of one variable, and its steps.

    In exact mode a sparse step leaves the rows it does not touch as they are and lets their clocks tell how many
    steps they have missed; whatever needs them later catches them up by the factors of the gap. Clocks count the
    variable's own steps: a call without a gradient for it is no step of the dense algorithm either.

    Parameters
    ----------
    var, name, rule, slots, folder, arrays, form
        As in :class:`~numba_rmsprop.state.slot_arrays.SlotArrays`.
    exact : bool
        Whether rows are caught up (exact mode) or left behind (lazy mode).
    drifts : bool
        Whether the value of a row moves in a step that skips it.

    Attributes
    ----------
    clocks : ndarray of int32, shape (rows,), or None
        For each row, the step after which it was current last; None before the first sparse step.
    floor : int
        The step after which all rows were current, whatever their clocks say.
    steps : int
        How many steps the variable has taken, since its first sparse one; or all, if numbers are rounded at random.
    since : int
        How many steps its optimizer had taken when the variable was first seen.
    product : ndarray of float64, shape ()
        With bias correction, the product of rho over the steps that the variable has taken; else 1.
    read_at : int
        ``steps`` when rows were last read through the optimizer; -1 for never, CLOCK_LIMIT where nobody can tell.
    values_fall_behind : bool
        Whether the value of a row moves in the steps that skip it.
    uses_values : bool
        Whether what a row misses moves its value or depends on it, so that it must be caught up before anybody writes
        to it.
    owes : bool
        True if other optimizers on the same memory must ask for what rows have missed. ``numba_rmsprop.torch`` asks by
        itself.
    small : bool
        Whether dense steps are taken together with those of other small variables.
    compiled : set
        Kinds of steps that have been taken, which compile nothing any more.
    """

    clocks: NDArray[np.int32] | None = None
    since = 0
    read_at = -1

    def __init__(
        self,
        var: FloatArray,
        name: str,
        rule: Rule,
        slots: tuple[str, ...],
        *,
        exact: bool,
        drifts: bool,
        folder: str | os.PathLike[str] | None = None,
        arrays: Mapping[str, FloatArray] | None = None,
        form: Form = USUAL,
    ) -> None:
        super().__init__(var, name, rule, slots, folder, arrays, form)
        self.small = self.fits_batch
        self.exact = exact
        self.values_fall_behind = exact and drifts
        self.uses_values = exact and (drifts or any(slot in rule.slots_of_values for slot in slots))
        self.owes = self.uses_values and arrays is None  # others pay for themselves
        self.product = np.ones(())
        self.steps = 0
        self.floor = 0
        self.history = History(rule, self.dtype)
        self.changes = Changes()
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        rows, columns = (1, 1) if not self.shape else (self.shape[0], self.columns)
        self.scratch = Scratch(rows, columns, self.dtype, by_row=self.by_row)
        self.kernels = kernels_of(self.rule)
        self.compiled: set[tuple[Any, ...]] = set()
        self._first_clocks: NDArray[np.int32] | None = None

    @property
    def held(self) -> dict[str, NDArray[Any]]:
        """The arrays that kernels work on, by name."""
        return super().held | ({} if self.clocks is None else {"clocks": self.clocks})

    @property
    def rho_product(self) -> float:
        """The number in :attr:`product`."""
        return float(self.product)

    @property
    def members(self) -> tuple[Slots, ...]:
        """The variables that take a step here: this one."""
        return (self,)

    def lie_at(self, var: FloatArray, slots: Mapping[str, FloatArray] | None = None) -> None:
        """Go on with the same numbers at another place in memory."""
        super().lie_at(var, slots)
        self.compiled.clear()  # the new arrays may have other strides

    def rebind(self, var: FloatArray) -> None:
        """Go on at another array, whose values are new, with the same slots."""
        self.lie_at(var)
        self.part_of = None
        self.small = self.clocks is None and self.fits_batch
        self.changes.everything = True

    def take_over(self, moved: Any) -> None:
        """Go on with arrays of other rows: a :class:`~numba_rmsprop.state.row_moves.Moved`."""
        self.var, self.slots, self.clocks, self.custom, self.folder = moved
        self.shape, self.part_of = self.var.shape, None
        self._forks = launching.forks  # files of the new slots belong to this process
        self._note_arrays()
        self.small = self.clocks is None and self.fits_batch
        self.changes = Changes()
        self._begin()

    def take_form(self, form: Form, slots: Mapping[str, FloatArray]) -> None:
        """Go on with slots of another form."""
        self.form, self.by_row = form, form.by_row and self.var.ndim > 1
        self.slots = dict(slots)
        self._note_arrays()
        self.small = self.small and self.fits_batch
        self.changes.everything = True
        self._begin()

    # Steps

    def add_step(self, calls: list[Call], gradient: Any, numbers: StepNumbers, scale: Any) -> bool:
        """Add the calls of a step, for which all memory is allocated here; return whether they may compile.

        ``gradient`` is one of :mod:`numba_rmsprop.gradients`, and ``scale`` its factor from the clipping of norms. If
        every row must be current, rows that are behind are caught up here; the caller must then look again.
        """
        if self.folder is not None:
            self.check_process()
        if self.clocks is not None and self._must_settle(gradient, numbers):
            self._settle()
        compiles: bool = gradient.add_step(calls, self, numbers, numbers.packed(self.dtype, scale))
        return compiles

    def squares(self, gradient: Any, numbers: StepNumbers) -> list[float]:
        """Return the squared norm of a gradient, duplicates summed and values clipped."""
        return [gradient.squared_norm(self, numbers.packed(self.dtype)[0])]

    def _must_settle(self, gradient: Any, numbers: StepNumbers) -> bool:
        if self.steps + 1 >= CLOCK_LIMIT:
            return True
        if not self.exact or self.floor == self.steps:
            return False
        if gradient.touches_all or self.history.full:
            return True
        rests = numbers.rests
        return rests is not None and rests in self.slots and self.history.had_at_work(rests)

    def _settle(self) -> None:
        """Catch up every row, and start the clocks anew before they pass what an int32 holds."""
        carry_out(self._add_flush)
        if self.steps + 1 >= CLOCK_LIMIT:
            carry_out(self._add_restart)

    def _add_restart(self, calls: list[Call]) -> bool:
        calls.append((self.restore, None, 0, 0, self.history.runs[:0]))
        return True

    def may_compile(self, calls: list[Call], kind: tuple[Any, ...]) -> bool:
        """Return whether calls may compile kernels, which runs Python: if none of their kind was made yet.

        Numba compiles anew for arrays of another layout, and for read-only ones.
        """
        if kind in self.compiled:
            return False
        calls.append((self.compiled.add, kind))
        return True

    def add_dense_notes(self, calls: list[Call]) -> None:
        """Add what notes a step on every row."""
        if not self.changes.everything:
            calls.append((setattr, self, "changes", Changes()))
        if self.clocks is not None or self.rounds_at_random:  # every row is current, whatever its clock says
            steps = self.steps + 1 if self.steps + 1 < CLOCK_LIMIT else 0
            calls += [(setattr, self, "steps", steps), (setattr, self, "floor", steps)]

    def add_sparse(
        self, calls: list[Call], launch: Call, give_back: Sequence[Call], numbers: StepNumbers, kind: tuple[Any, ...]
    ) -> bool:
        """Add a launch that steps some rows, and what notes the step; return whether it may compile.

        ``kind`` tells launches apart for which Numba compiles anew.
        """
        makes_clocks = self.clocks is None
        if makes_clocks:
            calls.append((self.make_clocks,))
        calls.append(launch)
        calls += give_back
        if self.exact:
            calls += self.history.to_note(self.steps, numbers.when_skipped)
        calls.append((setattr, self, "steps", self.steps + 1))
        return self.may_compile(calls, kind) or makes_clocks

    # Rows as kernels take them

    def borrow(
        self,
        indices: NDArray[np.int64] | None,
        *,
        rests: str | None = None,
        catches_up: bool = False,
        copied: bool = False,
    ) -> Borrowed:
        """Return rows as arrays of shape (n, columns), with what writes them back; None for all rows.

        They are views of everything where there are such views, or else copies, or where ``copied`` are wanted. The
        slot that ``rests`` is left out. What a step and a launch that ``catches_up`` round at random is rounded by
        different bits.
        """
        floor = self.floor if self.exact else self.steps  # in lazy mode no row is behind
        number = 2 * self.steps + catches_up
        if self.table is not None and not copied:
            state = self.as_rounded(self.at_work(self.table, rests), number)
            return indices, state, (self.row_clocks(), floor, self.steps), ()
        rows: slice | NDArray[np.int64] = slice(None)
        places = copied_rows = None
        if indices is not None:
            rows, places = copied_rows, places = np.unique(indices, return_inverse=True)
        state, give_back = self._copies(rows, rests)
        clocks = self.row_clocks()[rows].copy()
        give_back.append((setitem, self.row_clocks(), rows, clocks))
        return places, self.as_rounded(state, number, copied_rows), (clocks, floor, self.steps), give_back

    def borrow_all(self, rests: str | None) -> tuple[State, Sequence[Call]]:
        """Return all rows for a dense step, as :meth:`borrow`."""
        if self.table is not None:
            return self.as_rounded(self.at_work(self.table, rests), 2 * self.steps), ()
        state, give_back = self._copies(slice(None), rests)
        return self.as_rounded(state, 2 * self.steps), give_back

    def _copies(self, rows: slice | NDArray[np.int64], rests: str | None) -> tuple[State, list[Call]]:
        """Return copies of rows, and what writes them back."""
        copies: list[FloatArray | None] = []
        give_back: list[Call] = []
        for array in self.at_work(self.state, rests):
            copy = None if array is None else np.array(array[rows], order="C")
            copies.append(None if copy is None else self.rows_in(copy))
            give_back += [] if copy is None else [(setitem, array, rows, copy)]
        return tuple(copies), give_back

    @property
    def missed_steps(self) -> HistoryArrays:
        """The steps that rows may have missed, as kernels take them."""
        return self.history.arrays(self.steps) if self.exact else self.history.unread

    # Row clocks

    def row_clocks(self) -> NDArray[np.int32]:
        """Return the row clocks; before the first sparse step, those that it will have, all 0."""
        if self.clocks is not None:
            return self.clocks
        if self._first_clocks is None:
            self._first_clocks = zeros(self.folder, (len(self.var),), np.dtype(np.int32), "C")
        return self._first_clocks

    @property
    def has_clocks(self) -> bool:
        """True if the variable has row clocks, or will have them after the step that is being prepared."""
        return self.clocks is not None or self._first_clocks is not None

    def make_clocks(self) -> NDArray[np.int32]:
        """Return the row clocks, which the variable has from now on."""
        if self.clocks is None:
            self.clocks, self._first_clocks = self.row_clocks(), None
            self.changes.everything |= self.small  # a batch tells of no step
            self.small = False
            self.layouts.note(clocks=self.clocks)
        return self.clocks

    def restore(self, clocks: NDArray[np.int32] | None, steps: int, floor: int, runs: NDArray[np.float64]) -> None:
        """Take over how far behind the rows of a checkpoint were."""
        self.changes.everything = True  # no clock tells what has changed
        self.clocks, self.steps, self.floor = clocks, steps, floor
        self.layouts.note(clocks=clocks)
        self.small = self.small and clocks is None
        self.history = self.history.fresh()
        self.history.note_runs(runs)

    @property
    def has_rows_behind(self) -> bool:
        """True if a flush has something to do."""
        return self.exact and self.clocks is not None and self.floor < self.steps

    @property
    def has_values_behind(self) -> bool:
        """True if the value of some row may be behind."""
        return self.values_fall_behind and self.has_rows_behind

    @property
    def must_catch_up(self) -> bool:
        """True if some row must be caught up before anybody writes to it."""
        return self.uses_values and self.has_rows_behind

    def was_not_read(self, rows: NDArray[np.int64]) -> bool:
        """Return whether some of these rows are behind, and were so when somebody last read rows."""
        if not self.has_values_behind or self.read_at >= self.steps:
            return False
        due = self.read_at if 0 <= self.read_at >= self.steps - FEW_STEPS else self.steps
        return self.floor < due and bool((self.row_clocks()[rows] < due).any())

    # Catching up

    def flush(self) -> None:
        """Catch up every row."""
        in_turn(carry_out, self._add_flush)

    def pay(self, rows: NDArray[np.int64] | None) -> None:
        """Catch up some rows, or all, before another optimizer reads or writes them."""
        if not self.must_catch_up:
            return
        if rows is None:
            self.flush()
            return
        late = rows[self.row_clocks()[rows] < self.steps]
        if late.size:
            self.catch_up(late)

    def catch_up(self, indices: NDArray[np.int64], out: FloatArray | None = None) -> None:
        """Catch up some rows, after a sparse step, and copy them into ``out`` if there is one."""
        in_turn(carry_out, self._add_catch_up, indices, out)

    def gather(self, indices: NDArray[np.int64], out: FloatArray, *, in_place: bool = True) -> None:
        """Copy current rows into ``out``, shape (n, columns), contiguous; leave those behind as they are if asked.

        The caller holds the lock.
        """
        # Copies leave no trace in the clocks, so that nothing can be said any more about who reads old values.
        self.read_at = self.steps if in_place else CLOCK_LIMIT
        if in_place and self.must_catch_up:
            carry_out(self._add_catch_up, indices, out)
        else:
            whole(self._copy, indices, out)

    def gather_slot(self, slot: str, indices: NDArray[np.int64], out: FloatArray, *, in_place: bool = True) -> None:
        """Copy current rows of a slot into ``out``, as :meth:`gather` those of the variable."""
        if in_place and self.has_rows_behind:
            carry_out(self._add_catch_up, indices, None)
        if not self.has_rows_behind or in_place:
            whole(copy_rows, self.slots[slot], indices, out)
            return
        self.check_process()
        borrowed = self.borrow(indices, catches_up=True, copied=True)
        call_in_one_go([self._catching_up(borrowed, None)])
        places, state, *_ = borrowed
        assert places is not None
        copy_rows(state[1 + self.rule.slots.index(slot)], places, out)

    def pool(self, bags: Bags, out: FloatArray, *, in_place: bool = True) -> None:
        """Write the sum or mean of each bag's current rows into ``out``, shape (bags, columns); as :meth:`gather`."""
        self.read_at = self.steps if in_place else CLOCK_LIMIT
        if not (in_place and self.must_catch_up):
            whole(self._pool, bags, out)
        elif self.table is not None:
            carry_out(self._add_pool, bags, out)
        else:
            copies = self._room_for(bags)
            carry_out(self._add_catch_up, bags.indices, copies)
            pool_rows(copies, bags._replace(indices=np.arange(len(copies))), out)

    def _add_pool(self, calls: list[Call], bags: Bags, out: FloatArray) -> bool:
        assert self.table is not None
        held = self._add_catch_up(calls, bags.indices, None)
        calls.append((sum_bags, team_for(len(bags.indices) * self.columns, fine=True), bags, self.table[0], out))
        return self.may_compile(calls, (sum_bags, bags.weights is None)) or held

    def _pool(self, bags: Bags, out: FloatArray) -> None:
        """Sum up what rows are, or will be once they are caught up."""
        if not self.has_values_behind:
            pool_rows(self.var, bags, out)
            return
        copies = self._room_for(bags)
        self._copy(bags.indices, copies)
        pool_rows(copies, bags._replace(indices=np.arange(len(copies))), out)

    def _room_for(self, bags: Bags) -> FloatArray:
        return np.empty((len(bags.indices), self.columns), self.dtype)

    def _add_catch_up(self, calls: list[Call], indices: NDArray[np.int64], out: FloatArray | None) -> bool:
        if self.folder is not None:
            self.check_process()
        borrowed = self.borrow(indices, catches_up=True)
        call = self._catching_up(borrowed, out)
        calls.append(call)
        calls += borrowed[3]
        return self.may_compile(calls, (call[0], None if out is None else out.dtype.char))

    def _copy(self, indices: NDArray[np.int64], out: FloatArray) -> None:
        """Copy what rows are, or will be once they are caught up."""
        if not self.has_values_behind:
            copy_rows(self.var, indices, out)
            return
        self.check_process()
        call_in_one_go([self._catching_up(self.borrow(indices, catches_up=True, copied=True), out)])

    def _catching_up(self, borrowed: Borrowed, out: FloatArray | None) -> Call:
        places, state, ages, _ = borrowed
        assert places is not None
        team = team_for(len(places) * self.columns)
        written = None if out is None else as_stored(out)
        return self.kernels.gather_catching_up, team, places, written, state, ages, self.missed_steps

    def _add_flush(self, calls: list[Call]) -> bool | None:
        if self.clocks is None or self.floor == self.steps or not self.exact:
            return None
        self.check_process()
        _, state, ages, give_back = self.borrow(None, catches_up=True)
        team = team_for(self.var.size, fine=True)
        calls.append((self.kernels.flush_rows, team, state, ages, self.missed_steps))
        calls += give_back
        changes = self.changes.after_flush(self.clocks, self.steps, self.history.runs)
        calls.append((setattr, self, "changes", changes))
        calls.append((setattr, self, "floor", self.steps))
        calls.append((setattr, self, "history", self.history.fresh()))
        return True
