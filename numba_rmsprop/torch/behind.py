"""Rows that may be behind, as a forward pass asks for them, which knows the parameter and not its optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..interrupts import Call
from ..slots import Slots
from .arrays import as_array, in_order


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
        self.version = -1

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
        rows = indices.detach().to(torch.int64).reshape(-1).numpy()
        if not rows.size or rows.min() < 0 or rows.max() >= len(slots.var):
            return
        late = rows[slots.row_clocks()[rows] < slots.steps]
        if late.size:  # what is current stays so, and autograd need not hear of it
            slots.catch_up(late)
            self.note_write(parameter)

    def flush(self, parameter: Tensor) -> None:
        """Catch up all rows."""
        self.was_read = True
        slots = self.slots
        moves = slots.has_values_behind
        slots.flush()
        if moves:
            self.note_write(parameter)
        self._forget(parameter)  # nobody need ask until the next sparse step

    def take_over(self, parameter: Tensor) -> None:
        """Have readers of the parameter come here, and make up for what another optimizer has left behind."""
        other = _tables.get(parameter)
        if other is not self:
            if other is not None:
                other.flush(parameter)
            _tables[parameter] = self

    def to_note(self, parameter: Tensor) -> list[Call]:
        """Return what notes that a step has left rows behind, after which the parameter has its next version."""
        if self._slots.clocks is None:
            return []
        version = version_of(parameter) + (not parameter.is_inference())
        return [(setattr, self, "was_read", False), (setattr, self, "version", version)]

    def note_write(self, parameter: Tensor) -> None:
        """Let autograd know that the parameter has changed."""
        if not parameter.is_inference():
            torch.autograd.graph.increment_version(parameter)
        self.version = version_of(parameter)

    def retire(self, parameter: Tensor) -> None:
        """Let another state take over: with rows as they are here, or as somebody else has written them since."""
        if not self.was_changed(parameter):
            self.flush(parameter)
        self._forget(parameter)

    def _forget(self, parameter: Tensor) -> None:
        if _tables.get(parameter) is self:
            del _tables[parameter]

    def was_changed(self, parameter: Tensor) -> bool:
        """Return whether somebody else has written to the parameter since."""
        return version_of(parameter) != self.version


def version_of(parameter: Tensor) -> int:
    """Return what autograd counts writes by; tensors made in inference mode have no such count."""
    return 0 if parameter.is_inference() else int(parameter._version)


# A table lives on as long as its parameter: what rows have missed is part of their value, also where the optimizer is
# gone.
_tables: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@contextmanager
def forward(parameter: Tensor, indices: Tensor, *, writes: bool) -> Iterator[None]:
    """Enter the forward pass of an embedding, which reads some rows of its parameter, and may scale them down."""
    table: Table | None = _tables.get(parameter)
    if table is None:
        yield
        return
    table.catch_up(parameter, indices)
    was_changed = not writes or table.was_changed(parameter)
    yield
    if not was_changed:
        table.version = version_of(parameter)  # what max_norm has written is as good as what a step has


def flush(parameter: Tensor) -> None:
    """Catch up all rows of a parameter, if any are behind."""
    table: Table | None = _tables.get(parameter)
    if table is not None:
        table.flush(parameter)
