"""Many independent fits in one call, each whole within compiled code."""

from __future__ import annotations

from typing import Any

from ..kernels.fits.arguments import Functions
from ..kernels.fits.loop import objective_cost
from ..kernels.fits.slopes import objective_slopes
from .many_fits import ManyFits
from .many_inputs import as_data, as_lines_of_fits, as_starts, check_function, slopes_of
from .many_options import as_optimizer, as_stopping_rule
from .many_results import as_result
from .trial_calls import check_objective


def minimize_many(
    fun: Any,
    x0: Any,
    data: Any = (),
    *,
    jac: Any = None,
    bounds: Any = None,
    x_scale: Any = 1.0,
    maxiter: int = 10_000,
    gtol: float | None = 1e-6,
    ftol: float | None = 1e-9,
    patience: int = 100,
    learning_rate: Any = None,
    progress: bool = False,
    **hyperparameters: Any,
) -> Any:
    """Minimize one function for each of many sets of data, on all threads.

    Each fit is a loop of RMSprop steps of its own, which runs within compiled code from its first step to its last::

        z    <- x0 / x_scale
        g     = x_scale · gradient of fun at x = x_scale · z
        z    <- a step of RMSprop from z with g                (see numba_rmsprop.RMSprop)
        x    <- x_scale · z, moved to the bounds where it is beyond them

    A thread that has finished a fit takes the next one, so that a fit which has converged costs nothing more. Fits do
    not know of each other: the results have the same bits at any number of threads.

    Parameters
    ----------
    fun : function compiled by numba.njit
        ``fun(x, row)`` returns a number. ``x`` is an array of the parameters, which it must not change; ``row`` is a
        tuple: of each array in ``data``, the fit's own row (of a 1-D array, a number), and shared arrays whole. It runs
        on several threads at once.
    x0 : array_like, shape (fits, parameters)
        Where the fits start. float32 and float64 stay what they are; integers become float64.
    data : tuple of array_like or Shared
        Arrays whose first axis is the fit (pixels, spectra, light curves, ...), and those that all fits share, each
        as ``Shared(array)``.
    jac : function compiled by numba.njit, "complex" or None
        Where gradients come from: ``jac(x, row, out)``, which writes every element of ``out``; complex steps, for a
        ``fun`` that is analytic (no abs, no comparisons of the parameters, and of what may be negative no power but
        ``** 2``, since the others go through an angle that swallows the step), as exact as a derivative by hand; None,
        central differences, with two calls of ``fun`` for each parameter, as have complex steps with one.
    bounds : (lower, upper) or scipy.optimize.Bounds, optional
        Each a number, or an array of shape (parameters,) or (fits, parameters). Not pairs, as ``minimize`` has them.
    x_scale : float, array_like or "x0"
        Typical sizes of the parameters, of those shapes; or "x0", the sizes that they start with (1 for those that
        start at 0). A step changes a parameter by about the learning rate times that; the first one, while the mean
        square still grows, by up to 1/sqrt(1 - rho) times as much, and steps in one direction by up to
        1/(1 - momentum) times as much.
    maxiter : int
        Most steps of a fit.
    gtol : float or None
        A fit has converged when no element of the gradient is larger; within bounds, where no parameter could go on
        by more. None: never.
    ftol : float or None
        A fit has converged when ``fun`` has neither fallen nor risen by more than ``ftol`` times its size for
        ``patience`` steps; where the learning rate is below its highest, by that much less. None: never.
    patience : int
        See ``ftol``.
    learning_rate : float, schedule, callable or None
        As in :class:`~numba_rmsprop.RMSprop`; every schedule works, since its rates are computed beforehand. None
        stands for one that falls exponentially from 0.01 to 1e-8 in ``maxiter`` steps.
    progress : bool
        Show a progress bar, for which tqdm must be installed.
    **hyperparameters
        Numbers, as in :class:`~numba_rmsprop.RMSprop`: rho (here 0.99 by default), momentum (0.9), epsilon
        (the smallest normal number, so that units do not matter),
        centered, decay, weight_decay, clipvalue, clipnorm (of each fit), epsilon_in_sqrt.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` (fits, parameters) and ``fun`` (fits,), the best point that each fit has seen; ``nit``, its steps;
        ``status``, and ``success``, which is ``status == 0``; ``message``, which tells what each status that occurred
        means: 0, a tolerance was met; 1, maxiter; 3, NaN or infinity; 4, ``fun`` or ``jac`` raised; 99, Ctrl-C.

    Raises
    ------
    ImportError
        If ``progress`` is wanted and tqdm is not installed.
    TypeError
        If a function is not compiled, cannot be called or compiled for these arguments, or an argument is of the wrong
        kind.
    ValueError
        If shapes do not fit, ``x0`` holds NaN or is outside the bounds, an option is out of its range, ``jac`` leaves
        elements unset or writes too many, or ``fun`` is not analytic at the first start. No fit has started then.

    Notes
    -----
    The first call with a function compiles it and the loop around it, which takes seconds. While fits run, Ctrl-C ends
    the call with what has been found so far; a second one raises KeyboardInterrupt. A fit that comes upon NaN ends
    there, and the others go on. Where each fit is a sum of squares, :func:`~numba_rmsprop.curve_fit_many` knows better
    when to end.

    Examples
    --------
    The rate of each of three series of waiting times, by maximum likelihood:

    >>> import numba
    >>> import numpy as np
    >>> @numba.njit
    ... def minus_log_likelihood(x, row):
    ...     (waiting,) = row
    ...     return np.exp(x[0]) * waiting.mean() - x[0]
    >>> waiting = np.random.default_rng(0).exponential([[0.5], [1.0], [4.0]], (3, 10_000))
    >>> fits = minimize_many(minus_log_likelihood, np.zeros((3, 1)), (waiting,), jac="complex", maxiter=2000)
    >>> np.exp(fits.x[:, 0]).round(2), (1 / waiting.mean(axis=1)).round(2)
    (array([2.01, 1.01, 0.25]), array([2.01, 1.01, 0.25]))
    >>> fits.success
    array([ True,  True,  True])
    """
    start = as_starts("x0", x0)
    check_function("fun", fun, "fun(x, row)")
    slopes = slopes_of(jac, objective_slopes, "jac(x, row, out)")
    rule = as_stopping_rule(maxiter, gtol, ftol, patience, start.dtype)
    optimizer = as_optimizer(learning_rate, rule.maxiter, hyperparameters, start.dtype)
    fits = ManyFits(
        Functions(objective_cost, slopes, fun, jac if slopes is objective_slopes else None, None),
        start,
        as_data(data, len(start)),
        as_lines_of_fits(x_scale, bounds, start),
        progress="minimize_many" if progress else None,
    )
    check_objective(fits)
    found = fits.run(optimizer, rule)
    return as_result(found, fits.errors, x=found.x, fun=found.fun)
