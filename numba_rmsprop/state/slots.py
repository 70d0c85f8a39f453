"""The state of one variable: rms, momentum, mg, and how far behind each row is."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from operator import setitem
from typing import Any, Literal, TypeAlias
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ..arrays.noted_layouts import Layouts, refuse_read_only
from ..arrays.variables import FloatArray, as_lines, as_table, describe
from ..gradients.kinds import CSR, Dense, Gradient, Rows
from ..kernels.catching_up import (
    catch_up_rows,
    copy_share,
    flush_rows,
    gather_catching_up,
    gather_owned,
    gather_rows,
)
from ..kernels.csr import step_csr, step_csr_serial
from ..kernels.dense import step_dense, step_lines
from ..kernels.numpy_layout import MOVED, READ_ONLY
from ..kernels.rows import step_rows, step_share
from ..runtime import launching
from ..runtime.interrupts import Call, call_in_one_go
from ..runtime.launching import row_links, row_scratch, workers_for, worth_a_launch
from ..runtime.locking import carry_out, in_turn, whole
from ..settings.step_numbers import StepRates
from .changed_rows import Changes
from .skipped_steps import Arrays, History

State: TypeAlias = tuple[FloatArray, FloatArray, FloatArray | None, FloatArray | None]
Ages: TypeAlias = tuple[NDArray[np.int32], int, int]
Entries: TypeAlias = tuple[NDArray[np.int64] | None, FloatArray]
Selection: TypeAlias = slice | NDArray[np.int64]

EVERYTHING = slice(None)
CLOCK_LIMIT = np.iinfo(np.int32).max - 1

SMALL_ITEMS = 16_384
"""Up to this many elements, variables are stepped together in one launch, for a copy of their gradients."""


FEW_STEPS = 3
"""So many steps may follow one gather: those of the parts of a batch."""


DERIVED = ("_table", "_seen", "_first_clocks", "_compiled", "layouts", "part_of")
"""What does not go into a copy or a pickle."""


class Slots:
    """The slots of one variable, and its steps.

    In exact mode a sparse step leaves the rows it does not touch as they are and lets their clocks tell how many
    steps they have missed; whatever needs them later catches them up by the factors of the gap. Clocks count the
    variable's own steps: a call without a gradient for it is no step of the dense algorithm either.

    Parameters
    ----------
    var : ndarray
        The variable, as :func:`~numba_rmsprop.arrays.variables.as_variable` accepts it.
    name : str
        What messages call it.
    momentum, centered : bool
        Which slots there are beside rms.
    exact : bool
        Whether rows are caught up (exact mode) or left behind (lazy mode).
    decays : bool
        Whether there is weight decay, so that the value of an untouched row moves.
    folder : path-like or None
        Where files hold the slots; None for memory.
    arrays : mapping of str to ndarray, optional
        The slots themselves, where they are another's: writable, of the variable's shape.

    Attributes
    ----------
    since : int
        How many steps its optimizer had taken when the variable was first seen.
    part_of : weak reference to ndarray, or None
        The program's own array that the variable is a view of, where that is not its ``base``.
    read_at : int
        Before which step the variable's rows were last read through the optimizer; -1 if they never were.
    owes : bool
        Whether other optimizers on the same memory must ask for what rows have missed; torch's door asks by itself.
    """

    since = 0
    part_of: ref[NDArray[Any]] | None = None
    read_at = -1
    owes = False

    def __init__(
        self,
        var: FloatArray,
        name: str,
        *,
        momentum: bool,
        centered: bool,
        exact: bool,
        decays: bool,
        folder: str | os.PathLike[str] | None = None,
        arrays: Mapping[str, FloatArray] | None = None,
    ) -> None:
        self.var = var
        self.name = name
        self.shape = var.shape
        self.dtype = var.dtype if arrays is None else arrays["rms"].dtype
        self.small = _is_small(var)
        self.exact = exact
        self.values_fall_behind = exact and (momentum or decays)
        self.owes = self.values_fall_behind and arrays is None  # others pay for themselves
        self.folder = None if var.size <= SMALL_ITEMS else folder
        self._forks = launching.forks
        order: Literal["C", "F"] = "F" if var.flags.f_contiguous and not var.flags.c_contiguous else "C"

        def slot(name: str) -> FloatArray:
            return zeros(self.folder, var.shape, var.dtype, order) if arrays is None else arrays[name]

        self.rms = slot("rms")
        self.momentum = slot("momentum") if momentum else None
        self.mg = slot("mg") if centered else None
        self.custom: dict[str, NDArray[Any]] = {}
        self.steps = 0
        self.floor = 0
        self.clocks: NDArray[np.int32] | None = None
        self._first_clocks: NDArray[np.int32] | None = None
        self._seen: NDArray[np.uint8] | None = None
        self.history = History(self.dtype)
        self.changes = Changes()
        self._table = self._as_table()
        self.layouts = Layouts(**self._held)
        self._links = row_links(0)
        self._scratch = row_scratch(0, np.empty((0, 0), self.dtype))
        self._sums = np.zeros((0, 0), self.dtype)
        self._compiled: set[tuple[Any, ...]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._seen = self._first_clocks = None
        self._compiled = set()
        self.folder = None  # what is copied or unpickled lies in memory, and belongs to this process
        self._table = self._as_table()  # views of the arrays as they were copied or unpickled
        self.layouts = Layouts(**self._held)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every slot by name, in the order of ``get_weights``."""
        named = {"rms": self.rms, "momentum": self.momentum, "mg": self.mg}
        return {name: array for name, array in named.items() if array is not None} | self.custom

    def lie_at(self, var: FloatArray, arrays: Mapping[str, FloatArray]) -> None:
        """Go on with the same numbers at another place in memory."""
        self.var, self.rms = var, arrays["rms"]
        self.momentum = None if self.momentum is None else arrays["momentum"]
        self.mg = None if self.mg is None else arrays["mg"]
        self._table = self._as_table()
        self.layouts = Layouts(**self._held)

    def check_memory(self, *, written: bool) -> None:
        """Raise ValueError if an array was changed in place since, or may not be ``written`` and is to be."""
        found = self.layouts.look()
        if found & MOVED:
            self.refuse_moved()
        if written and found & READ_ONLY:
            refuse_read_only(self._held, describe(self.name, self.var))

    def refuse_moved(self) -> None:
        """Raise ValueError if an array was changed in place since; in Python alone, for callers that launch nothing."""
        self.layouts.refuse_moved(self._held, self.name)

    @property
    def occupied(self) -> list[NDArray[Any]]:
        """What steps write, and what belongs to it."""
        return [*self._held.values(), *self.custom.values()]

    @property
    def _held(self) -> dict[str, NDArray[Any]]:
        """The arrays that kernels work on, by name."""
        named = {"var": self.var, "rms": self.rms, "momentum": self.momentum, "mg": self.mg, "clocks": self.clocks}
        return {name: array for name, array in named.items() if array is not None}

    def rebind(self, var: FloatArray) -> None:
        """Go on at another array, whose values are new, with the same slots."""
        self.lie_at(var, self.arrays)
        self.part_of = None
        self.small = self.clocks is None and _is_small(var) and _is_small(self.rms)
        self.changes.everything = True

    def own_references(self) -> list[Any]:
        """Return what the slots hold of the variable's memory, each as often as they do."""
        table = [] if self._table is None else [self._table[0].base]
        return [self.var, *([] if self.var.base is None else [self.var.base]), *table]

    def add_step(self, calls: list[Call], gradient: Gradient, rates: StepRates, scale: float) -> bool:
        """Add what a step comes to, for which all memory is allocated here; return whether it may compile.

        ``scale`` is what the clipping of norms leaves of the gradient. Where a step goes on from all rows, those behind
        are caught up here, which makes the caller's look worthless.
        """
        if self.folder is not None:
            self.check_process()
        if self.clocks is not None and self._must_settle(gradient, rates):
            self._settle()
        packed = rates.packed(self.dtype, scale)
        if isinstance(gradient, Dense):
            return self._add_dense(calls, gradient, rates, packed)
        return self._add_sparse(calls, gradient, rates, packed)

    def _must_settle(self, gradient: Gradient, rates: StepRates) -> bool:
        if self.steps + 1 >= CLOCK_LIMIT:
            return True
        if not self.exact or self.floor == self.steps:
            return False
        if isinstance(gradient, Dense) or self.history.full:
            return True
        return rates.momentum_rests and self.momentum is not None and self.history.has_momentum

    def _settle(self) -> None:
        """Catch up every row, and start the clocks anew before they pass what an int32 holds."""
        carry_out(self._add_flush)
        if self.steps + 1 >= CLOCK_LIMIT:
            carry_out(self._add_restart)

    def _add_restart(self, calls: list[Call]) -> bool:
        calls.append((self.restore, None, 0, 0, self.history.runs[:0]))
        return True

    def _may_compile(self, calls: list[Call], *kind: object) -> bool:
        """Return whether calls may compile kernels, which runs Python: if none of their kind was made yet."""
        if kind in self._compiled:
            return False
        calls.append((self._compiled.add, kind))
        return True

    def check_process(self) -> None:
        """Raise RuntimeError in a process that was forked since: files of slots are one for both."""
        if self.folder is not None and self._forks != launching.forks:
            raise RuntimeError(
                f"{describe(self.name, self.var)}: its slots are in files (slots_folder) that the parent process uses; "
                "in a forked process, make an optimizer of its own, or RMSprop.load what was saved"
            )

    def flush(self) -> None:
        """Catch up every row."""
        in_turn(carry_out, self._add_flush)

    def gather(self, indices: NDArray[np.int64], out: FloatArray, *, in_place: bool = True) -> None:
        """Copy current rows into ``out``, shape (n, columns), contiguous; leave those behind as they are if asked.

        For a call in its turn.
        """
        # Copies leave no trace in the clocks, so that nothing can be said any more about who reads old values.
        self.read_at = self.steps if in_place else CLOCK_LIMIT
        if in_place and self.has_values_behind:
            carry_out(self._add_catch_up, indices, out)
        else:
            whole(self._copy, indices, out)

    @property
    def has_rows_behind(self) -> bool:
        """Whether a flush has something to do."""
        return self.exact and self.clocks is not None and self.floor < self.steps

    @property
    def has_values_behind(self) -> bool:
        """Whether there may be rows whose value is behind."""
        return self.values_fall_behind and self.has_rows_behind

    def was_not_read(self, gradient: Rows | CSR) -> bool:
        """Return whether a gradient has rows that are behind, and were so when somebody last read rows."""
        if not self.has_values_behind or self.read_at >= self.steps:
            return False
        due = self.read_at if 0 <= self.read_at >= self.steps - FEW_STEPS else self.steps
        late = self.row_clocks()[touched_rows(gradient)] < due
        return self.floor < due and bool(late.any())

    def pay(self, rows: NDArray[np.int64] | None) -> None:
        """Catch up some rows, or all, before another optimizer reads or writes them."""
        if not self.has_values_behind:
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

    def _add_catch_up(self, calls: list[Call], indices: NDArray[np.int64], out: FloatArray | None) -> bool:
        if self.folder is not None:
            self.check_process()
        rows, places, state, clocks = self._borrow(indices)
        call = self._catching_up(places, out, state, clocks)
        calls.append(call)
        if self._table is None:
            self._add_give_back(calls, rows, state, clocks)
        return self._may_compile(calls, call[0], out is None)

    def _catching_up(
        self, places: NDArray[np.int64] | None, out: FloatArray | None, state: State, clocks: NDArray[np.int32]
    ) -> Call:
        assert places is not None
        ages, history = (clocks, self.floor, self.steps), self.history.arrays(self.steps)
        workers = workers_for(len(places) * state[0].shape[1])
        if workers == 1:
            return gather_owned, 0, 1, places, out, state, ages, history
        return gather_catching_up, workers, places, out, state, ages, history

    def _copy(self, indices: NDArray[np.int64], out: FloatArray) -> None:
        """Copy what rows are, or will be once they are caught up."""
        if not self.has_values_behind:
            copy_rows(self.var, indices, out)
            return
        self.check_process()
        rows, places = np.unique(indices, return_inverse=True)
        call_in_one_go([self._catching_up(places, out, *self._copies(rows))])

    def _add_flush(self, calls: list[Call]) -> bool | None:
        if self.clocks is None or self.floor == self.steps or not self.exact:
            return None
        self.check_process()
        _, _, state, clocks = self._borrow()
        ages, history = (clocks, self.floor, self.steps), self.history.arrays(self.steps)
        if worth_a_launch(self.var.size):
            calls.append((flush_rows, state, ages, history))
        else:
            calls.append((catch_up_rows, 0, len(clocks), state, ages, history))
        if self._table is None:
            self._add_give_back(calls, EVERYTHING, state, clocks)
        changes = self.changes.after_flush(self.clocks, self.steps, self.history.runs)
        calls.append((setattr, self, "changes", changes))
        calls.append((setattr, self, "floor", self.steps))
        calls.append((setattr, self, "history", History(self.dtype)))
        return True

    def row_clocks(self) -> NDArray[np.int32]:
        """Return the row clocks; before the first sparse step, those that it will have, all 0."""
        if self.clocks is not None:
            return self.clocks
        if self._first_clocks is None:
            self._first_clocks = zeros(self.folder, (len(self.var),), np.dtype(np.int32), "C")
        return self._first_clocks

    @property
    def has_clocks(self) -> bool:
        """Whether the variable has row clocks, or will from the step on that is being looked at."""
        return self.clocks is not None or self._first_clocks is not None

    def make_clocks(self) -> NDArray[np.int32]:
        """Return the row clocks, which the variable has from now on."""
        if self.clocks is None:
            self.clocks, self._first_clocks = self.row_clocks(), None
            self.changes.everything |= self.small  # a batch tells of no step
            self.small = False
            self.layouts.note(clocks=self.clocks)
        return self.clocks

    def seen(self) -> NDArray[np.uint8]:
        """Return a bit for each row, all 0, for kernels that look for duplicates."""
        if self._seen is None:
            self._seen = np.zeros(len(self.var) // 8 + 1, np.uint8)
        return self._seen

    def restore(self, clocks: NDArray[np.int32] | None, steps: int, floor: int, runs: NDArray[np.float64]) -> None:
        """Take over how far behind the rows of a checkpoint were."""
        self.changes.everything = True  # no clock tells what has changed
        self.clocks, self.steps, self.floor = clocks, steps, floor
        self.layouts.note(clocks=clocks)
        self.small = self.small and clocks is None
        self.history = History(self.dtype)
        self.history.note_runs(runs)

    @property
    def _state(self) -> State:
        return self.var, self.rms, self.mg, self.momentum

    def _as_table(self) -> State | None:
        """Return the state as arrays of shape (rows, columns), or None where an array cannot be viewed so."""
        var, rms, mg, momentum = (None if array is None else as_table(array) for array in self._state)
        if var is None or rms is None:
            return None
        return var, rms, mg, momentum

    def _borrow(
        self, indices: NDArray[np.int64] | None = None
    ) -> tuple[Selection, NDArray[np.int64] | None, State, NDArray[np.int32]]:
        """Return which rows are borrowed for ``indices`` (None for all), where those stand, and state and clocks.

        The state is in arrays of shape (n, columns): views of everything where there are such views. Only a strided
        variable of three axes or more has none: then copies, which :meth:`_add_give_back` has written back.
        """
        if self._table is not None:
            return EVERYTHING, indices, self._table, self.row_clocks()
        if indices is None:
            return EVERYTHING, None, *self._copies(EVERYTHING)
        rows, places = np.unique(indices, return_inverse=True)
        return rows, places, *self._copies(rows)

    def _copies(self, rows: Selection) -> tuple[State, NDArray[np.int32]]:
        var, rms, mg, momentum = (None if array is None else _copy_as_table(array[rows]) for array in self._state)
        assert var is not None
        assert rms is not None
        return (var, rms, mg, momentum), self.row_clocks()[rows].copy()

    def _add_give_back(self, calls: list[Call], rows: Selection, state: State, clocks: NDArray[np.int32]) -> None:
        """Add what writes borrowed copies back."""
        for array, copied in zip(self._state, state, strict=True):
            if array is not None and copied is not None:
                calls.append((setitem, array, rows, copied.reshape(len(copied), *array.shape[1:])))
        calls.append((setitem, self.row_clocks(), rows, clocks))

    def _add_dense(self, calls: list[Call], gradient: Dense, rates: StepRates, packed: FloatArray) -> bool:
        for grad, *state in as_lines(gradient.values, *_at_work(self._state, rates)):
            assert grad is not None
            if worth_a_launch(grad.size):
                calls.append((step_dense, grad, tuple(state), packed))
            elif grad.size:
                calls.append((step_lines, 0, len(grad), grad, tuple(state), packed))
        if not self.changes.everything:
            calls.append((setattr, self, "changes", Changes()))
        if self.clocks is not None:  # every row is current, whatever its clock says
            calls += [(setattr, self, "steps", self.steps + 1), (setattr, self, "floor", self.steps + 1)]
        return self._may_compile(calls, Dense, workers_for(gradient.values.size) > 1, rates.momentum_rests)

    def _add_sparse(self, calls: list[Call], gradient: Rows | CSR, rates: StepRates, packed: FloatArray) -> bool:
        rows, places, state, clocks = self._borrow(gradient.indices if isinstance(gradient, Rows) else None)
        ages = clocks, self.floor, self.steps
        history = self.history.arrays(self.steps) if self.exact else None
        if isinstance(gradient, Rows):
            call = self._rows_call((places, gradient.values), _at_work(state, rates), ages, history, packed)
        else:
            call = self._csr_call(gradient, _at_work(state, rates), ages, history, packed)
        makes_clocks = self.clocks is None
        if makes_clocks:
            calls.append((self.make_clocks,))
        calls.append(call)
        if self._table is None:
            self._add_give_back(calls, rows, state, clocks)
        if self.exact:
            calls += self.history.to_note(self.steps, rates.when_skipped)
        calls.append((setattr, self, "steps", self.steps + 1))
        return self._may_compile(calls, call[0], rates.momentum_rests) or makes_clocks

    def _rows_call(self, entries: Entries, state: State, ages: Ages, history: Arrays | None, rates: FloatArray) -> Call:
        values = entries[1]
        if len(self._links[0]) != len(values):
            self._links = row_links(len(values))
        workers = workers_for(values.size)
        if len(self._scratch[2]) != workers:
            self._scratch = row_scratch(workers, values)
        links = self.seen(), *self._links
        if workers == 1:
            return step_share, 0, 1, entries, state, ages, history, rates, links, self._scratch
        return step_rows, workers, entries, state, ages, history, rates, links, self._scratch

    def _csr_call(self, gradient: CSR, state: State, ages: Ages, history: Arrays | None, rates: FloatArray) -> Call:
        matrix = gradient.indptr, gradient.indices, gradient.values
        workers = workers_for(gradient.values.size)
        if self._sums.shape != (workers, state[0].shape[1]):
            self._sums = np.zeros((workers, state[0].shape[1]), self.dtype)
        if workers == 1:
            return step_csr_serial, matrix, state, ages, history, rates, self._sums
        return step_csr, workers, matrix, state, ages, history, rates, self._sums


def zeros(
    folder: str | os.PathLike[str] | None, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"]
) -> NDArray[Any]:
    """Return zeros whose pages come to be when they are first touched, in memory or in a file without a name."""
    if folder is None or math.prod(shape) == 0:
        return np.zeros(shape, dtype, order)  # np.zeros_like would write every page
    # The file goes when the arrays that map it do, also where the process is killed.
    with tempfile.TemporaryFile(dir=folder, prefix="numba_rmsprop-") as file:
        if hasattr(os, "posix_fallocate"):  # where a disk is full, to write a page that has no place ends the process
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape, order=order))


def touched_rows(gradient: Rows | CSR) -> NDArray[np.int64]:
    """Return the rows of a sparse gradient."""
    return gradient.indices if isinstance(gradient, Rows) else np.flatnonzero(np.diff(gradient.indptr))


def _is_small(array: FloatArray) -> bool:
    return 0 < array.size <= SMALL_ITEMS and array.flags.c_contiguous


def _at_work(state: State, rates: StepRates) -> State:
    """Return what a step reads and writes of a state."""
    return (*state[:3], None) if rates.momentum_rests else state


def _copy_as_table(array: FloatArray) -> FloatArray:
    table = as_table(np.ascontiguousarray(array))
    assert table is not None, "the rows of a contiguous array are contiguous"
    return table


def copy_rows(var: FloatArray, indices: NDArray[np.int64], out: FloatArray) -> None:
    """Copy ``var[indices]`` into ``out``, shape (n, columns), contiguous."""
    table = var if var.ndim == 2 else as_table(var)
    if table is None or not var.flags.writeable:  # for which the kernel would be compiled anew
        out[...] = var[indices].reshape(out.shape)
        return
    workers = workers_for(out.size)
    if workers == 1:
        copy_share(0, 1, indices, out, table)
        return
    in_turn(gather_rows, workers, indices, out, table)
