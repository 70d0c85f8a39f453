"""RMSprop as a method of scipy.optimize.minimize: SciPy's protocol, every option, and what comes out."""

import builtins
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Reference
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    OptimizeResult,
    OptimizeWarning,
    approx_fprime,
    basinhopping,
    dual_annealing,
    minimize,
    rosen,
    rosen_der,
)

import numba_rmsprop.fitting.iterate
from numba_rmsprop import IndexedSlices, RMSprop, rmsprop, schedules
from numba_rmsprop.fitting.differences import Differences
from numba_rmsprop.fitting.options import FIRST_RATE, GTOL, LAST_RATE, as_limits

NEVER = {"gtol": -1, "ftol": -1}


def square(x):
    return float(np.sum(x.astype(np.float64) ** 2))


def square_der(x):
    return 2 * x


def fit(fun=square, x0=(1.0, -2.0), *, jac=square_der, **given):
    """Call minimize with a few steps; what is no argument of it is an option."""
    own = {name: given.pop(name) for name in ("args", "bounds", "callback", "tol", "constraints") if name in given}
    return minimize(fun, np.asarray(x0), jac=jac, method=rmsprop, options={"maxiter": 20} | given, **own)


class Counted:
    """A function that notes each x it was called with, as a copy."""

    def __init__(self, function):
        self.function = function
        self.xs = []

    def __call__(self, x, *args):
        self.xs.append(np.array(x))
        return self.function(x, *args)


def logistic():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 8))
    y = np.where(a @ rng.standard_normal(8) + rng.standard_normal(200) > 0, 1.0, -1.0)
    return (
        lambda w: float(np.mean(np.logaddexp(0, -y * (a @ w))) + 0.05 * w @ w),
        lambda w: -a.T @ (y / (1 + np.exp(y * (a @ w)))) / len(y) + 0.1 * w,
        np.zeros(8),
    )


def quadratic(condition, constant=3.0):
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    a, b = q @ np.diag(np.geomspace(1, condition, 5)) @ q.T, 3 * rng.standard_normal(5)
    return lambda x: 0.5 * (x - b) @ a @ (x - b) + constant, lambda x: a @ (x - b), np.zeros(5)


def beale(v):
    x, y = v
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def beale_der(v):
    x, y = v
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return np.array(
        [2 * a * (y - 1) + 2 * b * (y**2 - 1) + 2 * c * (y**3 - 1), 2 * a * x + 4 * b * x * y + 6 * c * x * y**2]
    )


def booth(v):
    return (v[0] + 2 * v[1] - 7) ** 2 + (2 * v[0] + v[1] - 5) ** 2


def himmelblau(v):
    return (v[0] ** 2 + v[1] - 11) ** 2 + (v[0] + v[1] ** 2 - 7) ** 2


def himmelblau_der(v):
    a, b = v[0] ** 2 + v[1] - 11, v[0] + v[1] ** 2 - 7
    return np.array([4 * v[0] * a + 2 * b, 2 * a + 4 * v[1] * b])


# What the defaults are chosen for.


@pytest.mark.parametrize(
    ("fun", "jac", "x0"),
    [
        (rosen, rosen_der, [-1.2, 1.0]),
        (rosen, rosen_der, [1.3, 0.7, 0.8, 1.9, 1.2]),
        quadratic(1),
        quadratic(30),
        quadratic(1000),
        quadratic(30, constant=0.0),
        logistic(),
        (beale, beale_der, [1.0, 1.0]),
        (booth, None, [0.0, 0.0]),
        (himmelblau, himmelblau_der, [0.0, 0.0]),
    ],
    ids=["rosen", "rosen5", "quad1", "quad30", "quad1000", "quad30-0", "logistic", "beale", "booth", "himmelblau"],
)
def test_the_defaults_find_a_minimum(fun, jac, x0):
    result = minimize(fun, x0, jac=jac, method=rmsprop)
    expected = minimize(fun, x0, jac=jac, tol=1e-9)
    assert (result.success, result.status) == (True, 0)
    np.testing.assert_allclose(result.x, expected.x, atol=1e-4)
    assert result.fun == fun(result.x)
    assert np.max(np.abs(result.jac)) <= GTOL
    assert "gtol" in result.message


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{"maxiter": 3000}, {"momentum": 0, "maxiter": 2000}])
def test_a_start_that_is_too_far_away_is_no_success(dtype, options):
    # At the end the rate is so low that fun hardly falls, or, in float32, that x does not move at all.
    result = minimize(
        lambda x: np.sum((np.float64(x) - 1e4) ** 2) + 1,
        np.full(2, 100, dtype),
        jac=lambda x: 2 * (x - 1e4),
        method=rmsprop,
        options={"patience": 100} | options,
    )
    assert np.all(np.abs(result.x - 1e4) > 1e3)
    assert (result.success, result.status) == (False, 1)


def test_the_default_rate_falls_over_the_steps_there_are():
    for options, steps in (({"maxiter": 50}, 50), ({"maxfev": 31}, 30), ({"maxiter": 10, "maxfev": 31}, 10)):
        history = fit(history=True, **NEVER, **({"maxiter": 10_000} | options)).history
        assert len(history["learning_rate"]) == steps + 1
        assert history["learning_rate"][1] == FIRST_RATE
        np.testing.assert_allclose(history["learning_rate"][-1] * (LAST_RATE / FIRST_RATE) ** (1 / steps), LAST_RATE)
    assert fit(maxiter=0).nit == 0


# SciPy's protocol.


def test_arguments_arrive_and_each_point_is_evaluated_once():
    fun, jac = Counted(lambda x, a, b: a * np.sum((x - b) ** 2)), Counted(lambda x, a, b: 2 * a * (x - b))
    result = fit(fun, jac=jac, args=(2.0, 3.0), **NEVER)
    assert [x.tolist() for x in fun.xs] == [x.tolist() for x in jac.xs]
    assert len({x.tobytes() for x in fun.xs}) == len(fun.xs) == 21
    assert (result.nit, result.nfev, result.njev, result.status, result.success) == (20, 21, 21, 1, False)
    assert fit(lambda x, a: a * square(x), jac=lambda x, a: 2 * a * x, args=2.0).nit == 20
    assert rmsprop(lambda x, a: a * square(x), 1.0, args=2.0, jac=lambda x, a: 2 * a * x, maxiter=3).nit == 3


def test_fun_may_return_the_gradient_too():
    both = Counted(lambda x: (square(x), 2 * x))
    result = fit(both, jac=True)
    assert len(both.xs) == result.nfev == result.njev == 21
    np.testing.assert_array_equal(result.x, fit().x)


@pytest.mark.parametrize("jac", [None, False, "2-point", "3-point", "cs"])
def test_without_jac_differences_are_counted(jac):
    fun = Counted(square)
    result = fit(fun, jac=jac)
    assert result.nfev == len(fun.xs) == 21 * 5
    assert result.njev == 21
    np.testing.assert_allclose(result.x, fit().x, atol=1e-6)


def test_second_derivatives_are_ignored_with_a_warning():
    with pytest.warns(RuntimeWarning, match=r"does not use Hessian information \(hess\)") as caught:
        minimize(square, [1.0], jac=square_der, hess=lambda x: np.eye(1), method=rmsprop, options={"maxiter": 1})
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning, match=r"Hessian-vector product information \(hessp\)"):
        minimize(square, [1.0], jac=square_der, hessp=lambda x, p: p, method=rmsprop, options={"maxiter": 1})


def test_unknown_options_are_named_in_a_warning():
    with pytest.warns(OptimizeWarning, match="^Unknown solver options: eta, mxiter$") as caught:
        result = fit(eta=1, mxiter=2)
    assert caught[0].filename == __file__
    assert result.nit == 20


@pytest.mark.parametrize(
    "constraints", [{"type": "eq", "fun": square}, [{"type": "ineq", "fun": square}], LinearConstraint([[1.0, 1.0]], 0)]
)
def test_constraints_are_refused(constraints):
    with pytest.raises(ValueError, match=r"constraints: expected none.*trust-constr.*SLSQP"):
        fit(constraints=constraints)
    assert fit(constraints=()).nit == fit(constraints=[]).nit == 20


def test_kinds_of_callbacks():
    xs, results = [], []

    def with_result(intermediate_result):
        results.append(intermediate_result)

    class Method:
        def __call__(self, *, intermediate_result):
            results.append(intermediate_result)

    result = fit(callback=xs.append)
    fit(callback=with_result)
    assert len(xs) == len(results) == result.nit == 20
    for k, (x, each) in enumerate(zip(xs, results, strict=True), start=1):
        assert isinstance(each, OptimizeResult)
        assert (each.nit, each.fun, each.jac.tolist()) == (k, square(x), (2 * x).tolist())
        np.testing.assert_array_equal(each.x, x)
    assert len({x.tobytes() for x in xs}) == 20
    fit(callback=Method())
    assert len(results) == 40


def test_a_callback_cannot_change_the_fit():
    def spoil(intermediate_result):
        intermediate_result.x[:] = 7
        intermediate_result.jac[:] = 7

    np.testing.assert_array_equal(fit(callback=spoil).x, fit().x)


def test_stop_iteration():
    seen = []

    def stop(x):
        seen.append(x)
        if len(seen) == 3:
            raise StopIteration

    result = fit(callback=stop)
    expected = minimize(square, [1.0, -2.0], callback=lambda x: next(iter(())), method="bfgs")
    assert (result.status, result.success, result.message) == (expected.status, False, expected.message)
    assert (result.status, result.nit, result.nfev) == (99, 3, 4)
    np.testing.assert_array_equal(result.x, seen[-1])
    assert result.fun == square(seen[-1])


def test_a_callback_that_stops_where_it_converged():
    assert fit(callback=lambda x: next(iter(())), gtol=1e9, window=2).status == 99


def test_in_basinhopping():
    calls = []

    def wavy(x):
        return float(np.cos(14.5 * x[0] - 0.3) + (x[0] + 0.2) * x[0])

    def stop(x):
        calls.append(x)
        if len(calls) == 5:
            raise StopIteration

    given = {
        "method": rmsprop,
        "options": {
            "maxiter": 500,
            "learning_rate": schedules.ExponentialDecay(0.01, 500, 1e-6),
        },  # too short to leave a well
        "jac": lambda x: -14.5 * np.sin(14.5 * x - 0.3) + 2 * x + 0.2,
    }
    result = basinhopping(wavy, [1.0], niter=25, minimizer_kwargs=given, rng=0)
    np.testing.assert_allclose(result.x, -0.195, atol=0.01)
    assert basinhopping(wavy, [1.0], niter=1, minimizer_kwargs=given | {"callback": stop}, rng=0).nfev > 5
    both = given | {"jac": True}
    result = basinhopping(lambda x: (square(x), 2 * x), [1.0], niter=2, minimizer_kwargs=both, rng=0)
    np.testing.assert_allclose(result.x, 0, atol=1e-4)


def test_in_dual_annealing():
    bounds, statuses = [(-5.12, 5.12)] * 2, []

    def noted(*args, **kwargs):
        result = rmsprop(*args, **kwargs)
        statuses.append(result.status)
        return result

    result = dual_annealing(
        lambda x: np.sum(x * x - 10 * np.cos(2 * np.pi * x)) + 10 * x.size,
        bounds,
        minimizer_kwargs={"method": noted, "bounds": bounds, "options": {"maxiter": 100}},
        maxiter=100,
        rng=3,
    )
    np.testing.assert_allclose(result.x, 0, atol=0.05)
    assert 1 in statuses


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError("mine"), KeyboardInterrupt(), StopIteration(), FloatingPointError("x")])
@pytest.mark.parametrize("where", ["fun", "jac", "callback"])
def test_what_the_users_functions_raise_passes_through(error, where):
    if where == "callback" and isinstance(error, StopIteration):
        return
    count = iter(range(100))

    def fails(x):
        if next(count) == 3:
            raise error
        return 2 * x if where == "jac" else square(x)

    given = {where: fails}
    with pytest.raises(type(error)) as caught:
        fit(progress=True, **given)
    assert caught.value is error


# What goes in.


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


def test_results_of_numbers_in_other_clothes():
    expected = fit().x
    for clothe in (np.float64, np.array, lambda v: np.array([v]), lambda v: np.array([[v]]), lambda v: [v]):
        np.testing.assert_array_equal(fit(lambda x, clothe=clothe: clothe(square(x))).x, expected)
    for clothe in (list, lambda g: g[np.newaxis], lambda g: g[:, np.newaxis]):
        np.testing.assert_array_equal(fit(jac=lambda x, clothe=clothe: clothe(2 * x)).x, expected)
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
def test_what_is_refused_before_fun_is_called(given, error, message):
    fun, jac = Counted(square), Counted(square_der)
    with pytest.raises(error, match=message):
        fit(fun, **({"jac": jac} | given))
    assert not fun.xs + jac.xs


def test_what_only_a_direct_call_can_get_wrong():
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
def test_what_is_refused_before_a_step(given, message):
    called = []
    with pytest.raises(ValueError, match=message):
        fit(callback=called.append, **given)
    assert not called


# What comes out.


@pytest.mark.parametrize("where", ["fun", "jac"])
@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_fit_that_blows_up_returns_the_best_point_before(where, window, bad):
    count = iter(range(100))

    def worse(x):
        result = 2 * x if where == "jac" else square(x)
        return result * bad if next(count) == 10 else result

    xs = []
    result = fit(callback=xs.append, window=window, momentum=0, **{where: worse})
    assert (result.status, result.success, result.nit, result.nfev) == (3, False, 10, 11)
    assert result.message.startswith(f"{where}: expected")
    assert "after step 10" in result.message
    last = {1: 9, 4: 7, 100: 9}[window]  # the last point of the last whole window, or of all
    np.testing.assert_array_equal(result.x, xs[last - 1])
    np.testing.assert_array_equal(result.jac, 2 * xs[last - 1])
    assert np.isfinite(result.fun)


def test_budgets():
    for options, expected in (
        ({"maxiter": 0}, (1, 0, 1)),
        ({"maxiter": 7}, (1, 7, 8)),
        ({"maxfev": 1}, (2, 0, 1)),
        ({"maxfev": 8}, (2, 7, 8)),
        ({"maxfev": 19, "jac": None}, (2, 2, 15)),
        ({"maxfev": 20, "jac": None}, (2, 3, 20)),
        ({"maxfev": 11, "jac": None, "fd_method": "2-point"}, (2, 2, 9)),
        ({"maxfev": 11, "jac": None, "bounds": [(1, 1), (None, None)]}, (2, 2, 9)),
    ):
        result = fit(**options)
        assert (result.status, result.nit, result.nfev) == expected, options
        assert not result.success
        assert "exceeded" in result.message


def test_the_best_point_is_returned_and_not_the_last():
    fun, xs = Counted(square), []
    result = fit(fun, [0.05, -0.02], learning_rate=0.1, callback=lambda x: xs.append(x), momentum=0, **NEVER)
    best = min(fun.xs, key=square)
    np.testing.assert_array_equal(result.x, best)
    np.testing.assert_array_equal(result.jac, 2 * best)
    assert result.fun == square(best) < square(xs[-1])


def test_best_of_windows():
    fun = Counted(lambda x: square(x) + 1)
    result = fit(fun, [0.1, -0.3], learning_rate=0.1, window=4, momentum=0, maxiter=18, **NEVER)  # 19 points
    means = np.mean([[square(x) + 1 for x in fun.xs[k : k + 4]] for k in range(0, 16, 4)], axis=1)
    k = int(np.argmin(means))
    np.testing.assert_allclose(result.fun, means[k], rtol=1e-14)
    np.testing.assert_array_equal(result.x, fun.xs[4 * k + 3])
    np.testing.assert_array_equal(result.jac, 2 * result.x)
    short = fit(fun, [0.1, -0.3], window=100, **NEVER)
    np.testing.assert_array_equal(short.x, fun.xs[-1])


def test_success_by_gtol():
    for gtol in (1e-2, 1e-4):
        result = fit(maxiter=10_000, gtol=gtol, ftol=-1)
        assert result.success
        assert gtol / 100 < np.max(np.abs(result.jac)) <= gtol
        assert f"{gtol:.3g}" in result.message
    assert fit(gtol=10.0).nit == 0
    assert not fit(gtol=0).success


def scripted(values, slopes):
    """Return a fun and a jac of one element that return these in turn, whatever x."""
    values, slopes = iter(values), iter(slopes)
    return (lambda x: next(values)), (lambda x: np.array([next(slopes)]))


def test_gtol_is_met_by_the_point_that_is_returned():
    fun, jac = scripted([0.0, -5.0, -1.0, -1.0], [1.0, 1.0, 0.0, 1.0])
    result = fit(fun, [0.0], jac=jac, maxiter=3, ftol=-1)
    assert (result.success, result.fun, result.jac.tolist()) == (False, -5.0, [1.0])
    above = 1000 * (1 + 1e-15)  # by a rounding
    fun, jac = scripted([2000.0, 1000.0, above, 1000.0], [1.0, 1.0, 0.0, 0.5])
    result = fit(fun, [0.0], jac=jac, maxiter=3, ftol=-1)
    assert (result.success, result.nit, result.fun, result.jac.tolist()) == (True, 2, above, [0.0])


def test_success_by_ftol():
    def flat(x):
        return 1 + max(0.0, float(x[0]))

    options = {"learning_rate": 0.1, "momentum": 0, "rho": 0.0, "maxiter": 1000, "gtol": -1, "patience": 30}
    result = fit(flat, [1.05], jac=lambda x: np.ones(1), **options)
    assert result.success
    assert result.nit == 11 + 30  # the eleventh step is the last that makes it fall
    assert "ftol" in result.message
    assert "30 steps" in result.message
    assert fit(flat, [1.05], jac=lambda x: np.ones(1), ftol=-1, **options).status == 1
    assert fit(flat, [1.05], jac=lambda x: np.ones(1), ftol=0.07, **options).nit < 41
    assert fit(flat, [1.05], jac=lambda x: np.ones(1), tol=0.07, **options).nit < 41
    assert fit(flat, [1.05], jac=lambda x: np.ones(1), tol=0.07, ftol=0, **options).nit == 41


def test_tol_stands_for_both():
    assert fit(tol=10.0).nit == 0
    assert fit(tol=10.0, gtol=-1, learning_rate=1e-3, patience=5).nit == 5
    assert fit(tol=10.0, gtol=-1, ftol=-1).status == 1


def test_ftol_falls_with_the_rate():
    # The same slope all the way: fun falls ever more slowly, only since the steps become shorter.
    result = fit(
        lambda x: 1e3 + float(x[0]),
        [0.0],
        jac=lambda x: np.ones(1),
        gtol=-1,
        ftol=1e-6,
        maxiter=1000,
        patience=100,
    )
    assert result.status == 1


def test_a_rate_of_zero_is_no_convergence():
    for rate in (0.0, lambda step: 0.1 if step < 5 else 0.0):
        assert fit(learning_rate=rate, momentum=0, maxiter=200, patience=10).status == 1


def test_noise_is_averaged():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 3))
    b = a @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.standard_normal(500)
    expected = np.linalg.lstsq(a, b)[0]
    batch = None

    def fun(x):
        nonlocal batch
        batch = rng.integers(0, 500, 50)
        return np.mean((a[batch] @ x - b[batch]) ** 2)

    def jac(x):
        return 2 * a[batch].T @ (a[batch] @ x - b[batch]) / len(batch)

    result = fit(fun, np.zeros(3), jac=jac, maxiter=4000, window=50, patience=1000, momentum=0, gtol=-1, history=True)
    assert result.success
    np.testing.assert_allclose(result.x, expected, atol=0.05)
    assert abs(result.fun - np.mean((a @ expected - b) ** 2)) < 0.01
    assert np.all(np.diff(result.history["nit"]) == 50)


def test_mean_gradient_is_that_of_the_window():
    # The single gradients are 1 and -1 in turn, their mean over two steps is 0.
    count = iter(range(100))
    result = fit(lambda x: 0.0, [0.0], jac=lambda x: np.array([(-1.0) ** next(count)]), window=2, ftol=-1)
    assert (result.success, result.nit) == (True, 1)
    count = iter(range(100))
    result = fit(lambda x: 0.0, [0.0], jac=lambda x: np.array([(-1.0) ** next(count)]), window=3, ftol=-1)
    assert result.status == 1


def test_history():
    result = fit(history=True, learning_rate=lambda step: 0.1 / (1 + step), decay=0.5, momentum=0, **NEVER)
    assert result.history["nit"].tolist() == list(range(21))
    rates = [0.1 / (1 + t) / (1 + 0.5 * t) for t in range(20)]
    np.testing.assert_allclose(result.history["learning_rate"], [0.0, *rates])
    assert result.history["fun"][0] == 5.0
    assert result.fun == result.history["fun"].min()
    assert "history" not in fit()


def test_disp(capsys):
    result = fit(disp=True)
    printed = capsys.readouterr().out
    assert printed.startswith(result.message)
    for line in (f"value: {result.fun:f}", "Iterations: 20", "Function evaluations: 21", "Gradient evaluations: 21"):
        assert line in printed
    fit(disp=0)
    assert not capsys.readouterr().out


def test_progress(capsys, monkeypatch):
    fit(progress=True)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "fun=" in shown
    fit()
    assert not capsys.readouterr().err
    imported = builtins.__import__

    def without_tqdm(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    fun = Counted(square)
    with pytest.raises(ImportError, match="progress=True: expected tqdm"):
        fit(fun, progress=True)
    assert not fun.xs
    assert fit().nit == 20


def test_hyperparameters_are_those_of_rmsprop():
    kinds = [
        {"rho": 0.5},
        {"momentum": 0.5},
        {"momentum": 0},
        {"epsilon": 0.1},
        {"centered": True},
        {"decay": 0.3},
        {"weight_decay": 0.5},
        {"clipvalue": 0.3},
        {"clipnorm": 0.3},
        {"global_clipnorm": 0.3},
        {"epsilon_in_sqrt": False},
        {"lr": 0.03},
        {"learning_rate": lambda: 0.02},
        {"learning_rate": schedules.CosineDecay(0.1, 10)},
        {"rho": lambda: 0.7},
    ]
    results = []
    for options in kinds:
        xs, x = [], np.array([1.0, -2.0])
        fit(callback=xs.append, **({"learning_rate": 0.1} | options), **NEVER)
        opt = RMSprop(**({"learning_rate": 0.1, "momentum": 0.9} | options))
        for each in xs:
            opt.apply_gradients([(2 * x, x)])
            np.testing.assert_array_equal(each, x)
        results.append(x.tobytes())
    assert len(set(results)) == len(kinds) - 1  # one norm is like the other
    assert fit(name="mine", check_finite=True, sparse_update="lazy", slots_folder=None).nit == 20


def test_schedules_are_asked_once_a_step():
    steps = []

    def rate(step):
        steps.append(step)
        return 0.1

    fit(learning_rate=rate)
    assert steps == list(range(20))


# Bounds, scale, and what the steps come to.


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds([0.5, -np.inf], [np.inf, -1.5]),
        [(0.5, None), (None, -1.5)],
        ((0.5, np.inf), (-np.inf, np.array([-1.5]))),
        np.array([[0.5, np.inf], [-np.inf, -1.5]]),
        zip([0.5, None], [None, -1.5], strict=True),
    ],
    ids=["Bounds", "pairs", "arrays", "array", "zip"],
)
def test_kinds_of_bounds(bounds):
    fun = Counted(square)
    result = fit(fun, bounds=bounds, maxiter=1000)
    assert result.success
    np.testing.assert_array_equal(result.x, [0.5, -1.5])
    np.testing.assert_array_equal(result.jac, [1.0, -3.0])
    assert all(x[0] >= 0.5 and x[1] <= -1.5 for x in fun.xs)


def test_bounds_of_one_number_and_none():
    assert fit(bounds=Bounds(-2, 1)).nit == fit(bounds=Bounds([-2], [1])).nit == 20
    for nothing in (None, Bounds(), [(None, None)] * 2, [(-np.inf, np.inf)] * 2):
        np.testing.assert_array_equal(fit(bounds=nothing).x, fit().x)
        assert as_limits(nothing, np.ones(2)) is None
    assert fit(x0=np.ones(2, np.float32), bounds=[(-1e300, 1e300)] * 2).nit == 20


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("jac", [square_der, None, lambda x: sp.csr_array([2 * x])])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fixed_elements(scale, jac, dtype):
    x0 = np.array([0.1, -2.0, 0.7], dtype)
    fun = Counted(square)
    given = {"bounds": [(0.1, 0.1), (None, None), (0.7, 0.7)], "x_scale": scale, "maxiter": 1000, "gtol": 1e-4}
    result = fit(fun, x0, jac=jac, **given)
    assert result.success
    assert all(x[0] == x0[0] and x[2] == x0[2] for x in fun.xs)
    np.testing.assert_allclose(result.x, [0.1, 0, 0.7], atol=1e-4)


@pytest.mark.parametrize("method", ["2-point", "3-point", "cs"])
@pytest.mark.parametrize("step", [None, 1e-3, 10.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_differences_stay_within_bounds(method, step, dtype):
    low, high = np.array([0.3, -1.0, 0.1, 0.5], dtype), np.array([0.30001, 1.0, 0.1, np.inf], dtype)
    fun = Counted(lambda x: np.sum(np.array([-1.0, 1.0, 1.0, 1.0], dtype) * (x - 0.7) ** 2))
    bounds = Bounds(low.astype(np.float64), high.astype(np.float64))
    fit(
        fun,
        np.array([0.30001, -1.0, 0.1, 0.6], dtype),
        jac=None,
        bounds=bounds,
        fd_method=method,
        fd_step=step,
        **NEVER,
    )
    real = np.array([x.real for x in fun.xs])
    assert np.all((low <= real) & (real <= high))
    assert len(fun.xs) == 21 * (7 if method == "3-point" else 4)


@pytest.mark.parametrize("where", [0.0, 1e-9, 0.3, 1.0 - 1e-9, 1.0])
@pytest.mark.parametrize(("method", "tolerance"), [("2-point", 1e-7), ("3-point", 1e-9), ("cs", 1e-14)])
def test_differences_are_as_good_beside_a_bound(where, method, tolerance):
    x = np.array([where, 0.5, -3.0])
    limits = np.array([0.0, 0.0, -np.inf]), np.array([1.0, 1.0, np.inf])
    found = Differences(method, None, limits, 1.0).gradient(lambda x: np.sum(np.sin(x)), x, np.sum(np.sin(x)))
    np.testing.assert_allclose(found, np.cos(x), rtol=tolerance, atol=tolerance)
    free = Differences(method, None, None, 1.0).gradient(lambda x: np.sum(np.sin(x)), x, np.sum(np.sin(x)))
    np.testing.assert_allclose(free, np.cos(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["2-point", "3-point"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_differences_reach_a_bound_and_not_beyond(method, dtype):
    rng = np.random.default_rng(0)
    low, high = -rng.uniform(0, 1, 2000).astype(dtype), rng.uniform(0, 1, 2000).astype(dtype)
    x = np.clip((low + rng.uniform(0, 1, 2000) * (high - low)).astype(dtype), low, high)
    fun = Counted(lambda x: float(np.sum(x)))
    Differences(method, 100.0, (low, high), 1.0).gradient(fun, x, fun(x))
    assert all(np.all((low <= x) & (x <= high)) for x in fun.xs)


def test_differences_take_steps_of_the_scale():
    def fun(x):
        return np.sin(x[0] * 1e9) + x[1]

    x = np.array([1e-10, 1.0])
    found = Differences("3-point", None, None, np.array([1e-9, 1.0])).gradient(fun, x, fun(x))
    np.testing.assert_allclose(found, [1e9 * np.cos(0.1), 1.0], rtol=1e-6)
    for method in ("2-point", "3-point"):
        fun = Counted(square)
        Differences(method, 0.25, None, 2.0).gradient(fun, np.array([1.0, -4.0]), 17.0)
        assert {abs(x[0] - 1) for x in fun.xs} - {0} == {0.5}
        assert {abs(x[1] + 4) for x in fun.xs} - {0} == {1.0}


def test_two_points_are_those_of_scipy():
    x = np.array([0.3, -2.0, 1.0])
    found = Differences("2-point", 1e-6, None, 1.0).gradient(rosen, x, rosen(x))
    np.testing.assert_array_equal(found, approx_fprime(x, rosen, 1e-6 * np.maximum(1, np.abs(x))))


def test_complex_steps_want_a_complex_answer():
    with pytest.raises(TypeError, match=r"fun: expected a complex number.*fd_method='cs'"):
        fit(lambda x: float(np.sum(np.abs(x))), jac=None, fd_method="cs")


def test_scale_makes_units_irrelevant():
    units = np.array([1e-6, 1.0, 1e5])

    def fun(x):
        return rosen(x / units)

    def jac(x):
        return rosen_der(x / units) / units

    plain = minimize(rosen, [1.3, 0.7, 0.8], jac=rosen_der, method=rmsprop, options={"gtol": -1, "maxiter": 500})
    for x_scale in (units, units.tolist(), list(units)):
        options = {"gtol": -1, "maxiter": 500, "x_scale": x_scale}
        scaled = minimize(fun, np.array([1.3, 0.7, 0.8]) * units, jac=jac, method=rmsprop, options=options)
        np.testing.assert_allclose(scaled.x / units, plain.x, atol=1e-6)
    relative = fit(x0=[3.0, 0.0, -4.0], x_scale="x0", **NEVER)
    np.testing.assert_array_equal(relative.x, fit(x0=[3.0, 0.0, -4.0], x_scale=[3.0, 1.0, 4.0], **NEVER).x)
    np.testing.assert_array_equal(fit(x_scale=[1, 1], **NEVER).x, fit(**NEVER).x)


@st.composite
def cases(draw):
    n, steps = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    momentum = draw(st.sampled_from([0.0, 0.9]))
    options = {
        "learning_rate": draw(st.sampled_from([0.01, 0.3])),
        "rho": draw(st.sampled_from([0.0, 0.9])),
        "momentum": momentum,
        "centered": draw(st.booleans()),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "clipvalue": draw(st.sampled_from([None, 0.5])),
        "clipnorm": draw(st.sampled_from([None, 1.0])),
        "epsilon": 1e-3,
    }
    x0 = rng.standard_normal(n)
    bounds = None
    if draw(st.booleans()):
        bounds = np.stack([x0 - rng.choice([0, 0.05, np.inf], n), x0 + rng.choice([0, 0.05, np.inf], n)], axis=1)
    scale = draw(st.sampled_from([None, "x0", "array"]))
    x_scale = {None: 1.0, "x0": "x0", "array": rng.uniform(0.1, 10, n)}[scale]
    gradients = rng.standard_normal((steps + 1, n)) * (rng.random((steps + 1, n)) < draw(st.sampled_from([0.3, 1.0])))
    return x0, bounds, x_scale, gradients, options


def reference_path(x0, bounds, x_scale, gradients, options, touched=None):
    """Return the points of a fit by a loop in plain NumPy."""
    scale = np.abs(x0) if isinstance(x_scale, str) else x_scale * np.ones_like(x0)
    hyper = dict(options)
    clips = {name: hyper.pop(name) for name in ("clipvalue", "clipnorm")}
    reference = Reference([x0 / scale], momentum=hyper["momentum"] > 0, centered=hyper.pop("centered"))
    lr, path = hyper.pop("learning_rate"), []
    for k, g in enumerate(gradients[:-1]):
        reference.step([g * scale], lr=lr, **hyper, **clips, touched=None if touched is None else [touched[k]])
        if bounds is not None:
            reference.vars[0] = np.clip(reference.vars[0], bounds[:, 0] / scale, bounds[:, 1] / scale)
        path.append(reference.vars[0] * scale)
    return np.array(path)


def path_of(x0, bounds, x_scale, gradients, options, as_given=lambda g: g):
    count, path = iter(range(len(gradients))), []
    result = fit(
        lambda x: 0.0,
        x0,
        jac=lambda x: as_given(gradients[next(count)]),
        bounds=bounds,
        callback=path.append,
        maxiter=len(gradients) - 1,
        x_scale=x_scale,
        **options,
        **NEVER,
    )
    assert result.nit == len(gradients) - 1
    return np.array(path)


@given(cases())
def test_steps_are_those_of_plain_numpy(case):
    path = path_of(*case)
    np.testing.assert_allclose(path, reference_path(*case), rtol=1e-9, atol=1e-9)
    if case[1] is not None:
        assert np.all((case[1][:, 0] <= path) & (path <= case[1][:, 1]))


@given(cases(), st.sampled_from(["csr", "csc", "coo", "lil", "dok"]), st.sampled_from(["exact", "lazy"]))
@settings(max_examples=60)
def test_sparse_steps_are_those_of_plain_numpy(case, form, mode):
    x0, bounds, x_scale, gradients, options = case
    touched = [g != 0 for g in gradients] if mode == "lazy" else None
    if mode == "lazy" and bounds is not None:
        bounds = np.broadcast_to([-np.inf, 0.9], bounds.shape) * np.array([1, 1]) + np.maximum(x0, 0)[:, np.newaxis]
    path = path_of(
        x0, bounds, x_scale, gradients, options | {"sparse_update": mode}, lambda g: sp.coo_array([g]).asformat(form)
    )
    expected = reference_path(x0, bounds, x_scale, gradients, options, touched)
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-9)


# Sparse gradients.


def sparse_problem(n=50, k=4, seed=0):
    rng = np.random.default_rng(seed)
    target, places = rng.standard_normal(n), [rng.choice(n, k, replace=False) for _ in range(200)]
    count = {"fun": 0}

    def fun(x):
        count["fun"] += 1
        where = places[count["fun"] % 200]
        return float(np.sum((x[where] - target[where]) ** 2))

    def dense(x):
        where = places[count["fun"] % 200]
        g = np.zeros(n, x.dtype)
        g[where] = 2 * (x[where] - target[where])
        return g

    return fun, dense


FORMATS = {
    "csr (n,)": lambda g: sp.coo_array(g).tocsr(),
    "csr (1, n)": lambda g: sp.csr_array([g]),
    "csr matrix (1, n)": lambda g: sp.csr_matrix([g]),
    "csr (n, 1)": lambda g: sp.csr_array([g]).T,
    "coo (n,)": sp.coo_array,
    "csc (n, 1)": lambda g: sp.csc_array(g[:, np.newaxis]),
    "lil (1, n)": lambda g: sp.lil_array([g]),
    "dok (n, 1)": lambda g: sp.dok_array(g[:, np.newaxis]),
    "bsr (1, n)": lambda g: sp.bsr_array([g]),
    "dia (1, n)": lambda g: sp.dia_array([g]),
    "halves (1, n)": lambda g: sp.coo_array(
        (np.tile(g[g != 0] / 2, 2), (np.zeros(2 * np.count_nonzero(g), int), np.tile(np.flatnonzero(g), 2))),
        (1, len(g)),
    ),
}


SPARSE_CASES = [(form, {}, np.float64) for form in FORMATS] + [
    ("csr (1, n)", options, dtype)
    for options in ({"momentum": 0}, {"x_scale": 3.0}, {"weight_decay": 0.1, "momentum": 0})
    for dtype in (np.float32, np.float64)
]


@pytest.mark.parametrize(("form", "options", "dtype"), SPARSE_CASES)
def test_sparse_gradients_of_any_format(form, options, dtype):
    results = []
    for convert in (lambda g: g, FORMATS[form]):
        fun, dense = sparse_problem()
        given = {"maxiter": 60, "window": 5, "bounds": [(-1, 1)] * 50, "history": True} | options
        results.append(fit(fun, np.full(50, 0.5, dtype), jac=lambda x, d=dense, c=convert: c(d(x)), **given))
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == np.float64 else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(results[1].x, results[0].x, **tolerance)
    np.testing.assert_allclose(results[1].jac, results[0].jac, **tolerance)
    np.testing.assert_allclose(results[1].history["fun"], results[0].history["fun"], **tolerance)
    assert type(results[1].jac) is np.ndarray
    assert results[0].nit == results[1].nit == 60


@pytest.mark.parametrize("convert", [lambda g: g, lambda g: sp.csr_array([g])], ids=["dense", "sparse"])
def test_the_norm_of_sparse_windows(convert):
    gradients = np.zeros((6, 30))
    gradients[:, :3] = [[4.0, 0, 0], [-4, 2, 0], [0, -2, 0], [0, 0, 1e-3], [0, 0, -1e-3], [0, 0, 0]]
    count = iter(range(6))
    given = {"window": 3, "gtol": 1e-9, "ftol": -1}
    result = fit(lambda x: 1.0, np.zeros(30), jac=lambda x: convert(gradients[next(count)]), **given)
    assert (result.success, result.nit) == (True, 2)  # the mean of the first three is 0
    gradients[2, 1], gradients[3, 1], gradients[4, 1] = 0, 1, -1  # what the first window leaves must not come back
    count = iter(range(6))
    result = fit(lambda x: 1.0, np.zeros(30), jac=lambda x: convert(gradients[next(count)]), **given)
    assert (result.success, result.nit) == (True, 5)
    gradients[5, 0] = 1e-3
    count = iter(range(6))
    result = fit(lambda x: 1.0, np.zeros(30), jac=lambda x: convert(gradients[next(count)]), maxiter=5, **given)
    assert (result.success, result.nit) == (False, 5)


def test_the_norm_is_projected_onto_the_bounds():
    for x0, g, bounds, norm in (
        (0.0, 1.0, (0, None), 0.0),
        (0.0, -1.0, (None, 0), 0.0),
        (0.0, -1.0, (0, None), 1.0),
        (0.0, 1.0, (None, 0), 1.0),
        (0.25, 1.0, (0, None), 0.25),
        (0.25, -1.0, (None, 0.75), 0.5),
        (0.25, 0.125, (0, 1), 0.125),
    ):
        for jac in (lambda x, g=g: np.array([g]), lambda x, g=g: sp.csr_array([[g]])):
            for gtol, success in ((norm, True), (norm - 1e-6, False)):
                result = fit(lambda x: 0.0, [x0], jac=jac, bounds=[bounds], gtol=gtol, ftol=-1, maxiter=0)
                assert result.success is success


def test_sparse_gradients_stay_sparse(monkeypatch):
    passed = []
    original = numba_rmsprop.fitting.iterate.WatchedRMSprop.apply_gradients

    def spy(self, pairs):
        pairs = list(pairs)
        passed.extend(pairs)
        return original(self, pairs)

    monkeypatch.setattr(numba_rmsprop.fitting.iterate.WatchedRMSprop, "apply_gradients", spy)
    for form in (sp.csr_array, sp.csc_array, sp.coo_array, sp.csr_matrix):
        monkeypatch.setattr(form, "toarray", lambda *_, **__: pytest.fail("made dense"))
        monkeypatch.setattr(form, "todense", lambda *_, **__: pytest.fail("made dense"))
    for options in ({}, {"momentum": 0, "x_scale": 2.0}, {"window": 3}, {"bounds": [(-1, 1)] * 50}):
        fun, dense = sparse_problem()
        passed.clear()
        fit(fun, np.zeros(50), jac=lambda x, d=dense: sp.csr_array([d(x)]), **options)
        assert len(passed) == 20
        assert all(isinstance(gradient, IndexedSlices) and len(gradient.indices) == 4 for gradient, _ in passed)


def test_sparse_steps_touch_only_their_elements(monkeypatch):
    """Elements that no step touches are poisoned once the fit runs: whoever reads or writes them shows it."""
    n, where = 1000, np.array([3, 500])
    state = {}
    original = numba_rmsprop.fitting.iterate.Iterate.__init__

    def keep(self, *args):
        original(self, *args)
        state["iterate"] = self

    monkeypatch.setattr(numba_rmsprop.fitting.iterate.Iterate, "__init__", keep)
    flushed = []
    monkeypatch.setattr(numba_rmsprop.fitting.iterate.WatchedRMSprop, "flush", lambda self: flushed.append(1))

    def fun(x):
        return float(np.sum(x[where] ** 2))

    def jac(x):
        return sp.csr_array((2 * x[where], (np.zeros(2, int), where)), shape=(1, n))

    def poison(x):
        iterate = state["iterate"]
        others = np.ones(n, bool)
        others[where] = False
        iterate.x[others] = iterate._variable[others] = -77.0  # outside the bounds: to project all of it would move it
        if iterate._optimizer.iterations < 20:
            iterate.best[others] = -78.0

    for options in ({"momentum": 0}, {"momentum": 0.9, "sparse_update": "lazy"}, {"momentum": 0, "x_scale": 2.0}):
        given = {"bounds": [(-1, 2)] * n, "callback": poison, "maxiter": 30} | options
        result = fit(fun, np.ones(n), jac=jac, **given, **NEVER)
        expected = fit(fun, np.ones(n), jac=jac, **(given | {"callback": None}), **NEVER)
        np.testing.assert_array_equal(result.x[where], expected.x[where])
        assert np.count_nonzero(result.x == -78.0) == n - 2
        assert given["momentum"] or not state["iterate"]._changed  # what was copied is not copied again
        assert np.all(expected.x[np.setdiff1d(np.arange(n), where)] == 1.0)
    assert not flushed


def test_the_objective_sees_elements_that_momentum_moves():
    fun = Counted(lambda x: float(np.sum(x)))
    gradients = iter(np.eye(3).tolist() + [[0, 0, 0]] * 20)
    fit(fun, np.ones(3), jac=lambda x: sp.csr_array([next(gradients)]), learning_rate=0.1, **NEVER)
    assert all(later[0] < earlier[0] for earlier, later in zip(fun.xs[:-1], fun.xs[1:], strict=True))


def test_a_sparse_jac_may_write_its_arrays_anew():
    fun, dense = sparse_problem()
    expected = fit(fun, np.zeros(50), jac=lambda x: sp.csr_array([dense(x)]), momentum=0, window=3, maxiter=50)
    fun, dense = sparse_problem()
    values, columns = np.empty(4), np.empty(4, np.int64)

    def jac(x):
        g = dense(x)
        columns[:] = np.flatnonzero(g)
        values[:] = g[columns]
        return sp.coo_array((values, (columns,)), shape=(50,))

    result = fit(fun, np.zeros(50), jac=jac, momentum=0, window=3, maxiter=50)
    np.testing.assert_array_equal(result.x, expected.x)
    np.testing.assert_array_equal(result.jac, expected.jac)


def test_dense_and_sparse_gradients_in_turn():
    results = []
    for sparse in (False, True):
        fun, dense = sparse_problem()
        count = iter(range(1000))
        results.append(
            fit(
                fun,
                np.zeros(50),
                jac=lambda x, d=dense, s=sparse, c=count: sp.csr_array([d(x)]) if s and next(c) % 3 else d(x),
                window=4,
                maxiter=50,
            )
        )
    np.testing.assert_allclose(results[0].x, results[1].x, rtol=1e-11)


def test_no_warnings_and_no_imports_by_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit().nit == 20
    assert "scipy.optimize" in sys.modules  # of course, here; test_first_use asks at import
