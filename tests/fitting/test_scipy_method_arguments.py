"""Arguments of the method for scipy.optimize.minimize: what they may be, and what is refused before any call."""

import numpy as np
import pytest
import scipy.sparse as sp
from objectives import (
    Counted,
    fit,
    square,
    square_der,
)
from scipy.optimize import (
    Bounds,
)

from numba_rmsprop import rmsprop


def test_x0_is_never_written_and_stays_what_it_is():
    for x0 in (np.array([1.0, 2.0]), np.array([1.0, 2.0], np.float32), np.array([1.0, 9.0, 2.0])[::2]):
        before, dtypes = x0.tobytes(), set()

        def fun(x, dtypes=dtypes):
            dtypes.add(x.dtype)
            return square(x)

        x0.flags.writeable = False
        result = fit(fun, x0)
        assert x0.tobytes() == before
        assert dtypes == {x0.dtype} == {result.x.dtype, result.jac.dtype}
        assert result.x.flags.writeable
        assert result.x.flags.owndata
        assert type(result.fun) is float


@pytest.mark.parametrize("x0", [np.array([1, 2]), [1, 2], np.array([1, 2], np.uint8), np.array([True, False])])
def test_integers_become_float64(x0):
    for result in (fit(x0=x0), rmsprop(square, x0, jac=square_der, maxiter=20)):
        np.testing.assert_array_equal(result.x, fit(x0=np.array(x0, np.float64)).x)
        assert result.x.dtype == np.float64


def test_another_byte_order_becomes_the_machines():
    assert fit(x0=np.array([1.0, -2.0], ">f4")).x.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["2-point", "3-point", "cs"])
def test_differences_keep_the_dtype(dtype, method):
    fun = Counted(lambda x: np.sum((x - 2) ** 2))
    result = fit(fun, np.ones(2, dtype), jac=None, fd_method=method)
    assert {x.dtype for x in fun.xs} - {np.dtype(np.result_type(dtype, np.complex64))} == {np.dtype(dtype)}
    assert result.x.dtype == result.jac.dtype == dtype


def test_the_objective_cannot_write_x():
    def writes(x):
        x[0] = 0.0
        return 0.0

    for options in ({}, {"x_scale": 2.0}):
        with pytest.raises(ValueError, match="read-only"):
            fit(writes, **options)
        with pytest.raises(ValueError, match="read-only"):
            fit(jac=writes, **options)


def test_fun_and_jac_may_return_other_types():
    expected = fit().x
    for convert in (np.float64, np.array, lambda v: np.array([v]), lambda v: np.array([[v]]), lambda v: [v]):
        np.testing.assert_array_equal(fit(lambda x, convert=convert: convert(square(x))).x, expected)
    for convert in (list, lambda g: g[np.newaxis], lambda g: g[:, np.newaxis]):
        np.testing.assert_array_equal(fit(jac=lambda x, convert=convert: convert(2 * x)).x, expected)
    assert fit(x0=1.0, jac=lambda x: 2 * x[0]).nit == 20
    assert fit(lambda x: 3, [5.0], jac=lambda x: np.array([1])).fun == 3


def test_a_jac_that_returns_x_or_one_array_anew():
    xs, buffer = [], np.empty(2)

    def refill(x):
        buffer[:] = x
        return buffer

    for jac in (lambda x: x.copy(), lambda x: x, refill):
        results = []
        each = fit(lambda x: square(x) / 2, jac=jac, callback=lambda x, results=results: results.append(x))
        np.testing.assert_array_equal(each.jac, each.x)
        xs.append(results)
    np.testing.assert_array_equal(xs[0], xs[1])
    np.testing.assert_array_equal(xs[0], xs[2])


def test_nothing_to_fit():
    result = fit(lambda x: 1.0, [], jac=lambda x: x)
    assert (result.success, result.x.shape, result.nit) == (True, (0,), 0)
    assert fit(lambda x: 1.0, [], jac=None).success
    assert fit(lambda x: 1.0, [], jac=None, bounds=[]).success


REFUSED_OPTIONS = [
    ({"maxiter": -1}, ValueError, "maxiter: expected an integer of at least 0, got -1"),
    ({"maxiter": 10.0}, TypeError, "maxiter: expected an integer, got 10.0"),
    ({"maxiter": True}, TypeError, "maxiter: expected an integer, got True"),
    ({"maxiter": None}, TypeError, "maxiter"),
    ({"maxfev": 0}, ValueError, "maxfev: expected an integer of at least 1, got 0"),
    ({"maxfev": 4, "jac": None}, ValueError, "maxfev: expected an integer of at least 5, got 4"),
    ({"gtol": "small"}, TypeError, "gtol: expected a real number, got 'small'"),
    ({"gtol": np.nan}, ValueError, "gtol: expected a finite number, got nan"),
    ({"ftol": np.inf}, ValueError, "ftol: expected a finite number"),
    ({"ftol": 10**400}, ValueError, "ftol: expected a finite number"),
    ({"tol": 1j}, TypeError, "tol: expected a real number"),
    ({"patience": 0}, ValueError, "patience: expected an integer of at least 1"),
    ({"window": 0}, ValueError, "window: expected an integer of at least 1"),
    ({"window": "2"}, TypeError, "window: expected an integer, got '2'"),
    ({"x_scale": 0.0}, ValueError, r"x_scale: expected finite numbers above 0, got 0.0 for x0\[0\]"),
    ({"x_scale": [1.0, -1.0]}, ValueError, r"got -1.0 for x0\[1\]"),
    ({"x_scale": [1.0, np.nan]}, ValueError, r"got nan for x0\[1\]"),
    ({"x_scale": [1.0, 2.0, 3.0]}, ValueError, r"x_scale: expected a number or shape \(2,\).*got shape \(3,\)"),
    ({"x_scale": "jac"}, ValueError, "x_scale: expected one of.*'x0'.*got 'jac'"),
    ({"x_scale": None}, TypeError, "x_scale: expected a number"),
    ({"x_scale": True}, TypeError, "x_scale: expected a number"),
    ({"fd_method": "4-point"}, ValueError, "fd_method: expected one of.*got '4-point'"),
    ({"fd_step": 0}, ValueError, "fd_step: expected a number above 0"),
    ({"fd_step": "x"}, TypeError, "fd_step: expected a real number"),
    ({"disp": "yes"}, TypeError, "disp: expected True or False, got 'yes'"),
    ({"progress": "yes"}, TypeError, "progress: expected True or False"),
    ({"history": 1.0}, TypeError, "history: expected True or False"),
    ({"learning_rate": -1.0}, ValueError, "learning_rate"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate"),
    ({"lr": -1.0}, ValueError, "learning_rate"),
    ({"rho": 1.5}, ValueError, "rho"),
    ({"momentum": 2}, ValueError, "momentum"),
    ({"epsilon": "x"}, TypeError, "epsilon"),
    ({"weight_decay": -1}, ValueError, "weight_decay"),
    ({"decay": -1}, ValueError, "decay"),
    ({"clipvalue": -1}, ValueError, "clipvalue"),
    ({"clipnorm": 1, "global_clipnorm": 1}, ValueError, "clipnorm or global_clipnorm"),
    ({"sparse_update": "fast"}, ValueError, "sparse_update"),
    ({"name": 3}, TypeError, "name"),
    ({"callback": 3}, TypeError, "callback: expected a callable, got 3"),
    ({"bounds": [(0, 1)]}, ValueError, "bounds: expected 2 pairs, one for each element of x0, got 1"),
    ({"bounds": Bounds([0, 0, 0], 1)}, ValueError, r"bounds: expected lb and ub of shape \(2,\)"),
    ({"bounds": [(0, 2), (1, 0)]}, ValueError, r"bounds\[1\]: expected a lower bound that is at most the upper one"),
    ({"bounds": [(0, 2), (np.nan, 0)]}, ValueError, r"bounds\[1\]: expected a lower bound"),
    ({"bounds": [(0, 2), (-1, 0)]}, ValueError, r"bounds\[1\]: expected x0 within the bounds.*-1.0, 0.0.*x0\[1\] = -2"),
    ({"bounds": [(0, 0.5), (-3, 0)]}, ValueError, r"bounds\[0\]: expected x0 within the bounds, got \(0.0, 0.5\)"),
    ({"bounds": [(2, None), (-3, 0)]}, ValueError, r"bounds\[0\]: expected x0 within the bounds"),
    ({"bounds": [(np.inf, np.inf)] * 2}, ValueError, r"bounds\[0\]: expected x0 within the bounds"),
    ({"bounds": 3}, TypeError, "bounds: expected scipy.optimize.Bounds or a sequence"),
    ({"bounds": [1, 2]}, TypeError, "bounds: expected scipy.optimize.Bounds or a sequence"),
    ({"bounds": [(0, "x")] * 2}, TypeError, "bounds: expected real numbers or None"),
    ({"x0": [1.0, np.nan]}, ValueError, r"x0: expected finite numbers, got nan at x0\[1\]"),
    ({"x0": [1.0, -np.inf]}, ValueError, r"x0: expected finite numbers, got -inf at x0\[1\]"),
    ({"x0": np.ones(2, np.float16)}, TypeError, "x0: expected float32, float64 or integers, got float16"),
    ({"x0": np.ones(2, complex)}, TypeError, "x0: expected.*got complex128"),
    ({"x0": np.array(["1"])}, TypeError, "x0: expected"),
    ({"x0": np.array([None])}, TypeError, "x0: expected"),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED_OPTIONS)
def test_refused_before_fun_is_called(given, error, message):
    fun, jac = Counted(square), Counted(square_der)
    with pytest.raises(error, match=message):
        fit(fun, **({"jac": jac} | given))
    assert not fun.xs + jac.xs


def test_refused_in_a_direct_call():
    with pytest.raises(ValueError, match=r"x0: expected one dimension, got shape \(1, 2\)"):
        rmsprop(square, np.ones((1, 2)), jac=square_der)
    with pytest.raises(TypeError, match="fun: expected a callable, got 3"):
        rmsprop(3, [1.0])
    with pytest.raises(TypeError, match="jac: expected a callable, got 'cs'"):
        rmsprop(square, [1.0], jac="cs")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fun": lambda x: x}, "fun: expected a number, got array"),
        ({"fun": lambda x: None}, "fun: expected a number, got None"),
        ({"fun": lambda x: "1"}, "fun: expected a number, got '1'"),
        ({"fun": lambda x: 1j}, "fun: expected a number"),
        ({"fun": lambda x: (1.0, x)}, "fun: expected a number, got a tuple; with jac=True"),
        ({"jac": lambda x: x[:1]}, r"jac: expected 2 elements, shape \(2,\).*got shape \(1,\)"),
        ({"jac": lambda x: np.ones((2, 2))}, r"jac: expected 2 elements.*got shape \(2, 2\)"),
        ({"jac": lambda x: 1.0}, r"jac: expected 2 elements.*got shape \(\)"),
        ({"jac": lambda x: None}, "jac: expected real numbers"),
        ({"jac": lambda x: 1j * x}, "jac: expected real numbers, got ndarray of complex128"),
        ({"jac": lambda x: np.ma.array(x, mask=[0, 1])}, "jac: expected an array or a sparse array, got a masked"),
        ({"jac": lambda x: sp.csr_array((1, 3))}, r"jac: expected 2 elements.*got shape \(1, 3\)"),
        ({"jac": lambda x: sp.csr_array((2, 2))}, r"jac: expected 2 elements.*got shape \(2, 2\)"),
        ({"jac": lambda x: sp.csr_array((1, 2), dtype=complex)}, "jac: expected real numbers, got csr_array"),
        ({"fun": lambda x: np.nan}, "fun: expected a finite number, got nan at x0"),
        ({"fun": lambda x: -np.inf}, "fun: expected a finite number, got -inf at x0"),
        ({"jac": lambda x: x * np.nan}, "jac: expected finite numbers, got NaN or infinity at x0"),
        ({"jac": lambda x: sp.csr_array([[0, np.inf]])}, "jac: expected finite numbers, got NaN or infinity at x0"),
    ],
)
def test_refused_before_a_step(given, message):
    called = []
    with pytest.raises(ValueError, match=message):
        fit(callback=called.append, **given)
    assert not called
