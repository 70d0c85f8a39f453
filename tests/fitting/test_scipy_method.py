"""RMSprop as a method of scipy.optimize.minimize: SciPy's protocol, the options and the results."""

import numpy as np
import pytest
import scipy.sparse as sp
from objectives import (
    NEVER,
    Counted,
    beale,
    beale_der,
    booth,
    fit,
    himmelblau,
    himmelblau_der,
    logistic,
    quadratic,
    square,
    square_der,
)
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    OptimizeResult,
    OptimizeWarning,
    basinhopping,
    dual_annealing,
    minimize,
    rosen,
    rosen_der,
)

from numba_rmsprop import rmsprop, schedules
from numba_rmsprop.fitting.scipy_options import FIRST_RATE, GTOL, LAST_RATE


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
    options = {"maxiter": 20, "colour": 1, "eta": 1, "mxiter": 2}
    listed = r"colour, eta \(did you mean learning_rate\?\), mxiter \(did you mean maxiter\?\)"
    with pytest.warns(OptimizeWarning, match=f"^Unknown solver options: {listed}$") as caught:
        result = minimize(square, [1.0, -2.0], jac=square_der, method=rmsprop, options=options)
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
def test_exceptions_of_the_users_functions_pass_through(error, where):
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


# Arguments.


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
