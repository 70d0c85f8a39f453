"""The loop of a fit by the method for SciPy: evaluate, judge, report, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gradients.dense import Dense
from ..gradients.rows import Rows
from ..kernels.fits.stopping import (
    CONVERGED,
    NOT_FINITE,
    OUT_OF_CALLS,
    OUT_OF_STEPS,
    RUNNING,
    STOPPED,
    StoppingRule,
    judge,
    slack,
    start_progress,
)
from .iterate import Iterate
from .objective import Objective, as_dense
from .window_means import WindowMeans

HISTORY = np.dtype([("nit", np.int64), ("fun", np.float64), ("learning_rate", np.float64)])
"""The entries of ``result.history``."""


class SingleFit:
    """One fit, from ``x0`` to its end.

    Parameters
    ----------
    objective : Objective
    iterate : Iterate
    rule : StoppingRule
    maxfev : int or None
        The highest number of calls of ``fun``.
    window : int
        The number of steps between two looks at the rule.
    callback : callable or None
        Called with an OptimizeResult after each step. It may raise StopIteration.
    bar : tqdm or None
        The progress bar.
    history : bool
        Whether to note the mean and the learning rate of each window.

    Attributes
    ----------
    nit : int
        The number of steps so far.
    status : int
        See :mod:`numba_rmsprop.kernels.fits.stopping`.
    """

    def __init__(
        self,
        objective: Objective,
        iterate: Iterate,
        rule: StoppingRule,
        maxfev: int | None,
        window: int,
        callback: Callable[[Any], object] | None,
        bar: Any,
        history: bool,
    ) -> None:
        self._objective = objective
        self._iterate = iterate
        self._rule = rule
        self._maxfev = maxfev
        self._window = window
        self._callback = callback
        self._bar = bar
        self._history: list[tuple[int, float, float]] | None = [] if history else None
        self._means = WindowMeans(iterate.x.size)
        self._progress = np.empty(3)
        start_progress(self._progress)
        self._moving_steps = 0
        self._judged = False
        self.nit = 0
        self.status = RUNNING
        self.message = ""
        self._best_value = math.inf
        self._best_gradient: Dense | Rows = Dense(np.zeros_like(iterate.x))

    def run(self) -> None:
        """Take steps until the fit ends."""
        gradient = self._evaluate()
        while self.status == RUNNING:
            if self._iterate.step(gradient):
                self._moving_steps += 1
            self.nit += 1
            gradient = self._evaluate()

    def result(self) -> Any:
        """Return the OptimizeResult."""
        from scipy.optimize import OptimizeResult  # here, since it takes 0.2 s to import

        result = OptimizeResult(
            x=self._iterate.best,
            fun=self._best_value,
            jac=as_dense(self._best_gradient, self._iterate.x),
            nit=self.nit,
            nfev=self._objective.nfev,
            njev=self._objective.njev,
            status=self.status,
            success=self.status == CONVERGED,
            message=self.message,
        )
        if self._history is not None:
            noted: NDArray[Any] = np.array(self._history, HISTORY)
            result.history = {name: noted[name].copy() for name in HISTORY.names or ()}
        return result

    def _evaluate(self) -> Dense | Rows:
        """Evaluate the point and return the gradient; set the status if the fit ends here."""
        value, gradient = self._objective(self._iterate.seen)
        if not (math.isfinite(value) and np.isfinite(gradient.values).all()):
            self._end_at_infinity(value)
            return gradient
        self._means.add(value, gradient)
        status = self._judge_window(gradient) if self._means.points == self._window else RUNNING
        if not self._judged:  # before the end of the first window, the latest point is the best
            self._keep(self._means.value, gradient)
        if status == RUNNING:
            status = self._out_of_budget()
        if self.nit and self._callback is not None:
            status = self._call_back(value, gradient, status)
        self.status = status
        return gradient

    def _judge_window(self, gradient: Dense | Rows) -> int:
        """Return the status at the end of a window."""
        means, rule = self._means, self._rule
        mean = means.value
        norm = means.norm(self._iterate.x, self._iterate.bounds) if rule.gtol >= 0 else math.inf
        ftol = slack(rule.ftol, self._iterate.optimizer.pace, rule.precision)
        # Steps too short to change x do not count: they are no sign of a minimum.
        keep, status = judge(mean, norm, self._moving_steps, self._progress, rule.gtol, ftol, rule.patience, rule.near)
        if keep:
            self._keep(mean, gradient)
        if status == CONVERGED:
            verb = "changed" if rule.near < math.inf else "fallen"
            self.message = "Optimization terminated successfully: " + (
                f"no element of the projected gradient is above gtol ({norm:.3g} <= {rule.gtol:.3g})."
                if norm <= rule.gtol
                else f"fun has not {verb} by more than ftol ({rule.ftol:.3g}) in {rule.patience} steps."
            )
        self._report(mean)
        means.clear()
        self._moving_steps = 0
        self._judged = True
        return int(status)

    def _report(self, mean: float) -> None:
        """Show or note the mean of a window."""
        rate = self._iterate.optimizer.rate
        if self._history is not None:
            self._history.append((self.nit, mean, rate))
        if self._bar is not None:
            self._bar.set_postfix_str(f"fun={mean:.6g}, learning_rate={rate:.2g}", refresh=False)
            self._bar.update(self.nit - self._bar.n)

    def _out_of_budget(self) -> int:
        if self.nit >= self._rule.maxiter:
            self.message = "Maximum number of iterations has been exceeded."
            return OUT_OF_STEPS
        objective = self._objective
        if self._maxfev is not None and objective.nfev + objective.calls(self._iterate.x) > self._maxfev:
            self.message = "Maximum number of function evaluations has been exceeded."
            return OUT_OF_CALLS
        return RUNNING

    def _end_at_infinity(self, value: float) -> None:
        """End the fit where ``fun`` or ``jac`` is not finite; raise ValueError at the start."""
        wrong = f"fun: expected a finite number, got {value}"
        if math.isfinite(value):
            wrong = "jac: expected finite numbers, got NaN or infinity"
        if self.nit == 0:
            raise ValueError(f"{wrong} at x0")
        self.status = NOT_FINITE
        self.message = f"{wrong} after step {self.nit}; x is the best point before it."

    def _keep(self, value: float, gradient: Dense | Rows) -> None:
        self._iterate.keep()
        self._best_value = value
        # A copy, since the user may write the next gradient into the same array.
        self._best_gradient = Dense(gradient.values.copy()) if isinstance(gradient, Dense) else gradient

    def _call_back(self, value: float, gradient: Dense | Rows, status: int) -> int:
        """Call the callback, and return the status after it."""
        from scipy.optimize import OptimizeResult

        assert self._callback is not None
        x = self._iterate.x
        try:
            self._callback(OptimizeResult(x=x.copy(), fun=value, jac=as_dense(gradient, x), nit=self.nit))
        except StopIteration:
            self.message = "`callback` raised `StopIteration`."
            return STOPPED
        return status
