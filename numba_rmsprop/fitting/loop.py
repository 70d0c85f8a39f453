"""One fit, told in order: evaluate, judge, tell, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.variables import FloatArray
from ..gradients.kinds import Dense, Rows
from ..kernels.fits.stopping import (
    CONVERGED,
    NOT_FINITE,
    OUT_OF_CALLS,
    OUT_OF_STEPS,
    RUNNING,
    STOPPED,
    judge,
    slack,
    start_progress,
)
from .iterate import Iterate, WatchedRMSprop
from .limits import near_the_best
from .objective import Objective
from .window_means import Means


@dataclass(frozen=True)
class Rules:
    """When a fit ends; see :func:`numba_rmsprop.rmsprop`."""

    maxiter: int
    maxfev: int | None
    gtol: float
    ftol: float
    patience: int
    window: int


class Fit:
    """One run from ``x0`` to an end.

    Parameters
    ----------
    objective : Objective
        What is minimized.
    iterate : Iterate
        The point, at its start.
    optimizer : WatchedRMSprop
        What steps it.
    rules : Rules
        When to end.
    callback : callable or None
        Called with a result so far after each step; may raise StopIteration.
    watch : callable
        Called with the mean and the rate of each window, for whoever shows or keeps them.

    Attributes
    ----------
    nit : int
        How many steps were taken.
    status : int
        As in :mod:`numba_rmsprop.kernels.fits.stopping`.
    """

    def __init__(
        self,
        objective: Objective,
        iterate: Iterate,
        optimizer: WatchedRMSprop,
        rules: Rules,
        callback: Callable[[Any], object] | None,
        watch: Callable[[int, float, float], object],
    ) -> None:
        self._objective = objective
        self._iterate = iterate
        self._optimizer = optimizer
        self._rules = rules
        self._callback = callback
        self._watch = watch
        self._means = Means(iterate.x.size)
        self._progress = np.empty(3)
        start_progress(self._progress)
        self._moving_steps = 0
        self._judged = False
        self.nit = 0
        self.status = RUNNING
        self.message = ""
        self.best_value = math.inf
        self.best_gradient: Dense | Rows = Dense(np.zeros_like(iterate.x))

    def run(self) -> None:
        """Take steps until a rule ends it."""
        gradient = self._look()
        while self.status == RUNNING:
            if self._iterate.step(gradient):
                self._moving_steps += 1
            self.nit += 1
            gradient = self._look()

    def _look(self) -> Dense | Rows:
        """Evaluate the point, and set the status if a rule ends the fit here."""
        value, gradient = self._objective(self._iterate.seen)
        if not (math.isfinite(value) and np.isfinite(gradient.values).all()):
            self._refuse(value)
            return gradient
        self._means.add(value, gradient)
        status = self._judge_window(gradient) if self._means.points == self._rules.window else RUNNING
        if not self._judged:  # before the first whole window, the latest point is the best there is
            self._keep(self._means.value, gradient)
        if status == RUNNING:
            status = self._out_of_budget()
        if self.nit and self._callback is not None:
            status = self._tell(value, gradient, status)
        self.status = status
        return gradient

    def _judge_window(self, gradient: Dense | Rows) -> int:
        """Return the status after a whole window of steps."""
        means, rules, optimizer = self._means, self._rules, self._optimizer
        mean = means.value
        norm = means.norm(self._iterate.x, self._iterate.limits) if rules.gtol >= 0 else math.inf
        noisy = rules.window > 1
        near = math.inf if noisy else near_the_best(self._iterate.x.dtype)
        ftol = slack(rules.ftol, optimizer.rate / optimizer.highest_rate if optimizer.highest_rate > 0 else 1.0, 0.0)
        # Steps that were lost in rounding, or had a rate of 0, are no sign of a minimum.
        keep, status = judge(mean, norm, self._moving_steps, self._progress, rules.gtol, ftol, rules.patience, near)
        if keep:
            self._keep(mean, gradient)
        if status == CONVERGED:
            verb = "fallen" if noisy else "changed"
            self.message = "Optimization terminated successfully: " + (
                f"no element of the projected gradient is above gtol ({norm:.3g} <= {rules.gtol:.3g})."
                if norm <= rules.gtol
                else f"fun has not {verb} by more than ftol ({rules.ftol:.3g}) in {rules.patience} steps."
            )
        self._watch(self.nit, mean, optimizer.rate)
        means.clear()
        self._moving_steps = 0
        self._judged = True
        return int(status)

    def _out_of_budget(self) -> int:
        objective, rules = self._objective, self._rules
        if self.nit >= rules.maxiter:
            self.message = "Maximum number of iterations has been exceeded."
            return OUT_OF_STEPS
        if rules.maxfev is not None and objective.nfev + objective.calls(self._iterate.x) > rules.maxfev:
            self.message = "Maximum number of function evaluations has been exceeded."
            return OUT_OF_CALLS
        return RUNNING

    def _refuse(self, value: float) -> None:
        """End the fit where ``fun`` or ``jac`` is not finite."""
        where = f"fun: expected a finite number, got {value}"
        if math.isfinite(value):
            where = "jac: expected finite numbers, got NaN or infinity"
        if self.nit == 0:
            raise ValueError(f"{where} at x0")
        self.status = NOT_FINITE
        self.message = f"{where} after step {self.nit}; x is the best point before it."

    def _keep(self, value: float, gradient: Dense | Rows) -> None:
        self._iterate.keep()
        self.best_value = value
        # The array of a dense gradient may be the user's, who fills it anew at the next step.
        self.best_gradient = Dense(gradient.values.copy()) if isinstance(gradient, Dense) else gradient

    def _tell(self, value: float, gradient: Dense | Rows, status: int) -> int:
        """Call the callback with the point of this step."""
        from scipy.optimize import OptimizeResult

        assert self._callback is not None
        try:
            self._callback(
                OptimizeResult(
                    x=self._iterate.x.copy(), fun=value, jac=as_dense(gradient, self._iterate.x), nit=self.nit
                )
            )
        except StopIteration:
            self.message = "`callback` raised `StopIteration`."
            return STOPPED
        return status


def as_dense(gradient: Dense | Rows, x: FloatArray) -> FloatArray:
    """Return a gradient as a new array of ``x``'s shape."""
    dense = np.zeros_like(x)
    if isinstance(gradient, Rows):
        np.add.at(dense, gradient.indices, gradient.values[:, 0])
    else:
        dense[:] = gradient.values
    return dense
