"""Rows that are behind: a forward pass finds them by the parameter, since it does not know the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..runtime.caller_warnings import warn
from ..runtime.interrupts import Call
from ..state.slots import Slots
from .fused import FusedWeight
from .tensor_views import as_array, describe, in_order
from .undocumented import version_of


class Table:
    """The slots of a parameter, with notes of reads and writes. It holds the parameter's memory, not the parameter.

    Parameters
    ----------
    slots : Slots
        The slots.
    tensors : dict of str to Tensor
        The tensors that share memory with ``slots``, by the names of the slots; "var" is the parameter's.
    axes : tuple of int, optional
        The order of the tensors' axes in ``slots``.

    Attributes
    ----------
    was_read : bool
        Whether rows have been caught up since the last step.
    version : int or None
        The parameter's count of writes after the last write by this package.
    """

    def __init__(self, slots: Slots, tensors: dict[str, Tensor], axes: tuple[int, ...] | None) -> None:
        self._slots = slots
        self._tensors = tensors
        self._axes = axes
        self._pointers = self._data_pointers()
        self.was_read = False
        self.version: int | None = -1
        self._announced: int | None = -1
        self._written_at = -1
        self._has_warned = False

    @property
    def slots(self) -> Slots:
        """The slots, after following the tensors to their present memory.

        ``share_memory_``, or sending a tensor to another process, moves the storage and frees the old one.
        """
        pointers = self._data_pointers()
        if pointers != self._pointers:
            arrays = {name: in_order(as_array(tensor), self._axes) for name, tensor in self._tensors.items()}
            self._slots.lie_at(arrays.pop("var"), arrays)
            self._pointers = pointers
        return self._slots

    def _data_pointers(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._tensors.values()]

    def catch_up(self, parameter: Tensor, indices: Tensor, *, to_write: bool = False) -> None:
        """Catch up the rows at ``indices``, of any shape, to read or ``to_write`` them.

        If one is out of bounds, leave the error to PyTorch.
        """
        self.was_read = True
        slots = self.slots
        if not (slots.must_catch_up if to_write else slots.has_values_behind):
            return
        self.look_for_writes(parameter)
        rows = _as_rows(indices)
        if rows is None:
            self.flush(parameter)
            return
        if not rows.size or rows.min() < 0 or rows.max() >= len(slots.var):
            return
        late = rows[slots.row_clocks()[rows] < slots.steps]
        if late.size:  # otherwise nothing is written, and autograd is told of no write
            slots.catch_up(late)
            self.note_write(parameter)

    def flush(self, parameter: Tensor) -> None:
        """Catch up all rows, and warn if the program has written to them."""
        self.look_for_writes(parameter)
        self.settle(parameter)

    def settle(self, parameter: Tensor) -> None:
        """Catch up all rows without a warning, which could be raised as an error in the middle of a step."""
        self.was_read = True
        slots = self.slots
        moves = slots.has_values_behind
        slots.flush()
        if moves:
            self.note_write(parameter)
        self._forget(parameter)  # all rows stay current until the next sparse step

    def catch_up_to_write(self, parameter: Tensor, indices: Tensor) -> None:
        """Catch up some rows for a caller that may write to them; this is no reason for a warning."""
        self.catch_up(parameter, indices, to_write=True)
        self._written_at = self._slots.steps

    def look_for_writes(self, parameter: Tensor) -> None:
        """Warn, once, if the program has written to the parameter while rows were behind."""
        slots = self._slots
        if self._has_warned or not slots.must_catch_up or self._written_at == slots.steps:
            return
        if self.was_changed(parameter):
            self._has_warned = True
            warn(
                f"{describe(slots.name, parameter)} was written to while rows were behind, and the steps that "
                "these have missed are applied to what was written. Before you write, call optimizer.flush(), or "
                "optimizer.catch_up(parameter, indices) for the rows that you write to"
            )

    def take_over(self, parameter: Tensor) -> None:
        """Make this the table that readers of the parameter find, after catching up the rows of the one before it."""
        global entries
        other = _tables.get(parameter)
        if other is not self:
            if other is not None:
                other.settle(parameter)
            entries += 1
            _tables[parameter] = self

    def to_note(self, parameter: Tensor) -> list[Call]:
        """Return the calls which note that a step has left rows behind, and has written to the parameter once."""
        if not self._slots.has_clocks:
            return []
        # Writes are counted before the step is taken, and an interrupt may come in between.
        version = version_of(parameter)
        self._announced = None if version is None else version + 1
        return [(setattr, self, "was_read", False), (setattr, self, "version", self._announced)]

    def note_write(self, parameter: Tensor) -> None:
        """Tell autograd that the parameter has changed."""
        if not parameter.is_inference():
            torch.autograd.graph.increment_version(parameter)
        self.version = version_of(parameter)

    def retire(self, parameter: Tensor) -> None:
        """Make way for another state: catch up all rows, unless the program has written to the parameter since."""
        if not self.was_changed(parameter):
            self.settle(parameter)
        self._forget(parameter)

    def _forget(self, parameter: Tensor) -> None:
        if _tables.get(parameter) is self:
            del _tables[parameter]

    def was_changed(self, parameter: Tensor) -> bool:
        """Return whether anything outside of this package has written to the parameter since the last step."""
        return version_of(parameter) not in (self.version, self._announced)


def _as_rows(indices: Tensor) -> NDArray[np.int64] | None:
    """Return indices as an array, or None if they cannot be read, so that they may mean any row.

    This happens under torch.vmap and torch.func, in fake mode, and when torch.fx traces.
    """
    if not isinstance(indices, Tensor):
        return None
    try:
        found: NDArray[np.int64] = indices.detach().to(torch.int64).reshape(-1).numpy()
    except (RuntimeError, TypeError):
        return None
    return found


# A table lives as long as its parameter, even without its optimizer: the steps that rows have missed are part of their
# values.
_tables: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

entries = 0
"""Count of the tables that have been entered in ``_tables``."""


def table_of(parameter: Tensor) -> Table | None:
    """Return the table of a parameter, or None if no rows are behind."""
    return _tables.get(parameter) if _tables else None


def noted() -> list[tuple[Tensor, Table]]:
    """Return the parameters of which rows may be behind, with their tables."""
    return list(_tables.items()) if _tables else []


@contextmanager
def forward(parameter: Tensor, indices: Tensor, *, writes: bool) -> Iterator[None]:
    """Enter the forward pass of an embedding, which reads some rows, and if ``writes`` may scale them down."""
    table = table_of(parameter)
    if table is None:
        if type(parameter) not in (nn.Parameter, FusedWeight):
            flush_all()
        yield
        return
    table.catch_up(parameter, indices, to_write=writes)
    was_changed = not writes or table.was_changed(parameter)
    yield
    if not was_changed:
        table.version = version_of(parameter)  # the write of max_norm is no reason for a warning


def flush(parameter: Tensor) -> None:
    """Catch up all rows of a parameter, if any are behind."""
    table = table_of(parameter)
    if table is not None:
        table.flush(parameter)


def flush_all() -> None:
    """Catch up all rows of all parameters, for a reader whose table is not a parameter itself.

    ``torch.func.functional_call`` and parametrizations pass another tensor, or a wrapper, over the same memory.
    """
    for parameter, table in noted():
        table.flush(parameter)
