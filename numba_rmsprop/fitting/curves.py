"""One model fitted to many curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import fits as kernels
from ..kernels.curves import LOSSES, curve_cost
from ..kernels.slopes import model_slopes
from ..kernels.stopping import CONVERGED
from ..variables import FloatArray
from .arguments import as_starts, check_compiled, check_signature, native, refuse
from .fits import Fits
from .limits import as_limits, as_optimizer
from .many import slopes_of
from .results import messages_of, result


def curve_fit_many(
    model: Any,
    xdata: Any,
    ydata: Any,
    p0: Any,
    sigma: Any = None,
    absolute_sigma: bool = False,
    loss: str = "linear",
    *,
    f_scale: float = 1.0,
    jac: Any = None,
    bounds: Any = None,
    x_scale: Any = "x0",
    maxiter: int = 10_000,
    gtol: float | None = 1e-8,
    ftol: float | None = None,
    patience: int = 100,
    learning_rate: Any = None,
    progress: bool = False,
    **hyperparameters: Any,
) -> Any:
    """Fit one model to many curves."""
    curves = native("ydata", ydata)
    if curves.ndim != 2 or curves.dtype.kind not in "iuf":
        raise ValueError(f"ydata: expected real numbers of shape (fits, points), got {curves.dtype}, {curves.shape}")
    start = as_starts("p0", p0, len(curves))
    check_compiled("model", model)
    predictors = as_predictors(xdata, curves)
    count = start.shape[1]
    check_signature("model", model, count + 1, f"model(x, {', '.join(f'b{j + 1}' for j in range(count))})")
    slopes = slopes_of(jac, model_slopes)
    limits = as_limits(maxiter, gtol, ftol, patience, start.dtype)
    optimizer = as_optimizer(learning_rate, limits.maxiter, hyperparameters)
    real = start.dtype.type
    uncertainty = None if sigma is None else as_sigma(sigma, curves)
    data = (
        curves,
        (None,) if uncertainty is None else uncertainty,
        (real(f_scale),),
        (tuple(start[0]),),
        *predictors,
    )
    functions = kernels.Functions(curve_cost, slopes, model, jac if slopes is model_slopes else None, LOSSES[loss])
    fits = Fits(
        functions,
        start,
        data,
        bounds=bounds,
        x_scale=x_scale,
        name="p0",
        progress="curve_fit_many" if progress else None,
    )
    found = fits.run(optimizer, limits)
    triangles = fits.triangles(found.x, optimizer)
    return result(
        popt=found.x,
        pcov=covariances(triangles, found.fun, curves.shape[1], absolute_sigma),
        cost=found.fun,
        nit=found.nit,
        status=found.status,
        success=found.status == CONVERGED,
        message=messages_of(found.status, fits.workers.errors),
    )


def as_predictors(xdata: Any, curves: FloatArray) -> list[FloatArray]:
    items = xdata if isinstance(xdata, tuple) else (xdata,)
    found = []
    for k, item in enumerate(items):
        name = f"xdata[{k}]" if isinstance(xdata, tuple) else "xdata"
        array = native(name, item)
        if array.shape not in (curves.shape, curves.shape[1:]):
            raise ValueError(f"{name}: expected shape {curves.shape} or {curves.shape[1:]}, as of ydata, got {array.shape}")
        found.append(np.broadcast_to(array, curves.shape))
    return found


def as_sigma(sigma, curves):
    array = native("sigma", sigma)
    array = np.broadcast_to(array, curves.shape)
    refuse("sigma", ~(array > 0), array, "a number above 0")
    return array


def covariances(triangles: FloatArray, costs: FloatArray, points: int, absolute_sigma: bool) -> FloatArray:
    """Return the covariance of each fit's parameters as scipy.optimize.curve_fit has it."""
    n = triangles.shape[1]
    for i in range(0, len(triangles), 4096):
        block = triangles[i : i + 4096]
        good = np.isfinite(block).all(axis=(1, 2))
        _, values, vectors = np.linalg.svd(block[good])
        threshold = np.finfo(float).eps * max(points, n) * values[:, :1]
        with np.errstate(divide="ignore"):
            inverse = np.where(values > threshold, 1 / values, 0.0)
        half = vectors * inverse[:, :, np.newaxis]
        block[good] = half.transpose(0, 2, 1) @ half
        block[~good] = np.inf
    if not absolute_sigma:
        if points > n: triangles *= (2 * costs / (points - n))[:, np.newaxis, np.newaxis]
        else: triangles[:] = np.inf
    return triangles
