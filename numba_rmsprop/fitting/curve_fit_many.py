"""Fits of one model to many curves in one call."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.fits.arguments import Functions
from ..kernels.fits.curves import LOSSES, curve_cost
from ..kernels.fits.slopes import model_slopes
from .many_fits import ManyFits
from .many_inputs import as_lines_of_fits, as_native, as_starts, check_function, refuse_first, slopes_of
from .many_options import as_optimizer, as_stopping_rule
from .many_results import as_result
from .trial_calls import check_model

BLOCK = 4096
"""The number of covariances that are computed together, to limit NumPy's temporary memory."""


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
    gtol: float | None = 1e-6,
    ftol: float | None = None,
    patience: int = 100,
    learning_rate: Any = None,
    progress: bool = False,
    **hyperparameters: Any,
) -> Any:
    """Fit one model to each of many curves by least squares, on all threads.

    Each fit minimizes ``sum(f_scale² rho((r / f_scale)²)) / 2`` over the points of its curve, where r is
    ``(model - ydata) / sigma``, and rho is the loss as in scipy.optimize.least_squares. :func:`minimize_many`
    describes the steps.

    Parameters
    ----------
    model : function compiled by numba.njit
        ``model(x, b1, b2, ...)`` returns the value at one point. ``x`` is a number, or a tuple of numbers if there are
        several predictors. Each parameter is a number. ``model`` runs on several threads at once.
    xdata : array_like, shape (points,) or (fits, points), or a tuple of such
        The predictor, for all curves or for each; or a tuple of several predictors.
    ydata : array_like, shape (fits, points)
        The curves.
    p0 : array_like, shape (parameters,) or (fits, parameters)
        The starts. A start far from the minimum takes more steps, and may lead to another minimum.
    sigma : array_like, shape (), (points,) or (fits, points), optional
        Standard deviations of ``ydata``. A point whose sigma is infinite is left out.
    absolute_sigma : bool
        If True, ``sigma`` is taken as it is. If False, only ratios of sigmas count, and ``pcov`` is scaled to the
        residuals, as in scipy.optimize.curve_fit.
    loss : {"linear", "soft_l1", "huber", "cauchy"}
        The function rho. All but "linear" give outliers less weight.
    f_scale : float
        The size, in units of ``sigma``, from which a residual counts as an outlier.
    jac : function compiled by numba.njit, "complex" or None
        The source of the derivatives. ``jac(x, b1, b2, ...)`` returns a tuple of the derivatives of the model by each
        parameter. "complex" takes complex steps, for an analytic model, and None central differences.
    bounds, x_scale, maxiter, ftol, patience, learning_rate, progress, **hyperparameters
        As in :func:`minimize_many`, but ``x_scale`` is "x0" by default, and ``ftol`` None.
    gtol : float or None
        A fit has converged when the cosine between the residuals and each column of the Jacobian is at most ``gtol``,
        as in MINPACK. The cosine has no units: its square is the part of the cost that one parameter alone could still
        remove.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``popt`` (fits, parameters); ``pcov`` (fits, parameters, parameters), as in scipy.optimize.curve_fit, but
        infinite for fits that failed; ``cost`` (fits,); ``nit``, ``status``, ``success`` and ``message``, as in
        :func:`minimize_many`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`minimize_many`.

    References
    ----------
    The covariance, as cited by scipy.optimize.curve_fit: Vugrin et al., "Confidence region estimation techniques for
    nonlinear regression in groundwater flow: Three case studies", Water Resources Research 43, 2007.

    Examples
    --------
    >>> import numba
    >>> @numba.njit
    ... def decay(t, amplitude, rate):
    ...     return amplitude * np.exp(-rate * t)
    >>> t = np.linspace(0.0, 3.0, 30)
    >>> curves = np.array([[2.0], [5.0]]) * np.exp(-np.array([[0.5], [2.0]]) * t)
    >>> curves += np.random.default_rng(0).normal(0.0, 0.01, curves.shape)
    >>> fits = curve_fit_many(decay, t, curves, p0=[1.0, 1.0], learning_rate=0.05, maxiter=5000)
    >>> fits.popt.round(1)
    array([[2. , 0.5],
           [5. , 2. ]])
    """
    curves = as_curves(ydata)
    start = as_starts("p0", p0, len(curves))
    parameters = ", ".join(f"b{j + 1}" for j in range(start.shape[1]))
    check_function("model", model, f"model(x, {parameters})")
    slopes = slopes_of(jac, model_slopes, f"jac(x, {parameters})")
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}")
    if isinstance(f_scale, bool) or not isinstance(f_scale, numbers.Real):
        raise TypeError(f"f_scale: expected a number, got {f_scale!r:.100}")
    if not 0 < f_scale < np.inf:
        raise ValueError(f"f_scale: expected a finite number above 0, got {f_scale!r}")
    rule = as_stopping_rule(maxiter, gtol, ftol, patience, start.dtype)
    optimizer = as_optimizer(learning_rate, rule.maxiter, hyperparameters, start.dtype)
    uncertainties = as_sigma(sigma, curves)
    fits = ManyFits(
        Functions(curve_cost, slopes, model, jac if slopes is model_slopes else None, LOSSES[loss]),
        start,
        # All fits share the tuples of one item.
        (curves, uncertainties, (float(f_scale),), (tuple(start[0]),), *as_predictors(xdata, curves)),
        as_lines_of_fits(x_scale, bounds, start, "p0"),
        progress="curve_fit_many" if progress else None,
    )
    check_model(fits)
    found = fits.run(optimizer, rule)
    pcov = covariances(found.triangles, found.fun, uncertainties, curves.shape, absolute_sigma)
    return as_result(found, fits.errors, popt=found.x, pcov=pcov, cost=found.fun)


def as_curves(ydata: Any) -> NDArray[Any]:
    """Return ``ydata`` as an array of real numbers, shape (fits, points)."""
    curves = as_native("ydata", ydata)
    if curves.ndim != 2 or not curves.size:
        raise ValueError(f"ydata: expected shape (fits, points), with one of each at least, got shape {curves.shape}")
    if curves.dtype.kind == "c":
        raise TypeError(f"ydata: expected real numbers, got {curves.dtype}")
    return curves


def as_predictors(xdata: Any, curves: NDArray[Any]) -> list[NDArray[Any]]:
    """Return each predictor with one line for each curve, or with one line for all."""
    named = {f"xdata[{k}]": item for k, item in enumerate(xdata)} if isinstance(xdata, tuple) else {"xdata": xdata}
    if not named:
        raise ValueError("xdata: expected an array, or a tuple of one at least, got an empty tuple")
    return [_like_curves(name, as_native(name, item), curves) for name, item in named.items()]


def as_sigma(sigma: Any, curves: NDArray[Any]) -> Any:
    """Return ``sigma`` with one line for each curve, or with one line for all; ``(None,)`` stands for 1."""
    if sigma is None:
        return (None,)
    array = as_native("sigma", sigma)
    if array.dtype.kind == "c":
        raise TypeError(f"sigma: expected real numbers, got {array.dtype}")
    refuse_first("sigma", ~(array > 0), array, "a number above 0")
    return _like_curves("sigma", array, curves, ())


def _like_curves(name: str, array: NDArray[Any], curves: NDArray[Any], *also: tuple[int, ...]) -> NDArray[Any]:
    shapes = (*also, curves.shape[1:], curves.shape)
    if array.shape not in shapes:
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, as ydata has, got {array.shape}")
    # One line for all gets the form of a line for each, since Numba compiles everything anew for another type.
    return array if array.ndim == 2 else np.broadcast_to(array, (1, curves.shape[1])).copy()


def covariances(
    triangles: FloatArray, costs: FloatArray, sigma: Any, shape: tuple[int, ...], absolute_sigma: bool
) -> FloatArray:
    """Return the covariance of each fit's parameters as scipy.optimize.curve_fit has it, in place of ``triangles``.

    It is the pseudo-inverse of JᵀJ, by the singular values of J, times ``2 cost / (points - parameters)`` unless
    ``absolute_sigma``. Points of infinite sigma do not count.

    Parameters
    ----------
    triangles : ndarray, shape (fits, parameters, parameters)
        R of each QR decomposition of J, which has the same singular values; not finite for fits that failed.
    costs : ndarray, shape (fits,)
    sigma : ndarray, shape (fits, points) or (1, points), or a tuple of None
    shape : tuple of int
        (fits, points).
    """
    parameters = triangles.shape[1]
    for begin in range(0, len(triangles), BLOCK):
        block, cost = triangles[begin : begin + BLOCK], costs[begin : begin + BLOCK]
        points = np.full(len(block), shape[1])
        if isinstance(sigma, np.ndarray):
            points[:] = np.isfinite(sigma[begin : begin + BLOCK] if len(sigma) > 1 else sigma).sum(axis=1)
        found = np.isfinite(block).all(axis=(1, 2)) & np.isfinite(cost) & (points > 0)
        freedom = (points - parameters)[found]
        _, values, vectors = np.linalg.svd(block[found])
        kept = values > np.finfo(np.float64).eps * max(shape[1], parameters) * values[:, :1]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            vectors *= np.divide(1.0, values, out=np.zeros_like(values), where=kept)[:, :, np.newaxis]
            inverse = vectors.transpose(0, 2, 1) @ vectors
            if not absolute_sigma:
                inverse *= (2 * cost[found] / freedom)[:, np.newaxis, np.newaxis]
                inverse[freedom <= 0] = np.inf
        block[found], block[~found] = inverse, np.inf
    return triangles
