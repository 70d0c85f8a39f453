"""Rows that may be behind, as a forward pass asks for them, which knows the parameter and not its optimizer."""

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
from .tensor_views import as_array, describe, in_order
from .undocumented import version_of


class Table:
    """The slots of a parameter, and who has read it. It does not hold the parameter, only the memory.

    Parameters
    ----------
    slots : Slots
        The slots.
    tensors : dict of str to Tensor
        What lies in the memory of ``slots``, by the names there, and "var".
    axes : tuple of int, optional
        The order of the tensors' axes in ``slots``.

    Attributes
    ----------
    was_read : bool
        Whether rows have been caught up since the last step.
    version : int
        The parameter's version after the last write from here.
    """

    def __init__(self, slots: Slots, tensors: dict[str, Tensor], axes: tuple[int, ...] | None) -> None:
        self._slots = slots
        self._tensors = tensors
        self._axes = axes
        self._pointers = self._where()
        self.was_read = False
        self.version: int | None = -1
        self._announced: int | None = -1
        self._asked_at = -1
        self._has_warned = False

    @property
    def slots(self) -> Slots:
        """The slots, at the place in memory where the tensors are now.

        ``share_memory_``, or sending a tensor to another process, moves a storage and frees where it was.
        """
        pointers = self._where()
        if pointers != self._pointers:
            arrays = {name: in_order(as_array(tensor), self._axes) for name, tensor in self._tensors.items()}
            self._slots.lie_at(arrays.pop("var"), arrays)
            self._pointers = pointers
        return self._slots

    def _where(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._tensors.values()]

    def catch_up(self, parameter: Tensor, indices: Tensor) -> None:
        """Catch up the rows at ``indices``, of any shape; indices out of bounds are for others to refuse."""
        self.was_read = True
        slots = self.slots
        if not slots.has_values_behind:
            return
        self.look_for_writes(parameter)
        rows = _numbers(indices)
        if rows is None:
            self.flush(parameter)
            return
        if not rows.size or rows.min() < 0 or rows.max() >= len(slots.var):
            return
        late = rows[slots.row_clocks()[rows] < slots.steps]
        if late.size:  # what is current stays so, and autograd need not hear of it
            slots.catch_up(late)
            self.note_write(parameter)

    def flush(self, parameter: Tensor) -> None:
        """Catch up all rows, and warn if somebody has written to them."""
        self.look_for_writes(parameter)
        self.settle(parameter)

    def settle(self, parameter: Tensor) -> None:
        """Catch up all rows; for a step that has begun, and so must not raise a warning."""
        self.was_read = True
        slots = self.slots
        moves = slots.has_values_behind
        slots.flush()
        if moves:
            self.note_write(parameter)
        self._forget(parameter)  # nobody need ask until the next sparse step

    def ask(self, parameter: Tensor, indices: Tensor) -> None:
        """Catch up some rows for somebody who knows that others are behind, and may write to these."""
        self.catch_up(parameter, indices)
        self._asked_at = self._slots.steps

    def look_for_writes(self, parameter: Tensor) -> None:
        """Warn, once, if somebody has written to the parameter while rows were behind."""
        slots = self._slots
        if self._has_warned or not slots.has_values_behind or self._asked_at == slots.steps:
            return
        if self.was_changed(parameter):
            self._has_warned = True
            warn(
                f"{describe(slots.name, parameter)} was written to while rows were behind, and what these have missed "
                "moves what was written. Before you write, call optimizer.flush(), or "
                "optimizer.catch_up(parameter, indices) for the rows that you write to"
            )

    def take_over(self, parameter: Tensor) -> None:
        """Have readers of the parameter come here, and make up for what another optimizer has left behind."""
        global entries
        other = _tables.get(parameter)
        if other is not self:
            if other is not None:
                other.settle(parameter)
            entries += 1
            _tables[parameter] = self

    def to_note(self, parameter: Tensor) -> list[Call]:
        """Return what notes that a step has left rows behind, after which the parameter has its next version."""
        if not self._slots.has_clocks:
            return []
        # Versions are counted before the step is taken, which may be interrupted in between.
        version = version_of(parameter)
        self._announced = None if version is None else version + 1
        return [(setattr, self, "was_read", False), (setattr, self, "version", self._announced)]

    def note_write(self, parameter: Tensor) -> None:
        """Let autograd know that the parameter has changed."""
        if not parameter.is_inference():
            torch.autograd.graph.increment_version(parameter)
        self.version = version_of(parameter)

    def retire(self, parameter: Tensor) -> None:
        """Let another state take over: with rows as they are here, or as somebody else has written them since."""
        if not self.was_changed(parameter):
            self.settle(parameter)
        self._forget(parameter)

    def _forget(self, parameter: Tensor) -> None:
        if _tables.get(parameter) is self:
            del _tables[parameter]

    def was_changed(self, parameter: Tensor) -> bool:
        """Return whether somebody else has written to the parameter since."""
        return version_of(parameter) not in (self.version, self._announced)


def _numbers(indices: Tensor) -> NDArray[np.int64] | None:
    """Return indices as an array; None where they are no numbers that can be read, so that any row may be meant.

    So it is under torch.vmap and torch.func, in fake mode, and where torch.fx traces.
    """
    if not isinstance(indices, Tensor):
        return None
    try:
        found: NDArray[np.int64] = indices.detach().to(torch.int64).reshape(-1).numpy()
    except (RuntimeError, TypeError):
        return None
    return found


# A table lives on as long as its parameter: what rows have missed is part of their value, also where the optimizer is
# gone.
_tables: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

entries = 0
"""How often a table has become the one that readers of its parameter come to."""


def table_of(parameter: Tensor) -> Table | None:
    """Return who knows which rows of a parameter are behind, if any may be."""
    return _tables.get(parameter) if _tables else None


def noted() -> list[tuple[Tensor, Table]]:
    """Return the parameters of which rows may be behind, with the tables that know."""
    return list(_tables.items()) if _tables else []


@contextmanager
def forward(parameter: Tensor, indices: Tensor, *, writes: bool) -> Iterator[None]:
    """Enter the forward pass of an embedding, which reads some rows of its parameter, and may scale them down."""
    table = table_of(parameter)
    if table is None:
        if type(parameter) is not nn.Parameter:
            flush_all()
        yield
        return
    table.catch_up(parameter, indices)
    was_changed = not writes or table.was_changed(parameter)
    yield
    if not was_changed:
        table.version = version_of(parameter)  # what max_norm has written is as good as what a step has


def flush(parameter: Tensor) -> None:
    """Catch up all rows of a parameter, if any are behind."""
    table = table_of(parameter)
    if table is not None:
        table.flush(parameter)


def flush_all() -> None:
    """Catch up all rows of all parameters, for a reader that has something else in place of a parameter.

    That is how ``torch.func.functional_call`` and parametrizations hand over a table: as another tensor, or a wrapper,
    over the same memory.
    """
    for parameter, table in noted():
        table.flush(parameter)
