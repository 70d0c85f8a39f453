"""RMSprop as a method of ``scipy.optimize.minimize``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from ..gradients.finite_differences import METHODS, FiniteDifferences
from ..kernels.fits.stopping import StoppingRule
from ..runtime.caller_warnings import warn
from ..settings.option_names import ARGUMENTS, closest_name
from .iterate import Iterate, WatchedRMSprop
from .objective import Objective
from .options import as_choice, as_count, as_flag, as_positive, check_callable, falling_rate, near_the_lowest
from .progress_bar import progress_bar
from .scipy_options import (
    FIRST_RATE,
    LAST_RATE,
    MAXITER,
    MOMENTUM,
    as_bounds,
    as_patience,
    as_scale,
    as_start,
    as_tolerances,
)
from .single_fit import SingleFit

CONSTRUCTOR = frozenset(ARGUMENTS)


def rmsprop(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    jac: Callable[..., Any] | None = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., object] | None = None,
    *,
    learning_rate: Any = None,
    momentum: Any = MOMENTUM,
    maxiter: int = MAXITER,
    maxfev: int | None = None,
    tol: float | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    patience: int | None = None,
    window: int = 1,
    x_scale: Any = 1.0,
    fd_method: str = "3-point",
    fd_step: float | None = None,
    disp: bool = False,
    progress: bool = False,
    history: bool = False,
    **hyperparameters: Any,
) -> Any:
    r"""Minimize a function with RMSprop: a ``method`` for ``scipy.optimize.minimize``.

    With g the gradient at x, a step is (see :class:`~numba_rmsprop.RMSprop` for its variants)::

        u   = x / x_scale;  h = g · x_scale
        rms <- rho·rms + (1 - rho)·h²
        mom <- momentum·mom + lr·h / sqrt(rms + epsilon)
        x   <- (u - mom) · x_scale, clipped to the bounds

    Call ``minimize(fun, x0, jac=..., method=rmsprop, options={...})``. The options are the parameters after
    ``callback``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns a number. ``x`` is a read-only view of the point. The next step changes it: take a
        copy if you want to keep it.
    x0 : array_like, shape (n,)
        The start, within the bounds. float32 stays float32, for ``fun`` too; integers become float64.
    args : tuple
        Further arguments of ``fun`` and ``jac``.
    jac : callable, optional
        ``jac(x, *args)`` returns the gradient: an array (n,), or a scipy.sparse array of any format, of shape (n,),
        (1, n) or (n, 1), for which a step reads and writes only the stored entries. ``minimize`` also takes True.
        Without ``jac``, the gradient comes from finite differences. Choose them with ``fd_method``, since ``minimize``
        does not pass on a ``jac`` such as "2-point".
    hess, hessp : object
        Ignored, with a warning.
    bounds : scipy.optimize.Bounds or sequence of (low, high), optional
        None is no bound. Bounds are rounded to the dtype of ``x0``. ``fun`` is never called outside of them.
    constraints : object
        Must be empty, since RMSprop knows only bounds.
    callback : callable, optional
        Called after each step, as ``callback(x)``; or, if its only parameter is named ``intermediate_result``, with an
        OptimizeResult of x, fun, jac and nit. It may raise StopIteration to end the fit.
    learning_rate : float, LearningRateSchedule or callable, optional
        As in RMSprop. By default it falls exponentially from 0.1 to 1e-7 over the steps that ``maxiter`` and
        ``maxfev`` allow.
    momentum : float or callable, default 0.9
        As in RMSprop, but with another default. Set it to 0 for sparse gradients, so that a step moves only the
        elements that the gradient stores.
    maxiter : int, default 10000
        The highest number of steps.
    maxfev : int, optional
        The highest number of calls of ``fun``.
    tol : float, optional
        The default of ``gtol`` and ``ftol``.
    gtol : float, default 1e-5
        The fit has converged when no element of the gradient is larger. An element that points to a bound counts for
        no more than the distance to that bound. Below 0: never.
    ftol : float, default 1e-9
        The fit has converged when ``fun`` has neither fallen nor risen by more than ``ftol`` times its size for
        ``patience`` steps; with a ``window``, when it has not fallen by more. ``ftol`` falls in proportion to the
        learning rate, since at a low rate ``fun`` hardly changes, wherever x is. Below 0: never.
    patience : int, optional
        See ``ftol``. By default 3/10 of ``maxiter``, but at least 100.
    window : int, default 1
        For objectives with noise: after each window of this number of steps, ``gtol`` and ``ftol`` are compared with
        the means of the gradient and of ``fun`` over the window.
    x_scale : float, array_like of shape (n,), or "x0", default 1.0
        Typical sizes of the elements: steps are taken in ``x / x_scale``. "x0" stands for \|x0\|, and for 1 where
        x0 is 0.
    fd_method : {"2-point", "3-point", "cs"}, default "3-point"
        Finite differences, which call ``fun`` n, 2·n or n times for a gradient. "cs" are complex steps: they call
        ``fun`` with complex numbers.
    fd_step : float, optional
        The step of the differences, relative to the larger of \|x\| and ``x_scale``.
    disp : bool, default False
        Print a summary at the end.
    progress : bool, default False
        Show a progress bar, which needs tqdm.
    history : bool, default False
        Add ``history`` to the result: arrays nit, fun (the mean) and learning_rate, with an entry for each window.
    \*\*hyperparameters
        Other arguments of :class:`~numba_rmsprop.RMSprop`: rho, epsilon, centered, clipnorm, ...

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` is the point with the lowest ``fun``; with a window, the last point of the window with the lowest mean,
        and ``fun`` is that mean. ``jac`` is the gradient at ``x``. ``nit``, ``nfev`` and ``njev`` count steps, calls of
        ``fun`` (with those for finite differences) and gradients. ``success`` is True if the fit has converged, and
        ``message`` names the tolerance that was met. ``status`` is 0 if the fit has converged, 1 after ``maxiter``, 2
        after ``maxfev``, 3 if ``fun`` or ``jac`` was not finite, and 99 if the callback ended the fit.

    Raises
    ------
    TypeError, ValueError
        If an argument or option is of the wrong kind or out of its range (before ``fun`` is called); if ``fun`` does
        not return a number, or ``jac`` not n numbers; or if these are not finite at ``x0``.
    ImportError
        If ``progress`` is True and tqdm is not installed.

    Notes
    -----
    A step of RMSprop is about as long as the learning rate, whatever the size of the gradient. So set ``x_scale`` where
    the elements of x are not of the order of 1. At a constant rate, x ends about that far from the minimum, and
    ``ftol`` ends the fit there; only a falling rate leads closer. The mean gradient of a window may be small while x
    still swings to and fro in long steps: with ``gtol=-1``, ``fun`` alone decides.

    With ``momentum=0`` and no weight decay, or with ``sparse_update="lazy"``, the cost of a step with a sparse gradient
    depends on its stored entries only, and not on n. For smooth problems without noise, L-BFGS-B needs far fewer calls.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> result = minimize(rosen, np.array([-1.2, 1.0]), jac=rosen_der, method=rmsprop)
    >>> result.success, result.x.round(3)
    (True, array([1., 1.]))
    """
    _refuse_constraints(constraints)
    start = as_start(x0)
    bounds, scale = as_bounds(bounds, start), as_scale(x_scale, start)
    differences = FiniteDifferences(
        as_choice("fd_method", fd_method, METHODS),
        None if fd_step is None else as_positive("fd_step", fd_step),
        bounds,
        1.0 if scale is None else scale,
    )
    objective = Objective(fun, jac, args if isinstance(args, tuple) else (args,), differences)
    calls = objective.calls(start)
    maxiter = as_count("maxiter", maxiter, 0)
    maxfev = None if maxfev is None else as_count("maxfev", maxfev, calls)
    gtol, ftol = as_tolerances(tol, gtol, ftol)
    patience, window = as_patience(patience, maxiter), as_count("window", window, 1)
    near = near_the_lowest(start.dtype) if window == 1 else math.inf  # a window is for noise
    rule = StoppingRule(maxiter, gtol, ftol, patience, near, precision=0.0)
    if learning_rate is None:
        steps = maxiter if maxfev is None else min(maxiter, maxfev // calls - 1)
        learning_rate = falling_rate(steps, FIRST_RATE, LAST_RATE)
    known = {name: hyperparameters.pop(name) for name in CONSTRUCTOR & hyperparameters.keys()}
    optimizer = WatchedRMSprop(learning_rate, momentum=momentum, **known)
    callback = _callback_of_results(callback)
    disp, history, progress = as_flag("disp", disp), as_flag("history", history), as_flag("progress", progress)
    _warn(hess, hessp, hyperparameters)
    iterate = Iterate(start, bounds, scale, optimizer)
    with progress_bar(progress, total=maxiter, unit="step") as bar:
        fit = SingleFit(objective, iterate, rule, maxfev, window, callback, bar, history)
        fit.run()
    result = fit.result()
    if disp:
        _print(result)
    return result


def _refuse_constraints(constraints: Any) -> None:
    try:
        given = constraints is not None and len(constraints) > 0
    except TypeError:  # one constraint object
        given = True
    if given:
        raise ValueError(
            "constraints: expected none, since RMSprop knows only bounds; method='trust-constr' or 'SLSQP' takes "
            f"constraints, got {constraints!r:.100}"
        )


def _warn(hess: Any, hessp: Any, unknown: dict[str, Any]) -> None:
    """Warn of arguments that are ignored, in SciPy's words, at the line that calls ``minimize``."""
    if hess is not None:
        warn("Method rmsprop does not use Hessian information (hess).", RuntimeWarning)
    if hessp is not None:
        warn("Method rmsprop does not use Hessian-vector product information (hessp).", RuntimeWarning)
    if unknown:
        from scipy.optimize import OptimizeWarning

        options = [*CONSTRUCTOR, *inspect.signature(rmsprop).parameters]
        meanings = ((name, closest_name(name, options)) for name in unknown)
        listed = ", ".join(f"{name} (did you mean {other}?)" if other else name for name, other in meanings)
        warn(f"Unknown solver options: {listed}", OptimizeWarning)


def _callback_of_results(callback: Callable[..., object] | None) -> Callable[[Any], object] | None:
    """Return a function that calls ``callback`` with a result, or with its ``x``, as its signature asks."""
    if callback is None:
        return None
    check_callable("callback", callback)
    try:
        parameters = set(inspect.signature(callback).parameters)
    except ValueError:  # a builtin without a signature
        parameters = set()
    if parameters == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


def _print(result: Any) -> None:
    print(result.message)
    print(f"         Current function value: {result.fun:f}")
    print(f"         Iterations: {result.nit}")
    print(f"         Function evaluations: {result.nfev}")
    print(f"         Gradient evaluations: {result.njev}")
