"""Many independent fits in one call, each whole within compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import fits as kernels
from ..kernels.slopes import central_differences, complex_steps, objective_slopes
from ..kernels.stopping import CONVERGED
from .arguments import as_data, as_starts, check_compiled, check_signature
from .fits import Fits
from .limits import as_limits, as_optimizer
from .results import messages_of, result


def minimize_many(
    fun: Any,
    x0: Any,
    data: Any = (),
    *,
    jac: Any = None,
    bounds: Any = None,
    x_scale: Any = 1.0,
    maxiter: int = 10_000,
    gtol: float | None = 1e-8,
    ftol: float | None = 1e-12,
    patience: int = 100,
    learning_rate: Any = None,
    progress: bool = False,
    **hyperparameters: Any,
) -> Any:
    """Minimize one function for each of many sets of data."""
    start = as_starts("x0", x0)
    check_compiled("fun", fun)
    check_signature("fun", fun, 2, "fun(x, row)")
    slopes = slopes_of(jac, objective_slopes)
    if slopes is objective_slopes:
        check_signature("jac", jac, 3, "jac(x, row, out)")
    limits = as_limits(maxiter, gtol, ftol, patience, start.dtype)
    optimizer = as_optimizer(learning_rate, limits.maxiter, hyperparameters)
    functions = kernels.Functions(
        kernels.objective_cost, slopes, fun, jac if slopes is objective_slopes else None, None
    )
    fits = Fits(
        functions,
        start,
        as_data(data, len(start)),
        bounds=bounds,
        x_scale=x_scale,
        progress="minimize_many" if progress else None,
    )
    found = fits.run(optimizer, limits)
    return result(
        x=found.x,
        fun=found.fun,
        nit=found.nit,
        status=found.status,
        success=found.status == CONVERGED,
        message=messages_of(found.status, fits.workers.errors),
    )


def slopes_of(jac: Any, given: Any) -> Any:
    """Return how slopes are taken: ``given``, by complex steps or by central differences."""
    if jac is None:
        return central_differences
    if isinstance(jac, str):
        if jac != "complex":
            raise ValueError(f'jac: expected a compiled function, "complex" or None, got {jac!r}')
        return complex_steps
    check_compiled("jac", jac, optional=True)
    return given
