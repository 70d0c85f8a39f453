"""Dtypes in which numbers are stored, and those in which they are computed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

DTYPES = (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)
"""Dtypes of variables."""

COMPUTED = (FLOAT32, FLOAT64)
"""Dtypes in which there is arithmetic."""

NAMES = "float32, float64, float16 or ml_dtypes.bfloat16"
"""The same, as messages tell them."""

STORED_AS = {BFLOAT16: np.dtype(np.uint16), FLOAT16: np.dtype(np.int16)}
"""Dtypes of 16 bits, and what stands for them in kernels (see :mod:`numba_rmsprop.kernels.float16`)."""

HALVES = frozenset([*STORED_AS, *STORED_AS.values()])


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that elements are computed in: float32 for those of 16 bits.

    >>> computed_in(BFLOAT16), computed_in(FLOAT64)
    (dtype('float32'), dtype('float64'))
    """
    return FLOAT32 if dtype in HALVES else dtype


def as_stored(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as kernels take it: a view of integers for floats of 16 bits.

    >>> as_stored(np.ones(2, BFLOAT16))
    array([16256, 16256], dtype=uint16)
    """
    return array.view(STORED_AS[array.dtype]) if array.dtype in STORED_AS else array
