"""The slopes of the user's functions: by the user's derivative, complex steps or central differences.

Each way is a function that fills ``slopes`` and returns the value at ``x``. Its argument ``call`` is
:func:`call_objective` or :func:`call_model`. It may change ``x``, and puts it back.
"""

from __future__ import annotations

from typing import Any

from ..jit import compiled_for_functions
from ..tuple_intrinsics import as_tuple, spread
from .arguments import TRIANGLE


@compiled_for_functions
def call_objective(fun: Any, x: Any, row: Any, like: Any) -> Any:
    """Call an objective with an array of the parameters and the fit's row of the data."""
    return fun(x, row)


@compiled_for_functions
def objective_cost(functions: Any, x: Any, row: Any, scratch: Any, what: Any, triangles: Any, i: Any) -> Any:
    """Return the user's objective at ``x``, and fill its gradient; it has no triangle."""
    if what == TRIANGLE:
        return x.dtype.type(0.0)
    return functions.slopes(call_objective, functions.fun, functions.jac, x, row, (), scratch, scratch.gradient)


@compiled_for_functions
def call_model(model: Any, x: Any, point: Any, like: Any) -> Any:
    """Call a model with one point, and each parameter as an argument of its own."""
    return model(point, *as_tuple(x, like))


@compiled_for_functions
def objective_slopes(call: Any, fun: Any, jac: Any, x: Any, row: Any, like: Any, scratch: Any, slopes: Any) -> Any:
    """Let the user's ``jac`` write the gradient of an objective."""
    jac(x, row, slopes)
    return fun(x, row)


@compiled_for_functions
def model_slopes(call: Any, model: Any, jac: Any, x: Any, point: Any, like: Any, scratch: Any, slopes: Any) -> Any:
    """Copy the derivatives of a model from the tuple that the user's ``jac`` returns."""
    parameters = as_tuple(x, like)
    spread(jac(point, *parameters), slopes)
    return model(point, *parameters)


@compiled_for_functions
def complex_steps(call: Any, fun: Any, jac: Any, x: Any, row: Any, like: Any, scratch: Any, slopes: Any) -> Any:
    """Take each slope as ``imag(f(x + ih)) / h``, which has no rounding error where f is analytic.

    References
    ----------
    Squire and Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review 40, 1998.
    """
    shifted, step = scratch.shifted, scratch.complex_step
    for j in range(x.size):
        shifted[j] = x[j]
    value = x[0]
    for j in range(x.size):
        shifted[j] += 1j * step
        result = call(fun, shifted, row, like)
        shifted[j] = x[j]
        slopes[j] = result.imag / step
        value = result.real
    return value


@compiled_for_functions
def central_differences(call: Any, fun: Any, jac: Any, x: Any, row: Any, like: Any, scratch: Any, slopes: Any) -> Any:
    """Take each slope as ``(f(x + h) - f(x - h)) / 2h``, with both points within the bounds.

    h is ``relative_step`` times the parameter or its scale, whichever is larger.
    """
    value = call(fun, x, row, like)
    for j in range(x.size):
        here = x[j]
        step = scratch.relative_step * max(abs(here), scratch.scale[j])
        x[j] = min(here + step, scratch.upper[j])
        above, upper = x[j], call(fun, x, row, like)  # above is the point as it was rounded
        x[j] = max(here - step, scratch.lower[j])
        below, lower = x[j], call(fun, x, row, like)
        x[j] = here
        slopes[j] = (upper - lower) / (above - below) if above > below else 0.0  # equal where the bounds fix it
    return value
