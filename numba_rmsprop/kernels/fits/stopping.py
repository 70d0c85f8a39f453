"""The rule that ends a fit, for every way to fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..jit import compiled

RUNNING = -1
CONVERGED = 0
OUT_OF_STEPS = 1
OUT_OF_CALLS = 2
NOT_FINITE = 3
RAISED = 4
STOPPED = 99

LOWEST, REFERENCE, FLAT_STEPS = 0, 1, 2
"""Entries of ``progress``: the lowest mean, the mean that later ones are compared with, and the steps since it."""


class StoppingRule(NamedTuple):
    """The limits of a fit: see :func:`judge` and :func:`slack`."""

    maxiter: Any
    gtol: Any
    ftol: Any
    patience: Any
    near: Any
    precision: Any


@compiled
def start_progress(progress: Any) -> None:
    """Set ``progress``, an array of three floats, to its state before the first step."""
    progress[LOWEST] = np.inf
    progress[REFERENCE] = np.inf
    progress[FLAT_STEPS] = 0.0


@compiled
def judge(mean: Any, norm: Any, steps: Any, progress: Any, gtol: Any, ftol: Any, patience: Any, near: Any) -> Any:
    """Return ``(keep, status)`` after a window of steps.

    Parameters
    ----------
    mean : float
        The mean of the objective over the window, which has less noise than the objective.
    norm : float
        The largest element of the mean gradient over the window; infinity if ``gtol`` is not in use.
    steps : int
        The number of steps in the window that moved ``x``.
    progress : ndarray of float, shape (3,)
        See :data:`LOWEST`; updated.
    gtol : float
        The fit has converged when ``norm <= gtol``. Below 0: never.
    ftol : float
        The fit has converged when the mean has neither fallen nor risen by more than ``ftol`` times its size for
        ``patience`` steps. Below 0: never.
    patience : int
        See ``ftol``.
    near : float
        A fit has converged only at a mean that is at most ``near`` times its size above the lowest one: further up, it
        has settled at a worse point than one it has seen. While the learning rate is high, a fit may meet a low point
        by luck and not find another for long, so it must not end there. Infinity means that the objective has noise.
        Its mean never stops rising and falling, so for ``ftol`` it is enough that the mean has not fallen.

    Returns
    -------
    keep : bool
        Whether to return this point: it has the lowest mean, or one near it and a gradient within ``gtol``.
    status : int
        :data:`RUNNING`, :data:`CONVERGED` or :data:`NOT_FINITE`.
    """
    if not (np.isfinite(mean) and norm >= 0):  # infinity is a valid norm, and NaN is not
        return False, NOT_FINITE
    lowest = mean < progress[LOWEST]
    if lowest:
        progress[LOWEST] = mean
    noisy = near == np.inf
    reference = progress[REFERENCE]
    change = reference - mean if noisy else abs(reference - mean)
    if reference < np.inf and change <= ftol * abs(reference):
        progress[FLAT_STEPS] += steps
    else:
        progress[REFERENCE] = mean
        progress[FLAT_STEPS] = 0.0
    above, size = mean - progress[LOWEST], abs(progress[LOWEST])
    if not noisy and above > near * size:
        return lowest, RUNNING
    if norm <= gtol:
        return lowest or not noisy, CONVERGED
    if ftol >= 0 and progress[FLAT_STEPS] >= patience:
        return lowest, CONVERGED
    return lowest, RUNNING


@compiled
def slack(ftol: Any, pace: Any, precision: Any) -> Any:
    """Return ``ftol`` for the learning rate of this step.

    ``ftol`` is meant for steps at the highest rate. At a low rate the objective hardly changes, even far from a
    minimum, so ``ftol`` falls with the rate. Far from a minimum a change is proportional to the rate, and near a
    minimum to its square.

    Parameters
    ----------
    ftol : float
    pace : float
        The learning rate, divided by the highest one.
    precision : float
        The lowest result: the relative change of the objective that may come from rounding.
    """
    return ftol if ftol < 0 or not pace < 1 else max(ftol * pace, precision)
