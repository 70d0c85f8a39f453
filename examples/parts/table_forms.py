"""Forms in which a table can be kept: the dtype of its numbers, and what the optimizer keeps of each row."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = ml_dtypes.bfloat16
STOCHASTIC = {"rounding": "stochastic"}

FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (np.float32, {}),
    "rowwise": (np.float32, {"state": "rowwise"}),
    "bfloat16-nearest": (BFLOAT16, {}),
    "bfloat16": (BFLOAT16, STOCHASTIC),
    "bfloat16-rowwise": (BFLOAT16, STOCHASTIC | {"state": "rowwise"}),
    "bfloat16-state": (BFLOAT16, STOCHASTIC | {"state_dtype": "bfloat16"}),
}
"""The dtype of tables in each form, and the options of RMSprop."""


def dtype_of(form: str) -> Any:
    """Return the dtype of tables."""
    return FORMS[form][0]


def options_of_form(form: str, seed: int) -> dict[str, Any]:
    """Return the options of RMSprop."""
    return FORMS[form][1] | {"seed": seed}
