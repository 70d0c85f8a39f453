"""Independent fits, each with its own data: the whole loop of one, and a worker's share of many."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..aliased_access import (
    glance,
    load_mg,
    load_momentum,
    load_rms,
    load_var,
    store_mg,
    store_momentum,
    store_rms,
    store_var,
)
from ..jit import Integer, compiled, compiled_for_functions, compiled_inline, compiled_loop_for_functions, inlined
from ..rule import Rates, clip, update
from ..tuple_intrinsics import row_of
from ..work_sharing import next_share
from .curves import curve_triangle
from .slopes import call_objective
from .stopping import OUT_OF_STEPS, RUNNING, STOPPED, judge, slack, start_progress


class Functions(NamedTuple):
    """What is called; compiled functions, or None."""

    cost: Any
    """:func:`objective_cost` or :func:`numba_rmsprop.kernels.fits.curves.curve_cost`."""
    slopes: Any
    """One of those in :mod:`numba_rmsprop.kernels.fits.slopes`."""
    fun: Any
    jac: Any
    loss: Any


class Space(NamedTuple):
    """Where a fit takes place. With a line for each fit, or one for all; a fit gets its own, without the first axis."""

    scale: Any
    """Typical sizes of the parameters; taken without sign, and 1 for 0. A fit gets the worker's buffer, filled so."""
    lower: Any
    upper: Any
    shifted: Any
    """Complex, for complex steps; or None. It has one line, the worker's, as has ``slopes``."""
    slopes: Any
    lengths: Any
    """For least squares, of one element more than there are parameters: see :func:`largest_slope`; or None."""
    complex_step: Any
    relative_step: Any


class Limits(NamedTuple):
    """When a fit ends: see :func:`numba_rmsprop.kernels.fits.stopping.judge` and :func:`slack`."""

    maxiter: Any
    gtol: Any
    ftol: Any
    patience: Any
    precision: Any
    """What rounding may change an objective by, relative to its size."""
    near: Any
    highest_rate: Any
    """The highest learning rate of all steps."""


class Constants(NamedTuple):
    """The numbers of every step, besides its learning rate; those up to ``clipvalue`` of the dtype of ``x``."""

    rho: Any
    one_minus_rho: Any
    momentum: Any
    epsilon_inside: Any
    epsilon_outside: Any
    clipvalue: Any
    clipnorm: Any
    """Infinite where there is none."""
    weight_decay: Any


class Results(NamedTuple):
    """What comes of the fits, a line or a number for each."""

    x: Any
    fun: Any
    nit: Any
    status: Any
    triangles: Any
    """Of least squares, what covariances come from, shape (fits, parameters, parameters); or None."""


class Scratch(NamedTuple):
    """What a worker needs for the fit that it is at. Arrays of shape (parameters,), or (1, parameters)."""

    x: Any
    scaled: Any
    """The variable of RMSprop: x divided by its scale."""
    scale: Any
    gradient: Any
    best: Any
    rms: Any
    mg: Any
    momentum: Any
    progress: Any
    current: Any
    """The fit, and how many steps it has taken, so that it is known which one raised and when."""


@compiled_for_functions
def objective_cost(functions: Any, x: Any, row: Any, space: Any, gradient: Any) -> Any:
    """Return the user's objective, and fill its gradient."""
    return functions.slopes(call_objective, functions.fun, functions.jac, x, row, (), space, gradient)


@compiled_loop_for_functions
def run_fits(
    functions: Any,
    data: Any,
    space: Any,
    learning_rates: Any,
    constants: Any,
    limits: Any,
    results: Any,
    scratch: Any,
    worker: Integer,
    counters: Any,
    stop: Any,
) -> None:
    """Take fits, one after the other, until there is none left or ``stop[0, 0]`` is set.

    Parameters
    ----------
    functions : Functions
    data : tuple
        See :func:`numba_rmsprop.kernels.tuple_intrinsics.row_of`.
    space : Space
    learning_rates : ndarray, shape (maxiter,) or (1,)
        Of each step, or of all.
    constants : Constants
    limits : Limits
    results : Results
        Its ``x`` holds the starts.
    scratch : Scratch
    worker, counters
        See :func:`numba_rmsprop.kernels.work_sharing.next_share`.
    stop : ndarray of int64, shape (1, 8)
    """
    while glance(stop, 0) == 0:
        i = next_share(worker, counters.shape[0], results.nit.size, counters)
        if i < 0:
            return
        scratch.current[0] = i
        scratch.current[1] = 0
        own = Space(
            scratch.scale,
            line_of(space.lower, i),
            line_of(space.upper, i),
            space.shifted,
            space.slopes,
            space.lengths,
            space.complex_step,
            space.relative_step,
        )
        start(results.x[i], line_of(space.scale, i), scratch)
        row = row_of(data, i)
        best, steps, status = fit(functions, row, own, learning_rates, constants, limits, scratch, stop)
        results.fun[i], results.nit[i], results.status[i] = best, steps, status
        for j in range(scratch.best.size):
            results.x[i, j] = scratch.best[j]
        finish(functions, scratch.best, row, own, results.triangles, i)


@inlined
def line_of(array: Any, i: Any) -> Any:
    """Return a fit's own line of an array, or the only one."""
    return array[min(i, array.shape[0] - 1)]


@compiled_for_functions
def finish(functions: Any, x: Any, row: Any, space: Any, triangles: Any, i: Any) -> None:
    """Write what the covariance of a fit comes from, where that is asked for."""
    if triangles is not None:
        curve_triangle(functions, x, row, space, triangles[i])


@compiled
def start(x0: Any, scale: Any, scratch: Any) -> None:
    """Prepare a worker for a fit."""
    start_progress(scratch.progress)
    for j in range(x0.size):
        scratch.x[j] = x0[j]
        scratch.best[j] = x0[j]
        scratch.scale[j] = 1.0 if scale[j] == 0.0 else abs(scale[j])
        scratch.scaled[0, j] = x0[j] / scratch.scale[j]
        store_rms(scratch.rms, 0, j, 0.0)
        store_mg(scratch.mg, 0, j, 0.0)
        store_momentum(scratch.momentum, 0, j, 0.0)


@inlined
def fit(
    functions: Any, row: Any, space: Any, learning_rates: Any, constants: Any, limits: Any, scratch: Any, stop: Any
) -> Any:
    """Take steps until one of the limits is met; return ``(lowest cost, steps, status)``."""
    x, best = scratch.x, np.nan
    steps, moved = 0, 0
    while True:
        cost = functions.cost(functions, x, row, space, scratch.gradient)
        norm = largest_slope(x, scratch.gradient, space.lengths, space.lower, space.upper)
        rate = learning_rates[min(steps, learning_rates.size - 1)]
        ftol = slack(limits.ftol, rate / limits.highest_rate, limits.precision)
        keep, status = judge(
            np.float64(cost), norm, moved, scratch.progress, limits.gtol, ftol, limits.patience, limits.near
        )
        if keep:
            best = np.float64(cost)
            for j in range(x.size):
                scratch.best[j] = x[j]
        if status == RUNNING and steps == limits.maxiter:
            status = OUT_OF_STEPS
        if status == RUNNING and glance(stop, 0) != 0:
            status = STOPPED
        if status != RUNNING:
            return best, steps, status
        moved = take_step(rate, constants, space.lower, space.upper, scratch)
        steps += 1
        scratch.current[1] = steps


@compiled_inline
def largest_slope(x: Any, gradient: Any, lengths: Any, lower: Any, upper: Any) -> float:
    """Return how far from a minimum the gradient says that x is, in its largest element; or NaN.

    Where ``lengths`` is None, that is the gradient itself, or how far its parameter is from the bound that it
    points to. For least squares, it is the cosine between the residuals and a column of the Jacobian, which has no
    units: its square is the share of the cost that this parameter alone could still remove. ``lengths`` holds the
    squares of the columns' lengths, and then that of the residuals'.
    """
    largest = 0.0
    held = idle = False
    for j in range(x.size):
        slope = np.float64(gradient[j])
        if not np.isfinite(slope):
            return np.nan
        room = np.float64(x[j] - lower[j] if slope > 0 else upper[j] - x[j])
        if lengths is None:
            largest = max(largest, min(abs(slope), room))
        elif not np.isfinite(lengths[j]):
            return np.inf
        elif lengths[j] > 0:
            if room > 0 and slope != 0:
                largest = max(largest, abs(slope) / np.sqrt(lengths[j]) / np.sqrt(lengths[x.size]))
            held |= room == 0
        elif lower[j] < upper[j]:
            idle = True
    # A model that does not depend on a parameter, as where a step has led to 0 everywhere, is no sign of a minimum;
    # but an amplitude that its bound holds at 0 leaves the others without a say.
    return np.inf if idle and not held else largest


@compiled_inline
def take_step(learning_rate: Any, constants: Any, lower: Any, upper: Any, scratch: Any) -> int:
    """Take a step of RMSprop in ``x / scale``, and go back within the bounds; return 1, or 0 if x is what it was.

    A step that was lost in rounding, or had a rate of 0, is no sign of a minimum.
    """
    x, scaled, scale, gradient = scratch.x, scratch.scaled, scratch.scale, scratch.gradient
    real = x.dtype.type
    for j in range(x.size):
        gradient[j] *= scale[j]
    rates = Rates(
        real(learning_rate),
        constants.rho,
        constants.one_minus_rho,
        constants.momentum,
        constants.epsilon_inside,
        constants.epsilon_outside,
        real(1.0 - learning_rate * constants.weight_decay),
        constants.clipvalue,
        real(1.0),
        real(1.0),
        real(0.0),
    )
    if constants.clipnorm < np.inf:
        rates = scaled_down(rates, gradient, constants.clipnorm)
    for j in range(x.size):
        var, rms, mg, momentum = update(
            load_var(scaled, 0, j),
            clip(gradient[j], rates),
            load_rms(scratch.rms, 0, j),
            load_mg(scratch.mg, 0, j),
            load_momentum(scratch.momentum, 0, j),
            rates,
        )
        store_rms(scratch.rms, 0, j, rms)
        store_mg(scratch.mg, 0, j, mg)
        store_momentum(scratch.momentum, 0, j, momentum)
        store_var(scaled, 0, j, var)
    moved = 0
    for j in range(x.size):
        before = x[j]
        x[j] = scaled[0, j] * scale[j]
        if x[j] < lower[j] or x[j] > upper[j]:
            x[j] = min(max(x[j], lower[j]), upper[j])
            scaled[0, j] = x[j] / scale[j]
        if x[j] != before:
            moved = 1
    return moved


@compiled_inline
def scaled_down(rates: Any, gradient: Any, clipnorm: Any) -> Any:
    """Return the rates that leave the gradient, its values clipped, a norm of at most ``clipnorm``."""
    total = 0.0
    for j in range(gradient.size):
        clipped = np.float64(clip(gradient[j], rates))
        total += clipped * clipped
    norm = np.sqrt(total)
    scale = 1.0 if norm <= clipnorm else clipnorm / norm
    return Rates(
        rates.learning_rate,
        rates.rho,
        rates.one_minus_rho,
        rates.momentum,
        rates.epsilon_inside,
        rates.epsilon_outside,
        rates.shrink,
        rates.clipvalue,
        gradient.dtype.type(scale),
        rates.outer_rate,
        rates.coupled_decay,
    )
