"""The results of many fits, as SciPy has them."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np

from ..kernels.fits.arguments import Results
from ..kernels.fits.stopping import CONVERGED, NOT_FINITE, OUT_OF_STEPS, RAISED, STOPPED

MESSAGES = {
    CONVERGED: "Converged: the gradient is within gtol, or the function has not changed by ftol in patience steps.",
    OUT_OF_STEPS: "Stopped after maxiter steps without meeting a tolerance.",
    NOT_FINITE: "Stopped at NaN or infinity, of the function or its gradient; x is the best point before.",
    RAISED: "The function raised.",
    STOPPED: "Interrupted before a tolerance was met.",
}


class Messages(UserDict[int, str]):
    """The message of each status. No dict, since SciPy prints a dict in a result only if its keys are strings."""


def as_result(found: Results, errors: dict[int, Exception], **fields: Any) -> Any:
    """Return a scipy.optimize.OptimizeResult with these fields and those that all fits have.

    Parameters
    ----------
    found : Results
    errors : dict
        What a function raised, by the index of the fit.
    **fields
        The other fields.
    """
    from scipy.optimize import OptimizeResult  # here, since it takes 0.2 s to import

    messages = Messages({int(code): MESSAGES[int(code)] for code in np.unique(found.status)})
    if errors:
        first = min(errors)
        messages[RAISED] = f"The function raised in {len(errors)} fits; in fit {first}: {errors[first]!r}"
    success = np.equal(found.status, CONVERGED)
    return OptimizeResult(nit=found.nit, status=found.status, success=success, message=messages, **fields)
