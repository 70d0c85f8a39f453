"""From a loss to gradients: the user's own, or central finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray, Label, as_array
from ..settings.hyperparameters import needs_arguments
from .conversion import as_known
from .finite_differences import central_difference_gradient
from .indexed_slices import IndexedSlices
from .sparse_product import SparseProduct

FINITE_DIFFERENCE_LIMIT = 1000
"""Most elements, over all variables, whose gradient is taken by finite differences: two calls of the loss for each."""


def check_call(loss: Any, variables: Sequence[FloatArray], jac: Any) -> None:
    """Raise TypeError or ValueError for what can be refused before the loss is called."""
    if not callable(loss):
        raise TypeError(
            f"loss: expected a callable, which takes no arguments or the variables, got {type(loss).__name__}"
        )
    if not (callable(jac) or jac in (True, False, None)):
        raise TypeError(f"jac: expected True, a callable or None, got {jac!r}")
    elements = sum(var.size for var in variables)
    if not jac and elements > FINITE_DIFFERENCE_LIMIT:
        raise ValueError(
            f"gradients by finite differences take two calls of the loss for each of {elements} elements; expected "
            f"at most {FINITE_DIFFERENCE_LIMIT}. Pass jac=True, with a loss that returns (value, gradients), "
            "or a callable"
        )


def gradients_of(
    loss: Callable[..., Any], variables: Sequence[FloatArray], jac: Callable[..., Any] | bool | None, grad_loss: Any
) -> list[Any]:
    """Return one gradient for each variable; the arguments are those of ``RMSprop.minimize``."""
    if grad_loss is not None:
        grad_loss = as_array(grad_loss, "grad_loss")
    if jac is True:
        result = _call(loss, variables)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"loss: expected (value, gradients), since jac=True, got {type(result).__name__}")
        return _scaled(_as_list(result[1], variables), variables, grad_loss)
    if callable(jac):
        return _scaled(_as_list(_call(jac, variables), variables), variables, grad_loss)
    return _finite_differences(loss, variables, grad_loss)


def _call(function: Callable[..., Any], variables: Sequence[FloatArray]) -> Any:
    return function(*variables) if needs_arguments(function) else function()


def _as_list(gradients: Any, variables: Sequence[FloatArray]) -> list[Any]:
    if not isinstance(gradients, (list, tuple)):
        gradients = [gradients]
    if len(gradients) != len(variables):
        raise ValueError(f"expected {len(variables)} gradients, one for each variable, got {len(gradients)}")
    return list(gradients)


def _scaled(gradients: list[Any], variables: Sequence[FloatArray], grad_loss: Any) -> list[Any]:
    if grad_loss is None:
        return gradients
    if grad_loss.ndim:
        raise ValueError(f"grad_loss: expected a number with jac, got an array of shape {grad_loss.shape}")
    return [_times(grad, float(grad_loss), var) for grad, var in zip(gradients, variables, strict=True)]


def _times(gradient: Any, factor: float, var: FloatArray) -> Any:
    gradient = as_known(gradient, Label("gradient of", "the variable", var))
    if gradient is None:
        return None
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    if isinstance(gradient, SparseProduct):
        return gradient.with_values(gradient.values * factor)
    if hasattr(gradient, "dtype"):
        return gradient * factor
    return np.asarray(gradient, computed_in(var.dtype)) * factor


def _finite_differences(loss: Callable[..., Any], variables: Sequence[FloatArray], grad_loss: Any) -> list[Any]:
    """Return gradients by central differences. A loss without arguments reads the variables, which change in place."""

    def value() -> float:
        values = np.asarray(as_array(_call(loss, variables), "loss"), np.float64)
        return float(np.sum(values * (1.0 if grad_loss is None else grad_loss)))

    return [central_difference_gradient(value, var) for var in variables]
