"""RMSprop as a method of scipy.optimize.minimize: SciPy's protocol, the options and the results."""

import numpy as np
import pytest
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
