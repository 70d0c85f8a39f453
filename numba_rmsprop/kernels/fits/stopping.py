"""When a fit ends: the rule of every way to fit, which stands here and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import compiled, compiled_inline

RUNNING = -1
CONVERGED = 0
OUT_OF_STEPS = 1
OUT_OF_CALLS = 2
NOT_FINITE = 3
RAISED = 4
STOPPED = 99

BEST, REFERENCE, STALE = 0, 1, 2
"""Entries of ``progress``: the lowest mean; the one that later means are held against; the steps since then."""


@compiled
def start_progress(progress: Any) -> None:
    """Set ``progress``, an array of three floats, to what it is before the first step."""
    progress[BEST] = np.inf
    progress[REFERENCE] = np.inf
    progress[STALE] = 0.0


@compiled_inline
def judge(mean: Any, norm: Any, steps: Any, progress: Any, gtol: Any, ftol: Any, patience: Any, near: Any) -> Any:
    """Return ``(keep, status)`` after a window of steps.

    Parameters
    ----------
    mean : float
        The mean of the objective over the window, so that noise in it weighs less.
    norm : float
        The largest element of the mean gradient over the window, or infinity where nobody asks.
    steps : int
        How many steps the window had.
    progress : ndarray of float, shape (3,)
        See :data:`BEST`; updated.
    gtol : float
        Converged when ``norm <= gtol``; below 0 for never.
    ftol : float
        Converged when the mean has neither fallen nor risen by more than ``ftol`` times its size for ``patience``
        steps; below 0 for never.
    patience : int
        See ``ftol``.
    near : float
        How far above the lowest mean, relative to its size, a point may be and still have converged: one that is
        further above has settled where it is worse than it was. Infinity where there is noise in the mean, so that it
        will go on to rise and fall: then it is enough for ``ftol`` that the mean has not fallen. Without noise that
        would not do: while the learning rate is high, a fit may come upon a low point by luck, and not find another
        one for long.

    Returns
    -------
    keep : bool
        Whether this is the point to return: that with the lowest mean, or one near it whose gradient is within
        ``gtol``.
    status : int
        :data:`RUNNING`, :data:`CONVERGED` or :data:`NOT_FINITE`.
    """
    if not (np.isfinite(mean) and norm >= 0):  # a norm may be infinite, since nobody asks, but not NaN
        return False, NOT_FINITE
    lowest = mean < progress[BEST]
    if lowest:
        progress[BEST] = mean
    noisy = near == np.inf
    reference = progress[REFERENCE]
    change = reference - mean if noisy else abs(reference - mean)
    if reference < np.inf and change <= ftol * abs(reference):
        progress[STALE] += steps
    else:
        progress[REFERENCE] = mean
        progress[STALE] = 0.0
    above, size = mean - progress[BEST], abs(progress[BEST])
    if norm <= gtol and (noisy or above <= near * size):
        return lowest or not noisy, CONVERGED
    if ftol >= 0 and progress[STALE] >= patience and (noisy or above <= near * size):
        return lowest, CONVERGED
    return lowest, RUNNING


@compiled_inline
def slack(ftol: Any, pace: Any, precision: Any) -> Any:
    """Return by how much, relative to its size, an objective without noise may change and still count as flat.

    A fit whose learning rate has fallen hardly moves, wherever it is. So ``ftol`` is meant for steps at the highest
    rate, and for others in proportion: far from a minimum, a change is proportional to the rate, and at a minimum to
    its square.

    Parameters
    ----------
    pace : float
        The learning rate, divided by the highest one.
    precision : float
        What rounding may change the objective by.
    """
    return ftol if ftol < 0 or not pace < 1 else max(ftol * pace, precision)
