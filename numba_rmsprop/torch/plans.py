"""The small parameters of a group, looked at together: nearly every call has the same ones as the one before."""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import Any

from torch import Tensor

from ..batches import Batch
from .state import ParameterState

# Methods and attributes as functions, so that map asks a hundred tensors without a line of Python for each: a third of
# the time that it took parameter by parameter.
_data_ptr, _numel, _stride = Tensor.data_ptr, Tensor.numel, Tensor.stride
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
        self._strides = list(map(_stride, self._chosen))
        self._dtypes = {own.dtype for own in members}
        self._all_states = list(states.values())
        self._state_ids = list(map(id, self._all_states))
        self._states = [states[parameter] for parameter in self._chosen]
        self._keys = [itemgetter(key) for key in members[0].tensors]
        self._tensors = self._where_tensors_lie()

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
                or list(map(_stride, chosen)) != self._strides
                or list(map(_numel, chosen)) != self._items
                or list(map(_numel, grads)) != self._items
                or set(map(_dtype, grads)) != self._dtypes
                or not all(map(_is_contiguous, grads))
                or any(map(_is_neg, grads))
                or (self._is_complex and any(map(_is_conj, grads)))
                or list(map(id, states.values())) != self._state_ids
                or self._where_tensors_lie() != self._tensors
            ):
                return False
        except (KeyError, RuntimeError, TypeError):  # no state, a sparse gradient, none
            return False
        self.batch.addresses[:, 0] = addresses
        return True

    def _where_tensors_lie(self) -> list[int]:
        found: list[int] = []
        for key in self._keys:
            found += map(_data_ptr, map(key, self._states))
        return found


def _kind(group: dict[str, Any]) -> tuple[Any, ...]:
    return group["centered"], group["sparse_update"], group["momentum"] > 0
