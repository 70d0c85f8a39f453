"""Many fits in compiled code: the loop of one fit, and a worker's share of all."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..aliased_access import glance
from ..jit import Integer, compiled, compiled_inline, inlined
from ..state import store_state
from ..work_stealing import next_share
from .arguments import COST, TRIANGLE
from .evaluator import call_evaluator
from .step import take_step
from .stopping import OUT_OF_STEPS, RUNNING, STOPPED, judge, slack, start_progress


@compiled
def run_fits(
    evaluator: Any,
    lines: Any,
    numbers: Any,
    rule: Any,
    results: Any,
    scratch: Any,
    worker: Integer,
    counters: Any,
    stop: Any,
) -> None:
    """Run one fit after the other, until none is left or ``stop[0, 0]`` is set.

    Parameters
    ----------
    evaluator : tuple of int
        See :mod:`~.evaluator`.
    lines : Lines
    numbers : FitNumbers
    rule : StoppingRule
    results : Results
    scratch : Scratch
        Used by this worker only.
    worker, counters
        See :func:`numba_rmsprop.kernels.work_stealing.next_share`.
    stop : ndarray of int64, shape (1, 8)
    """
    while glance(stop, 0) == 0:
        i = next_share(worker, counters.shape[0], results.nit.size, counters)
        if i < 0:
            return
        scratch.current[0] = i
        scratch.current[1] = 0
        start_fit(results.x[i], line_of(lines.scale, i), line_of(lines.lower, i), line_of(lines.upper, i), scratch)
        best, steps, status = run_fit(evaluator, i, numbers, rule, scratch, stop)
        results.fun[i], results.nit[i], results.status[i] = best, steps, status
        for j in range(scratch.best.size):
            results.x[i, j] = scratch.best[j]
        call_evaluator(evaluator, i, TRIANGLE)


@inlined
def line_of(array: Any, i: Any) -> Any:
    """Return the line of fit ``i``, or the only line."""
    return array[min(i, array.shape[0] - 1)]


@compiled
def start_fit(x0: Any, scale: Any, lower: Any, upper: Any, scratch: Any) -> None:
    """Fill a worker's memory for a new fit."""
    start_progress(scratch.progress)
    for j in range(x0.size):
        scratch.x[j] = x0[j]
        scratch.best[j] = x0[j]
        scratch.slopes.scale[j] = 1.0 if scale[j] == 0.0 else abs(scale[j])
        scratch.slopes.lower[j] = lower[j]
        scratch.slopes.upper[j] = upper[j]
        store_state(scratch.state, 0, j, (x0[j] / scratch.slopes.scale[j], 0.0, 0.0, 0.0), None)


@inlined
def run_fit(evaluator: Any, i: Integer, numbers: Any, rule: Any, scratch: Any, stop: Any) -> Any:
    """Take steps until the fit ends; return ``(lowest cost, steps, status)``."""
    x, slopes, best = scratch.x, scratch.slopes, np.nan
    steps, moved = 0, 0
    while True:
        cost = call_evaluator(evaluator, i, COST)
        norm = largest_slope(x, slopes.gradient, slopes.squares, slopes.lower, slopes.upper)
        rate = numbers.learning_rates[min(steps, numbers.learning_rates.size - 1)]
        ftol = slack(rule.ftol, rate / numbers.highest_rate, rule.precision)
        # Steps too short to change x do not count: they are no sign of a minimum.
        keep, status = judge(cost, norm, moved, scratch.progress, rule.gtol, ftol, rule.patience, rule.near)
        if keep:
            best = cost
            for j in range(x.size):
                scratch.best[j] = x[j]
        if status == RUNNING and steps == rule.maxiter:
            status = OUT_OF_STEPS
        if status == RUNNING and glance(stop, 0) != 0:
            status = STOPPED
        if status != RUNNING:
            return best, steps, status
        moved = take_step(rate, numbers, scratch)
        steps += 1
        scratch.current[1] = steps


@compiled_inline
def largest_slope(x: Any, gradient: Any, squares: Any, lower: Any, upper: Any) -> float:
    """Return the largest slope along a parameter, which is compared with ``gtol``; NaN if a slope is not finite.

    Without ``squares``, a slope is the element of the gradient, or the distance to the bound that it points to, if
    that is less. For least squares, it is the cosine between the residuals and a column of the Jacobian. The cosine
    has no units: its square is the part of the cost that this parameter alone could still remove.
    """
    largest = 0.0
    held = idle = False
    for j in range(x.size):
        slope = np.float64(gradient[j])
        if not np.isfinite(slope):
            return np.nan
        room = np.float64(x[j] - lower[j] if slope > 0 else upper[j] - x[j])
        if squares is None:
            largest = max(largest, min(abs(slope), room))
        elif not np.isfinite(squares[j]):
            return np.inf
        elif squares[j] > 0:
            if room > 0 and slope != 0:
                largest = max(largest, abs(slope) / np.sqrt(squares[j]) / np.sqrt(squares[x.size]))
            held |= room == 0
        elif lower[j] < upper[j]:
            idle = True
    # Where a step has led to a model that is 0 everywhere, no parameter has a slope, and that is no minimum. But where
    # a bound holds an amplitude at 0, the other parameters have no slope at the minimum either.
    return np.inf if idle and not held else largest
