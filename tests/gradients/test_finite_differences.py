"""Gradients by finite differences, beside bounds and at any scale."""

import numpy as np
import pytest
from objectives import Counted, square
from scipy.optimize import approx_fprime, rosen

from numba_rmsprop.gradients.finite_differences import FiniteDifferences


@pytest.mark.parametrize("where", [0.0, 1e-9, 0.3, 1.0 - 1e-9, 1.0])
@pytest.mark.parametrize(("method", "tolerance"), [("2-point", 1e-7), ("3-point", 1e-9), ("cs", 1e-14)])
def test_differences_are_as_good_beside_a_bound(where, method, tolerance):
    x = np.array([where, 0.5, -3.0])
    bounds = np.array([0.0, 0.0, -np.inf]), np.array([1.0, 1.0, np.inf])
    found = FiniteDifferences(method, None, bounds, 1.0).gradient(lambda x: np.sum(np.sin(x)), x, np.sum(np.sin(x)))
    np.testing.assert_allclose(found, np.cos(x), rtol=tolerance, atol=tolerance)
    free = FiniteDifferences(method, None, None, 1.0).gradient(lambda x: np.sum(np.sin(x)), x, np.sum(np.sin(x)))
    np.testing.assert_allclose(free, np.cos(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["2-point", "3-point"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_differences_reach_a_bound_and_not_beyond(method, dtype):
    rng = np.random.default_rng(0)
    low, high = -rng.uniform(0, 1, 2000).astype(dtype), rng.uniform(0, 1, 2000).astype(dtype)
    x = np.clip((low + rng.uniform(0, 1, 2000) * (high - low)).astype(dtype), low, high)
    fun = Counted(lambda x: float(np.sum(x)))
    FiniteDifferences(method, 100.0, (low, high), 1.0).gradient(fun, x, fun(x))
    assert all(np.all((low <= x) & (x <= high)) for x in fun.xs)


def test_differences_take_steps_of_the_scale():
    def fun(x):
        return np.sin(x[0] * 1e9) + x[1]

    x = np.array([1e-10, 1.0])
    found = FiniteDifferences("3-point", None, None, np.array([1e-9, 1.0])).gradient(fun, x, fun(x))
    np.testing.assert_allclose(found, [1e9 * np.cos(0.1), 1.0], rtol=1e-6)
    for method in ("2-point", "3-point"):
        fun = Counted(square)
        FiniteDifferences(method, 0.25, None, 2.0).gradient(fun, np.array([1.0, -4.0]), 17.0)
        assert {abs(x[0] - 1) for x in fun.xs} - {0} == {0.5}
        assert {abs(x[1] + 4) for x in fun.xs} - {0} == {1.0}


def test_two_points_are_those_of_scipy():
    x = np.array([0.3, -2.0, 1.0])
    found = FiniteDifferences("2-point", 1e-6, None, 1.0).gradient(rosen, x, rosen(x))
    np.testing.assert_array_equal(found, approx_fprime(x, rosen, 1e-6 * np.maximum(1, np.abs(x))))
