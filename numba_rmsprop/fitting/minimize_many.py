"""Many independent fits of one function in one call."""

from __future__ import annotations

from typing import Any

from ..kernels.fits.arguments import Functions
from ..kernels.fits.slopes import objective_cost, objective_slopes
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
    r"""Minimize one function for each of many sets of data, on all threads.

    Each fit takes its own RMSprop steps, in compiled code from its first step to its last::

        z    <- x0 / x_scale
        g     = x_scale · gradient of fun at x = x_scale · z
        z    <- a step of RMSprop from z with g                (see numba_rmsprop.RMSprop)
        x    <- x_scale · z, moved to the bounds where it is beyond them

    A thread that has finished one fit takes the next one, so a fit costs nothing once it has converged. Fits do not
    depend on each other: the results have the same bits for any number of threads.

    Parameters
    ----------
    fun : function compiled by numba.njit
        ``fun(x, row)`` returns a number. ``x`` is an array of the parameters, which ``fun`` must not change. ``row`` is
        a tuple with an item for each item of ``data``: the fit's row of an array (a number, if the array is 1-D), or
        the whole of a shared array. ``fun`` runs on several threads at once.
    x0 : array_like, shape (fits, parameters)
        The starts. float32 stays float32; integers become float64.
    data : tuple of array_like or Shared
        Arrays with a row for each fit (a pixel, a spectrum, a light curve, ...). An array that all fits share is passed
        as ``Shared(array)``.
    jac : function compiled by numba.njit, "complex" or None
        The source of the gradients. ``jac(x, row, out)`` writes every element of ``out``. "complex" takes complex
        steps, with one call of ``fun`` for each parameter; they are as exact as derivatives by hand, but ``fun`` must
        be analytic. It must not use ``abs`` or compare parameters. Of a number that may be negative, it must take no
        power but ``** 2``: other powers go through an angle, whose rounding is larger than the step. None takes central
        differences, with two calls of ``fun`` for each parameter.
    bounds : (lower, upper) or scipy.optimize.Bounds, optional
        Each a number, or an array of shape (parameters,) or (fits, parameters). A sequence of pairs, as ``minimize``
        takes it, is not accepted.
    x_scale : float, array_like or "x0"
        Typical sizes of the parameters, of the same shapes. "x0" stands for \|x0\|, and for 1 where x0 is 0. A step
        changes a parameter by about the learning rate times its size. The first step, while the mean square still
        grows, is up to 1/sqrt(1 - rho) times as long, and steps in one direction are up to 1/(1 - momentum) times as
        long.
    maxiter : int
        The highest number of steps of a fit.
    gtol : float or None
        A fit has converged when no element of the gradient is larger. An element that points to a bound counts for no
        more than the distance to that bound. None: never.
    ftol : float or None
        A fit has converged when ``fun`` has neither fallen nor risen by more than ``ftol`` times its size for
        ``patience`` steps. ``ftol`` falls in proportion to the learning rate. None: never.
    patience : int
        See ``ftol``.
    learning_rate : float, schedule, callable or None
        As in :class:`~numba_rmsprop.RMSprop`. The rates of all steps are computed before the first. By default the rate
        falls exponentially from 0.01 to 1e-8 over ``maxiter`` steps.
    progress : bool
        Show a progress bar, which needs tqdm.
    **hyperparameters
        Numbers, as in :class:`~numba_rmsprop.RMSprop`: rho (default 0.99), momentum (default 0.9), epsilon (default:
        the smallest normal number, so that units do not matter), centered, decay, weight_decay, clipvalue, clipnorm
        (of each fit), epsilon_in_sqrt.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` (fits, parameters) and ``fun`` (fits,) are the best point of each fit, and ``nit`` is its number of steps.
        ``status`` is 0 if a tolerance was met, 1 after ``maxiter``, 3 at NaN or infinity, 4 if ``fun`` or ``jac``
        raised, and 99 after Ctrl-C; ``success`` is ``status == 0``. ``message`` explains each status that occurred.

    Raises
    ------
    ImportError
        If ``progress`` is True and tqdm is not installed.
    TypeError
        If a function is not compiled, or cannot be called or compiled for these arguments; or if an argument is of the
        wrong kind.
    ValueError
        If shapes do not fit, ``x0`` holds NaN or is outside the bounds, an option is out of its range, ``jac`` leaves
        elements unset or writes too many, or complex steps are wrong at the first start. All this is checked before
        the first fit.

    Notes
    -----
    The first call with a function compiles it and the loop around it, which takes seconds. While fits run, Ctrl-C ends
    the call and returns the results so far; a second Ctrl-C raises KeyboardInterrupt. A fit that meets NaN ends there,
    and the others go on. For sums of squares, use :func:`~numba_rmsprop.curve_fit_many`, whose ``gtol`` has no units.

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
