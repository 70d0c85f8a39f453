"""How a fit ended, in words."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.fits.stopping import CONVERGED, NOT_FINITE, OUT_OF_CALLS, OUT_OF_STEPS, RAISED, STOPPED

MESSAGES = {
    CONVERGED: "Converged: the gradient is within gtol, or the function has not changed by ftol in patience steps.",
    OUT_OF_STEPS: "Stopped after maxiter steps without meeting a tolerance.",
    OUT_OF_CALLS: "Stopped after maxfev calls of the function without meeting a tolerance.",
    NOT_FINITE: "Stopped at NaN or infinity, of the function or its gradient; x is the best point before.",
    RAISED: "The function raised.",
    STOPPED: "Interrupted before a tolerance was met.",
}
"""What each status means."""


class Messages(UserDict[int, str]):
    """What each status means. No dict, since SciPy prints those in a result only if their keys are strings."""


def messages_of(status: NDArray[np.int8], errors: dict[int, Exception]) -> Messages:
    """Return the message of each status that there is; that of what was raised tells the first of the fits."""
    messages = Messages({int(code): MESSAGES[int(code)] for code in np.unique(status)})
    if errors:
        first = min(errors)
        messages[RAISED] = f"The function raised in {len(errors)} fits; in fit {first}: {errors[first]!r}"
    return messages


def succeeded(status: NDArray[np.int8]) -> NDArray[np.bool]:
    """Return which fits have met a tolerance."""
    return np.equal(status, CONVERGED)


def result(**fields: Any) -> Any:
    """Return a scipy.optimize.OptimizeResult."""
    from scipy.optimize import OptimizeResult  # here, since it takes 0.2 s to import

    return OptimizeResult(**fields)
