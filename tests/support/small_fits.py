"""Compiled functions to fit, data for them, and the bits of results."""

import numba
import numpy as np
import pytest

PLAIN = numba.config.DISABLE_JIT


needs_jit = pytest.mark.skipif(PLAIN, reason="nothing is compiled")


@numba.njit
def valley(x, row):
    target, curvature = row
    total = 0.2 * x[0] * x[x.size - 1]
    for j in range(x.size):
        d = x[j] - target[j]
        total += curvature[j] * d * d + 0.1 * d * d * d * d
    return total


@numba.njit
def parabola(x, row):
    """Return a parabola around y; NaN where y is NaN, and an error where y is large."""
    (y,) = row
    if y > 1e6:
        raise ValueError("too far")
    return (x[0] - y) * (x[0] - y)


def problem(fits, n, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x0 = rng.normal(0, 2, (fits, n)).astype(dtype)
    return x0, (rng.normal(0, 1, (fits, n)), rng.uniform(0.1, 3, (fits, n)))


def bits(found):
    return {name: np.asarray(value).tobytes() for name, value in found.items() if name != "message"}


@numba.njit
def no_data(x, row):
    return (x[0] - 3.0) ** 2 + len(row)
