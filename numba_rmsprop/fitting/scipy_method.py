"""A method for ``scipy.optimize.minimize``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..runtime.caller_warnings import warn
from ..settings.option_names import ARGUMENTS, closest_name
from .differences import METHODS, Differences
from .iterate import Iterate, WatchedRMSprop
from .loop import Fit, Rules, as_dense
from .objective import Objective
from .options import (
    MAXITER,
    MOMENTUM,
    as_choice,
    as_count,
    as_flag,
    as_limits,
    as_patience,
    as_positive,
    as_scale,
    as_start,
    falling_rate,
    tolerances,
)
from .progress import Watchers

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

    With g the gradient at x, a step is (:class:`~numba_rmsprop.RMSprop` tells what else it may be)::

        u   = x / x_scale;  h = g · x_scale
        rms <- rho·rms + (1 - rho)·h²
        mom <- momentum·mom + lr·h / sqrt(rms + epsilon)
        x   <- (u - mom) · x_scale, clipped to the bounds

    Pass it as ``minimize(fun, x0, jac=..., method=rmsprop, options={...})``; what follows the callback are options.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns a number. ``x`` is a read-only view of the point, which the next step changes: take a
        copy to keep it.
    x0 : array_like, shape (n,)
        Where to begin, within the bounds. float32 stays float32, for ``fun`` too; integers become float64.
    args : tuple
        More arguments of ``fun`` and ``jac``.
    jac : callable, optional
        ``jac(x, *args)`` returns the gradient: an array (n,), or a scipy.sparse array of any format, of shape (n,),
        (1, n) or (n, 1), of which a step reads and writes only the stored entries. Through ``minimize``, also True.
        Without it, finite differences: ``minimize`` does not hand on which, so ``fd_method`` tells.
    hess, hessp : object
        Ignored, with a warning.
    bounds : scipy.optimize.Bounds or sequence of (low, high), optional
        None is no bound. They are rounded to the dtype of ``x0``. ``fun`` is never called outside.
    constraints : object
        Refused if there are any.
    callback : callable, optional
        Called after each step: as ``callback(intermediate_result=result)``, with x, fun, jac and nit, if that is what
        its argument is named, and else as ``callback(x)``. It may raise StopIteration to end the fit.
    learning_rate : float, LearningRateSchedule or callable, optional
        As in RMSprop. By default it falls exponentially, from 0.1 at the first step to 1e-7 at the last.
    momentum : float or callable, default 0.9
        As in RMSprop, but with another default. 0 for sparse gradients, so that the elements that a step leaves out
        stay where they are.
    maxiter : int, default 10000
        Most steps.
    maxfev : int, optional
        Most calls of ``fun``.
    tol : float, optional
        ``gtol`` and ``ftol``, where they are not given.
    gtol : float, default 1e-5
        Success when no element of the gradient by x is larger, projected onto the bounds: where x would leave them,
        an element counts for as far as x can go. Below 0 for never.
    ftol : float, default 1e-9
        Success when ``fun`` has neither fallen nor risen by more than ``ftol`` times its size for ``patience`` steps;
        with a ``window``, when it has not fallen. While the learning rate is a fraction of its highest so far, so is
        ``ftol``, since ``fun`` changes more slowly then wherever x is. Below 0 for never.
    patience : int, optional
        See ``ftol``. By default 3/10 of ``maxiter``, but at least 100.
    window : int, default 1
        For objectives with noise: both rules look at means of ``fun`` and of the gradient over windows of so many
        steps, one behind the other.
    x_scale : float, array_like of shape (n,), or "x0", default 1.0
        How large a step each element may need: steps are taken in ``x / x_scale``. "x0" stands for \|x0\|, and 1 where
        it is 0.
    fd_method : {"2-point", "3-point", "cs"}, default "3-point"
        Finite differences for the gradient: n, 2·n and n calls of ``fun``; "cs" calls it with complex numbers.
    fd_step : float, optional
        Their step, relative to the larger of \|x\| and ``x_scale``.
    disp : bool, default False
        Print a summary at the end.
    progress : bool, default False
        Show a bar, for which tqdm must be installed.
    history : bool, default False
        Keep nit, fun (its mean) and learning_rate of each window, as arrays in ``result.history``.
    \*\*hyperparameters
        Other arguments of :class:`~numba_rmsprop.RMSprop`: rho, epsilon, centered, clipnorm, ...

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` is the point with the lowest ``fun`` of all; with a window, the last point of the window with the lowest
        mean, and ``fun`` that mean. ``jac`` is the gradient there. ``nit``, ``nfev`` and ``njev`` count steps, calls of
        ``fun`` (with those for finite differences) and gradients. ``success`` is True when a tolerance was met, and
        ``message`` tells which. ``status``: 0 for that, 1 after ``maxiter``, 2 after ``maxfev``, 3 if ``fun`` or
        ``jac`` was not finite, 99 if the callback ended the fit.

    Raises
    ------
    TypeError, ValueError
        If an argument or option is of the wrong kind or out of its range, before ``fun`` is called; if ``fun`` or
        ``jac`` returns something else than a number and n numbers; or if they are not finite at ``x0``.
    ImportError
        If ``progress`` asks for tqdm, and there is none.

    Notes
    -----
    RMSprop's steps are about as long as the learning rate, whatever the gradient's size: where x is of another order
    than 1, say so with ``x_scale``. At a constant rate, x ends about that far from the minimum, and ``ftol`` ends the
    fit there; only a falling rate leads further. Over a window, the mean gradient may be small while x still swings to
    and fro in long steps: with ``gtol=-1``, ``fun`` alone decides.

    With ``momentum=0`` and no weight decay, or with ``sparse_update="lazy"``, a step with a sparse gradient costs its
    stored entries and no pass over x. For smooth problems without noise, L-BFGS-B needs far fewer calls.

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
    limits = as_limits(bounds, start)
    scale = as_scale(x_scale, start)
    differences = Differences(
        as_choice("fd_method", fd_method, METHODS),
        None if fd_step is None else as_positive("fd_step", fd_step),
        limits,
        1.0 if scale is None else scale,
    )
    objective = Objective(fun, jac, args if isinstance(args, tuple) else (args,), differences)
    calls = objective.calls(start)
    steps = as_count("maxiter", maxiter, 0)
    rules = Rules(
        steps,
        None if maxfev is None else as_count("maxfev", maxfev, calls),
        *tolerances(tol, gtol, ftol),
        as_patience(patience, steps),
        as_count("window", window, 1),
    )
    if learning_rate is None:
        learning_rate = falling_rate(steps if rules.maxfev is None else min(steps, rules.maxfev // calls - 1))
    known = {name: hyperparameters.pop(name) for name in CONSTRUCTOR & hyperparameters.keys()}
    optimizer = WatchedRMSprop(learning_rate, momentum=momentum, **known)
    tell = _teller(callback)
    shown, kept = as_flag("disp", disp), as_flag("history", history)
    watchers = Watchers(steps, progress=as_flag("progress", progress), history=kept)
    _warn(hess, hessp, hyperparameters)
    iterate = Iterate(start, limits, scale, optimizer)
    fit = Fit(objective, iterate, optimizer, rules, tell, watchers)
    with watchers:
        fit.run()
    result = _result(fit, iterate, objective)
    if kept:
        result.history = watchers.history()
    if shown:
        _show(result)
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
    """Warn of what is ignored, in SciPy's words, at the line that calls ``minimize``."""
    if hess is not None:
        warn("Method rmsprop does not use Hessian information (hess).", RuntimeWarning)
    if hessp is not None:
        warn("Method rmsprop does not use Hessian-vector product information (hessp).", RuntimeWarning)
    if unknown:
        from scipy.optimize import OptimizeWarning

        options = [*CONSTRUCTOR, *inspect.signature(rmsprop).parameters]
        told = ((name, closest_name(name, options)) for name in unknown)
        listed = ", ".join(f"{name} (did you mean {other}?)" if other else name for name, other in told)
        warn(f"Unknown solver options: {listed}", OptimizeWarning)


def _teller(callback: Callable[..., object] | None) -> Callable[[Any], object] | None:
    """Return a function of a result that calls ``callback`` as it wants to be called."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"callback: expected a callable, got {callback!r} ({type(callback).__name__})")
    try:
        wanted = set(inspect.signature(callback).parameters)
    except ValueError:  # a builtin that does not tell
        wanted = set()
    if wanted == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


def _result(fit: Fit, iterate: Iterate, objective: Objective) -> Any:
    from scipy.optimize import OptimizeResult

    return OptimizeResult(
        x=iterate.best,
        fun=fit.best_value,
        jac=as_dense(fit.best_gradient, iterate.x),
        nit=fit.nit,
        nfev=objective.nfev,
        njev=objective.njev,
        status=fit.status,
        success=fit.status == 0,
        message=fit.message,
    )


def _show(result: Any) -> None:
    print(result.message)
    print(f"         Current function value: {result.fun:f}")
    print(f"         Iterations: {result.nit}")
    print(f"         Function evaluations: {result.nfev}")
    print(f"         Gradient evaluations: {result.njev}")
