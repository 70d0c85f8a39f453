"""The small parameters of a group, looked at together: nearly every call has the same ones as the one before."""

from __future__ import annotations

from itertools import repeat
from operator import attrgetter
from typing import Any

from torch import Tensor

from ..stepping.small_batch import Batch
from .parameter_state import Entry, ParameterState, layout

# Methods and attributes as functions, so that map asks a hundred tensors without a line of Python for each: a third of
# the time that it took parameter by parameter.
_data_ptr, _numel = Tensor.data_ptr, Tensor.numel
_is_contiguous, _is_neg, _is_conj = Tensor.is_contiguous, Tensor.is_neg, Tensor.is_conj
_dtype, _grad = attrgetter("dtype"), attrgetter("grad")

WORTH_A_PLAN = 4


class Plan:
    """Parameters of a group that are stepped in one batch.

    Parameters
    ----------
    group : dict
        The group.
    members : list of ParameterState
        Those parameters, registered, each of which comes once, in one batch.
    batch : Batch
        That batch.
    states : dict
        The optimizer's ``state``.
    """

    def __init__(
        self, group: dict[str, Any], members: list[ParameterState], batch: Batch, states: dict[Tensor, dict[str, Any]]
    ) -> None:
        self.members = members
        self.batch = batch
        self._kind = _kind(group)
        self._parameters = list(group["params"])  # keeps them alive, so that no other takes over its id
        self._ids = list(map(id, self._parameters))
        chosen = {id(own.parameter) for own in members}
        self.rest = [(k, parameter) for k, parameter in enumerate(self._parameters) if id(parameter) not in chosen]
        self._chosen = [own.parameter for own in members]
        self._pointers = list(map(_data_ptr, self._chosen))
        self._items = list(map(_numel, self._chosen))
        self._is_complex = any(own.dtype.is_complex for own in members)
        self._dtypes = {own.dtype for own in members}
        self._all_states = list(states.values())
        self._state_ids = list(map(id, self._all_states))
        self._states = [states[parameter] for parameter in self._chosen]
        self._keys = list(members[0].tensors)
        self._places = self._where_state_lies()
        self._slots = [own.tensors[key] for own in members for key in own.tensors if key != "step"]
        self._slot_layouts = list(map(layout, self._slots))
        self._exposures = -1
        self._is_exposed = True

    def fits(self, group: dict[str, Any], states: dict[Tensor, dict[str, Any]]) -> bool:
        """Return whether parameters and state are what they were, and all gradients can be read as they lie.

        The batch then knows where they are. PyTorch itself sees to it that a gradient has its parameter's shape and
        device when it is assigned.
        """
        if _kind(group) != self._kind or list(map(id, group["params"])) != self._ids:
            return False
        chosen = self._chosen
        grads = list(map(_grad, chosen))
        try:
            addresses = list(map(_data_ptr, grads))
            if (
                list(map(_data_ptr, chosen)) != self._pointers
                or not all(map(_is_contiguous, chosen))
                or list(map(_numel, chosen)) != self._items
                or list(map(_numel, grads)) != self._items
                or set(map(_dtype, grads)) != self._dtypes
                or 0 in addresses  # its storage has been freed
                or not all(map(_is_contiguous, grads))
                or any(map(_is_neg, grads))
                or (self._is_complex and any(map(_is_conj, grads)))
                or list(map(id, states.values())) != self._state_ids
                or self._where_state_lies() != self._places
                or (self._may_have_changed() and list(map(layout, self._slots)) != self._slot_layouts)
            ):
                return False
        except (KeyError, RuntimeError, TypeError):  # no state, a sparse gradient, none
            return False
        self.batch.addresses[:, 0] = addresses
        return True

    def _where_state_lies(self) -> list[int]:
        found: list[int] = []
        for key in self._keys:
            # As it lies: an Entry would catch up all rows.
            found += map(_data_ptr, map(dict.__getitem__, self._states, repeat(key)))
        return found

    def _may_have_changed(self) -> bool:
        """Return whether anybody else has ever had the slots, and so may change their shape where they lie."""
        latest = Entry.exposures
        if latest != self._exposures:
            self._exposures = latest
            self._is_exposed = any(own.is_exposed for own in self.members)
        return self._is_exposed


def _kind(group: dict[str, Any]) -> tuple[Any, ...]:
    kind = (group[option] for option in ("centered", "sparse_update", "state", "bias_correction", "use_ema"))
    return *kind, group["decoupled_weight_decay"], group["momentum"] > 0
