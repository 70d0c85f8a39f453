"""The state of one variable: rms, momentum, mg, and how far behind each row is."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import threads
from .changes import Changes
from .gradients import CSR, Dense, Gradient, Rows
from .history import Arrays, History
from .interrupts import Call, Uninterrupted, call_in_one_go
from .kernels.arrays import MOVED, READ_ONLY
from .kernels.catching_up import (
    catch_up_rows,
    copy_share,
    flush_rows,
    gather_catching_up,
    gather_owned,
    gather_rows,
)
from .kernels.csr import step_csr, step_csr_serial
from .kernels.dense import step_dense, step_lines
from .kernels.rows import step_rows, step_share
from .layouts import Layouts, refuse_read_only
from .rates import StepRates
from .threads import launch_lock, row_links, row_scratch, workers_for, worth_a_launch
from .variables import FloatArray, as_lines, as_table, describe

State: TypeAlias = tuple[FloatArray, FloatArray, FloatArray | None, FloatArray | None]
Ages: TypeAlias = tuple[NDArray[np.int32], int, int]
Entries: TypeAlias = tuple[NDArray[np.int64], FloatArray]
Selection: TypeAlias = slice | NDArray[np.int64]

EVERYTHING = slice(None)
CLOCK_LIMIT = np.iinfo(np.int32).max - 1

SMALL_ITEMS = 16_384
"""Up to this many elements, variables are stepped together in one launch, for a copy of their gradients."""


class Slots:
    """The slots of one variable, and its steps.

    In exact mode a sparse step leaves the rows it does not touch as they are and lets their clocks tell how many
    steps they have missed; whatever needs them later catches them up by the factors of the gap. Clocks count the
    variable's own steps: a call without a gradient for it is no step of the dense algorithm either.

    Parameters
    ----------
    var : ndarray
        The variable, as :func:`~numba_rmsprop.variables.as_variable` accepts it.
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
    """

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
        self.small = 0 < var.size <= SMALL_ITEMS and var.flags.c_contiguous
        self.exact = exact
        self.values_fall_behind = exact and (momentum or decays)
        self.folder = None if var.size <= SMALL_ITEMS else folder
        self._forks = threads.forks
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
        self._seen: NDArray[np.uint8] | None = None
        self.history = History(self.dtype)
        self.changes = Changes()
        self._table = self._as_table()
        self.layouts = Layouts(**self._held)
        self._links = row_links(0)
        self._scratch = row_scratch(0, np.empty((0, 0), self.dtype))
        self._sums = np.zeros((0, 0), self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "_seen", "layouts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._seen = None
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

    def step(self, gradient: Gradient, rates: StepRates, scale: float) -> None:
        """Apply one step; ``scale`` is what the clipping of norms leaves of the gradient."""
        packed = rates.packed(self.dtype, scale)
        with launch_lock:
            if isinstance(gradient, Dense):
                self._step_dense(gradient, rates, packed)
            else:
                self._step_sparse(gradient, rates, packed)

    def prepare(self, gradient: Gradient) -> None:
        """Allocate what a step takes; for all variables of a call, before the step of the first begins."""
        if self.folder is not None:
            self.check_process()
        if isinstance(gradient, Dense):
            return
        self.row_clocks()
        if self.exact:
            self.history.make_room()
        if isinstance(gradient, Rows):
            self.seen()
            values = gradient.values
            if len(self._links[0]) != len(values):
                self._links = row_links(len(values))
            workers = workers_for(values.size)
            if len(self._scratch[2]) != workers:
                self._scratch = row_scratch(workers, values)
        else:
            wanted = workers_for(gradient.values.size), math.prod(self.shape[1:])
            if self._sums.shape != wanted:
                self._sums = np.zeros(wanted, self.dtype)

    def check_process(self) -> None:
        """Raise RuntimeError in a process that was forked since: files of slots are one for both."""
        if self.folder is not None and self._forks != threads.forks:
            raise RuntimeError(
                f"{describe(self.name, self.var)}: its slots are in files (slots_folder) that the parent process uses; "
                "in a forked process, make an optimizer of its own, or RMSprop.load what was saved"
            )

    def calls(self, gradient: Gradient, rates: StepRates, scale: float) -> list[Call] | None:
        """Return what :meth:`step` comes to, where that is one kernel and a number; None where it is more."""
        if not isinstance(gradient, Rows) or self._table is None or self.steps + 1 >= CLOCK_LIMIT:
            return None
        if self._must_flush(rates):
            return None
        if self.exact and not self.history.has(rates):
            return None
        self.prepare(gradient)
        history = self.history.arrays(self.steps) if self.exact else None
        ages = self.row_clocks(), self.floor, self.steps
        entries = gradient.indices, gradient.values
        step = self._rows_call(entries, _at_work(self._table, rates), ages, history, rates.packed(self.dtype, scale))
        return [step, (setattr, self, "steps", self.steps + 1)]

    def flush(self) -> None:
        """Catch up every row."""
        with launch_lock:
            if self.clocks is None or self.floor == self.steps or not self.exact:
                return
            self.check_process()
            state, clocks = self._borrow(EVERYTHING)
            ages, history = (clocks, self.floor, self.steps), self.history.arrays(self.steps)
            with Uninterrupted():
                self.changes.note_flush(self.clocks, self.steps, self.history.runs)
                if worth_a_launch(self.var.size):
                    flush_rows(state, ages, history)
                else:
                    catch_up_rows(0, len(clocks), state, ages, history)
                if self._table is None:
                    self._give_back(EVERYTHING, state, clocks)
                self.floor = self.steps
                self.history.clear()

    def gather(self, indices: NDArray[np.int64], out: FloatArray, *, in_place: bool = True) -> None:
        """Copy current rows into ``out``, shape (n, columns), contiguous; leave those behind as they are if asked."""
        with launch_lock:
            if self.has_values_behind and not in_place:
                self._copy_caught_up(indices, out)
            elif self.has_values_behind:
                self.catch_up(indices, out)
            else:
                copy_rows(self.var, indices, out)

    @property
    def has_rows_behind(self) -> bool:
        """Whether a flush has something to do."""
        return self.exact and self.clocks is not None and self.floor < self.steps

    @property
    def has_values_behind(self) -> bool:
        """Whether there may be rows whose value is behind."""
        return self.values_fall_behind and self.has_rows_behind

    def catch_up(self, indices: NDArray[np.int64], out: FloatArray | None = None) -> None:
        """Catch up some rows, after a sparse step, and copy them into ``out`` if there is one."""
        with launch_lock:
            self.check_process()
            rows, places = self._reach(indices)
            state, clocks = self._borrow(rows)
            ages, history = (clocks, self.floor, self.steps), self.history.arrays(self.steps)
            if self._table is not None:
                _catch_up_and_copy(places, out, state, ages, history)  # one kernel, which nothing interrupts
                return
            with Uninterrupted():
                _catch_up_and_copy(places, out, state, ages, history)
                self._give_back(rows, state, clocks)

    def _copy_caught_up(self, indices: NDArray[np.int64], out: FloatArray) -> None:
        """Copy what rows will be once they are caught up."""
        self.check_process()
        rows, places = np.unique(indices, return_inverse=True)
        var, rms, mg, momentum = (None if array is None else _copy_as_table(array[rows]) for array in self._state)
        assert var is not None
        assert rms is not None
        ages, history = (self.row_clocks()[rows], self.floor, self.steps), self.history.arrays(self.steps)
        _catch_up_and_copy(places, out, (var, rms, mg, momentum), ages, history)

    def row_clocks(self) -> NDArray[np.int32]:
        """Return the row clocks, made when they are first needed."""
        if self.clocks is None:
            self.clocks = zeros(self.folder, (len(self.var),), np.dtype(np.int32), "C")
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
        self.history.clear()
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

    def _reach(self, indices: NDArray[np.int64]) -> tuple[Selection, NDArray[np.int64]]:
        """Return which rows to borrow for ``indices``, and where those stand among them."""
        if self._table is not None:
            return EVERYTHING, indices
        rows, places = np.unique(indices, return_inverse=True)
        return rows, places

    def _borrow(self, rows: Selection) -> tuple[State, NDArray[np.int32]]:
        """Return the state of ``rows`` as arrays of shape (n, columns), and their clocks.

        Views of everything where there are such views. Only a strided variable of three axes or more has none: then
        copies, which :meth:`_give_back` writes back.
        """
        table, clocks = self._table, self.row_clocks()
        if table is not None:
            return table, clocks
        var, rms, mg, momentum = (None if array is None else _copy_as_table(array[rows]) for array in self._state)
        assert var is not None
        assert rms is not None
        return (var, rms, mg, momentum), clocks[rows]

    def _give_back(self, rows: Selection, state: State, clocks: NDArray[np.int32]) -> None:
        for array, copied in zip(self._state, state, strict=True):
            if array is not None and copied is not None:
                array[rows] = copied.reshape(len(copied), *array.shape[1:])
        self.row_clocks()[rows] = clocks

    def _step_dense(self, gradient: Dense, rates: StepRates, packed: FloatArray) -> None:
        self.check_process()
        self.changes.everything = True
        self.flush()
        for grad, *state in as_lines(gradient.values, *_at_work(self._state, rates)):
            assert grad is not None
            if worth_a_launch(grad.size):
                step_dense(grad, tuple(state), packed)
            elif grad.size:
                step_lines(0, len(grad), grad, tuple(state), packed)
        if self.clocks is not None:
            self.steps += 1
            self.floor = self.steps  # every row is current, whatever its clock says
            self._rebase_if_due()

    def _step_sparse(self, gradient: Rows | CSR, rates: StepRates, packed: FloatArray) -> None:
        self.prepare(gradient)
        if self._must_flush(rates):
            self.flush()
        history = self.history.arrays(self.steps) if self.exact else None
        rows: Selection = EVERYTHING
        if isinstance(gradient, Rows):
            rows, places = self._reach(gradient.indices)
            state, clocks = self._borrow(rows)
            ages = clocks, self.floor, self.steps
            at_work = _at_work(state, rates)
            call_in_one_go([self._rows_call((places, gradient.values), at_work, ages, history, packed)])
        else:
            state, clocks = self._borrow(rows)
            self._launch_csr(gradient, _at_work(state, rates), (clocks, self.floor, self.steps), history, packed)
        if self._table is None:
            self._give_back(rows, state, clocks)
        if self.exact:
            self.history.note(self.steps, rates.when_skipped)
        self.steps += 1
        if self.history.full:
            self.flush()
        self._rebase_if_due()

    def _must_flush(self, rates: StepRates) -> bool:
        """Return whether a step goes without a momentum that touched rows must be caught up with first."""
        return rates.momentum_rests and self.momentum is not None and self.exact and self.history.has_momentum

    def _rows_call(self, entries: Entries, state: State, ages: Ages, history: Arrays | None, rates: FloatArray) -> Call:
        workers = len(self._scratch[2])
        links = self.seen(), *self._links
        if workers == 1:
            return step_share, 0, 1, entries, state, ages, history, rates, links, self._scratch
        return step_rows, workers, entries, state, ages, history, rates, links, self._scratch

    def _launch_csr(self, gradient: CSR, state: State, ages: Ages, history: Arrays | None, rates: FloatArray) -> None:
        matrix = gradient.indptr, gradient.indices, gradient.values
        workers = len(self._sums)
        if workers == 1:
            step_csr_serial(matrix, state, ages, history, rates, self._sums)
        else:
            step_csr(workers, matrix, state, ages, history, rates, self._sums)

    def _rebase_if_due(self) -> None:
        """Start the clocks anew before they pass what an int32 holds."""
        if self.steps >= CLOCK_LIMIT:
            self.flush()
            self.restore(None, 0, 0, self.history.runs[:0])


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


def _at_work(state: State, rates: StepRates) -> State:
    """Return what a step reads and writes of a state."""
    return (*state[:3], None) if rates.momentum_rests else state


def _catch_up_and_copy(
    places: NDArray[np.int64], out: FloatArray | None, state: State, ages: Ages, history: Arrays
) -> None:
    workers = workers_for(len(places) * state[0].shape[1])
    if workers == 1:
        gather_owned(0, 1, places, out, state, ages, history)
    else:
        gather_catching_up(workers, places, out, state, ages, history)


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
    with launch_lock:
        gather_rows(workers, indices, out, table)
