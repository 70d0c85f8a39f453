"""Whose rows may be behind: for a forward pass, which knows the parameter and not its optimizer."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .state import ParameterState

# The state of a parameter lives on as long as the parameter: what rows have missed is part of its value, also where the
# optimizer is gone.
_states: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def note(own: ParameterState) -> None:
    """Note that rows of a parameter fall behind from now on; what another optimizer has left is made up for first."""
    other = of(own.parameter)
    if other is not own:
        if other is not None:
            other.flush()
        _states[own.parameter] = own


def of(parameter: Tensor) -> ParameterState | None:
    """Return the state that knows how far behind the rows of a parameter are, if any are."""
    found: ParameterState | None = _states.get(parameter)
    return found


def catch_up(parameter: Tensor, indices: Tensor) -> None:
    """Catch up some rows of a parameter."""
    own = of(parameter)
    if own is not None:
        own.catch_up(indices)


def flush(parameter: Tensor) -> None:
    """Catch up all rows of a parameter."""
    own = of(parameter)
    if own is not None:
        own.flush()
