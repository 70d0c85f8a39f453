"""Real numbers in arguments: those of Python, NumPy and other libraries."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np


def as_float(name: str, value: Any) -> float:
    """Return a real number as a float, which may be infinite or NaN.

    Objects with ``__float__`` and without axes count as numbers: 0-d arrays of NumPy, JAX, PyTorch or TensorFlow. For
    anything else, raise TypeError.
    """
    if type(value) is float:
        return value
    given = value[()] if type(value) is np.ndarray and value.ndim == 0 else value
    if not isinstance(given, numbers.Real) or isinstance(given, bool | np.bool):
        has_axes = len(getattr(given, "shape", ())) > 0 or isinstance(given, np.ndarray)
        dtype = str(getattr(given, "dtype", ""))
        is_other = isinstance(given, bool | numbers.Complex | np.bool | np.character | np.datetime64)
        if has_axes or is_other or "bool" in dtype or "complex" in dtype or not hasattr(type(given), "__float__"):
            raise TypeError(f"{name}: expected a real number, got {value!r:.100} ({type(value).__name__})")
    try:
        return float(given)
    except OverflowError:  # an integer that is larger than any float
        return -math.inf if given < 0 else math.inf
    except (TypeError, ValueError, RuntimeError) as error:  # a tracer of JAX raises one of these
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__}: {error}") from error
