"""The arrays of one variable and its slots: where they lie, and how kernels see them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ..arrays.noted_layouts import Layouts, refuse_read_only
from ..arrays.storage import FLOAT32, HALVES, as_stored, computed_in
from ..arrays.variables import FloatArray, as_table, describe
from ..kernels.numpy_layout import MOVED, READ_ONLY
from ..kernels.rule import Rule
from ..runtime import launching
from ..settings.form import USUAL, Form

State: TypeAlias = tuple[Any, ...]
"""The variable and its slots, in the order of the rule; None for a slot that there is not. As kernels take it, there is
one more item: see :mod:`numba_rmsprop.kernels.state`."""

SMALL_ITEMS = 16_384
"""Up to this many elements, variables are stepped together in one launch, for a copy of their gradients."""

DERIVED = ("state", "table", "layouts", "part_of", "rounds_at_random")
"""Attributes that are left out of copies and pickles."""


class SlotArrays:
    """A variable and its slots in memory.

    Parameters
    ----------
    var : ndarray
        The variable, as :func:`~numba_rmsprop.arrays.variables.as_variable` accepts it.
    name : str
        What messages call it.
    rule : Rule
        The optimizer's rule.
    slots : iterable of str
        Which of the rule's slots there are.
    folder : path-like or None
        Where files hold the slots; None for memory.
    arrays : mapping of str to ndarray, optional
        The slots themselves, where they are another's: writable, of the variable's shape, or (rows,).
    form : Form, optional
        The form of the slots.

    Attributes
    ----------
    columns : int
        Elements to a row.
    state : tuple
        The variable and its slots, as kernels take them.
    table : tuple or None
        The same as views of shape (rows, columns), or (rows,); None where an array has no such view.
    dtype : numpy dtype
        What steps are computed in. The variable and its slots may be stored in others.
    by_row : bool
        Whether a slot has one number for each row.
    rounds_at_random : bool
        Whether numbers are rounded at random when they are written.
    custom : dict of str to ndarray
        Slots that the program has added.
    part_of : weak reference to ndarray, or None
        The program's own array that the variable is a view of, where that is not its ``base``.
    """

    part_of: ref[NDArray[Any]] | None = None

    def __init__(
        self,
        var: FloatArray,
        name: str,
        rule: Rule,
        slots: tuple[str, ...],
        folder: str | os.PathLike[str] | None = None,
        arrays: Mapping[str, FloatArray] | None = None,
        form: Form = USUAL,
    ) -> None:
        self.var = var
        self.name = name
        self.rule = rule
        self.shape = var.shape
        self.columns = math.prod(var.shape[1:])
        self.folder = None if var.size <= SMALL_ITEMS else folder
        self._forks = launching.forks
        self.form = form
        self.dtype: np.dtype[Any] = computed_in(var.dtype)
        # A row of a variable of one axis is one element, so there is no difference.
        self.by_row = form.by_row and var.ndim > 1
        if arrays is None:
            order: Literal["C", "F"] = "F" if var.flags.f_contiguous and not var.flags.c_contiguous else "C"
            kinds = {slot: kind_of(slot, rule, var.shape, var.dtype, form) for slot in slots}
            arrays = {slot: zeros(self.folder, shape, dtype, order) for slot, (shape, dtype) in kinds.items()}
            for slot, start in form.starts:
                arrays[slot][...] = start
            for slot in slots:
                if slot in rule.slots_of_values:
                    arrays[slot][...] = var
        self.slots: dict[str, FloatArray] = {slot: arrays[slot] for slot in rule.slots if slot in slots}
        self.custom: dict[str, NDArray[Any]] = {}
        self._note_arrays()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.folder = None  # what is copied or unpickled lies in memory, and belongs to this process
        self._note_arrays()

    def _note_arrays(self) -> None:
        """Take views of the arrays, and note where they lie."""
        present = (self.var, *(self.slots.get(slot) for slot in self.rule.slots))
        self.state: State = tuple(None if array is None else as_stored(array) for array in present)
        tables = [None if array is None else self.rows_in(array) for array in self.state]
        has_views = all(array is None or table is not None for array, table in zip(self.state, tables, strict=True))
        self.table: State | None = tuple(tables) if has_views else None
        self.layouts = Layouts(**self.held)
        halves = any(array is not None and array.dtype in HALVES for array in self.state)
        self.rounds_at_random = self.form.seed is not None and halves

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every slot by name, in the order of ``get_weights``."""
        return {**self.slots, **self.custom}

    @property
    def held(self) -> dict[str, NDArray[Any]]:
        """The arrays that kernels work on, by name."""
        return {"var": self.var, **self.slots}

    @property
    def occupied(self) -> list[NDArray[Any]]:
        """The memory that steps write, and what belongs to it."""
        return [*self.held.values(), *self.custom.values()]

    @property
    def fits_batch(self) -> bool:
        """True if the variable is small and contiguous, so that dense steps are taken together with those of others."""
        arrays = self.var, *self.slots.values()
        return not self.by_row and all(is_small(array) and array.dtype == self.dtype for array in arrays)

    def lie_at(self, var: FloatArray, slots: Mapping[str, FloatArray] | None = None) -> None:
        """Go on with the same numbers at another place in memory."""
        self.var = var
        if slots is not None:
            self.slots = {slot: slots[slot] for slot in self.slots}
        self._note_arrays()

    def own_references(self) -> list[Any]:
        """Return what this object holds of the variable's memory, each as often as it does."""
        views = [self.var, *([] if self.state[0] is self.var else [self.state[0]]), *(self.table or ())[:1]]
        return [self.var, self.state[0], *(view.base for view in views if view.base is not None)]

    def rows_in(self, array: FloatArray) -> FloatArray | None:
        """Return an array of the state as a view of shape (rows, columns), or (rows,); None if it has no such view."""
        return array if self.by_row and array.ndim == 1 else as_table(array)

    def means_by_row(self) -> dict[str, FloatArray]:
        """Return the slots in row-wise form: where a row is to have one number, the mean of its elements'."""
        found = dict(self.slots)
        for slot, array in self.slots.items():
            if slot in self.rule.slots_by_row and array.ndim > 1:
                found[slot] = zeros(self.folder, self.shape[:1], array.dtype, "C")
                if array.size:
                    found[slot][...] = array.mean(axis=tuple(range(1, array.ndim)), dtype=np.float64)
        return found

    @property
    def goes_by_row(self) -> bool:
        """True if a dense step must go row by row: since rows have numbers of their own, or are rounded by them."""
        return self.by_row or (self.rounds_at_random and self.var.ndim > 0)

    def as_rounded(self, state: State, number: int, rows: NDArray[np.int64] | None = None) -> State:
        """Return a state as kernels take it, to be rounded in launch ``number``; copies are of these ``rows``."""
        return (*state, self.form.rounding(self.name, number, rows) if self.rounds_at_random else None)

    def check_memory(self, *, written: bool) -> None:
        """Raise ValueError if an array was changed in place since, or may not be ``written`` and is to be."""
        found = self.layouts.look()
        if found & MOVED:
            self.refuse_moved()
        if written and found & READ_ONLY:
            refuse_read_only(self.held, describe(self.name, self.var))

    def refuse_moved(self) -> None:
        """Raise ValueError if an array was changed in place since; in Python alone, for callers that launch nothing."""
        self.layouts.refuse_moved(self.held, self.name)

    def check_process(self) -> None:
        """Raise RuntimeError in a process that was forked since: files of slots are one for both."""
        if self.folder is not None and self._forks != launching.forks:
            raise RuntimeError(
                f"{describe(self.name, self.var)}: its slots are in files (slots_folder) that the parent process uses; "
                "in a forked process, make an optimizer of its own, or RMSprop.load what was saved"
            )

    def at_work(self, state: State, rests: str | None) -> State:
        """Return what a step reads and writes of a state, of which one slot may rest."""
        if rests is None or rests not in self.slots:
            return state
        k = 1 + self.rule.slots.index(rests)
        return (*state[:k], None, *state[k + 1 :])


def kind_of(
    slot: str, rule: Rule, shape: tuple[int, ...], dtype: np.dtype[Any], form: Form
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype of a slot of a variable of this shape and dtype."""
    by_row = form.by_row and len(shape) > 1 and slot in rule.slots_by_row
    computed = computed_in(dtype)
    if form.dtype is not None and computed == FLOAT32 and slot not in rule.slots_of_values:
        computed = form.dtype
    return shape[:1] if by_row else shape, computed


def is_small(array: NDArray[Any]) -> bool:
    """Return whether an array is small and contiguous."""
    return 0 < array.size <= SMALL_ITEMS and array.flags.c_contiguous


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
