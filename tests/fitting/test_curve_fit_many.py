"""curve_fit_many: parameters and covariances agree with scipy.optimize.curve_fit for each curve."""

import tracemalloc

import numba
import numpy as np
import pytest
import scipy.optimize
from reference import assert_close
from small_fits import PLAIN, bits, needs_jit

from numba_rmsprop import curve_fit_many
from numba_rmsprop.schedules import ExponentialDecay

# On one worker, since each compiles the same functions anew.
pytestmark = pytest.mark.xdist_group("curves")

T = np.linspace(0.1, 3.0, 12)
TRUTH = np.array([[2.0, 0.5], [5.0, 1.5], [0.5, 1.0]])
START = TRUTH * [[1.1, 0.9]]
RATE = ExponentialDecay(0.01, 800, 1e-3)


@numba.njit
def decay(t, a, k):
    return a * np.exp(-k * t)


@numba.njit
def decay_slopes(t, a, k):
    e = np.exp(-k * t)
    return e, -a * t * e


@numba.njit
def plane(point, a, b, c):
    u, v = point
    return a + b * u + c * v


@numba.njit
def sum_only(t, a, b):
    """Depend on the sum of a and b only, and on neither where t is 0."""
    return (a + b) * t


@numba.njit
def either(t, a, b):
    """Return a at the first point and b at all others, so that their covariance is exactly 0."""
    if t > 10:
        raise ValueError("beyond")
    return a if t < 0.15 else b


def curves(outliers=False):
    rng = np.random.default_rng(0)
    y = TRUTH[:, :1] * np.exp(-TRUTH[:, 1:] * T)
    y = y * (1 + 0.03 * rng.standard_normal(y.shape))
    y[:, 4] *= 2 if outliers else 1
    return y


EACH = 0.02 * np.random.default_rng(1).uniform(0.5, 2, (3, 12))


def python(function):
    return getattr(function, "py_func", function)


def by_scipy(model, x, y, p0, sigma=None, **options):
    """Return popt and pcov of each curve."""
    found = [
        scipy.optimize.curve_fit(
            *(python(model), x, y[i], p0[i]),
            sigma=sigma if np.ndim(sigma) < 2 else sigma[i],
            method="trf",
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
            **options,
        )
        for i in range(len(y))
    ]
    return tuple(map(np.array, zip(*found, strict=True)))


CASES = [
    ({}, {"absolute_sigma": True}),
    ({"sigma": EACH[0]}, {"absolute_sigma": True}),
    ({"sigma": EACH[0]}, {}),
    ({"sigma": EACH}, {"absolute_sigma": True}),
    ({"sigma": EACH}, {}),
    ({}, {"loss": "soft_l1", "f_scale": 0.1}),
    ({"sigma": EACH[0]}, {"loss": "huber", "f_scale": 2.0, "absolute_sigma": True}),
    ({}, {"loss": "cauchy", "f_scale": 0.05}),
    ({}, {"bounds": ([0.0, 0.6], [4.0, 2.0])}),
]


@pytest.mark.parametrize(("sigma", "options"), CASES, ids=lambda case: " ".join(case) or "none")
def test_agrees_with_scipy(sigma, options):
    y, start = curves(outliers="loss" in options), START
    tolerance = 1e-6
    if "bounds" in options:
        # Beside a bound, differences are taken on one side.
        start, tolerance = np.clip(start, *options["bounds"]), 1e-4
    popt, pcov = by_scipy(
        decay, T, y, start, **sigma, jac=lambda *args: np.stack(python(decay_slopes)(*args), 1), **options
    )
    at_optimum = curve_fit_many(decay, T, y, popt, **sigma, **options, maxiter=0)
    np.testing.assert_allclose(at_optimum.pcov, pcov, rtol=tolerance, atol=1e-9 * abs(pcov).max())
    found = curve_fit_many(decay, T, y, start, **sigma, **options, maxiter=800, learning_rate=RATE)
    assert_close((found.popt - popt) / np.sqrt(np.diagonal(pcov, axis1=1, axis2=2)), np.zeros((3, 2)), 1, largest=0.01)
    assert (found.cost <= at_optimum.cost * (1 + 1e-4)).all()
    assert "bounds" not in options or found.success.all()  # though slopes at bounds stay
    if "loss" not in options:
        residuals = (np.array([python(decay)(T, *p) for p in found.popt]) - y) / sigma.get("sigma", 1.0)
        np.testing.assert_allclose(found.cost, (residuals**2).sum(axis=1) / 2, rtol=1e-12)


@pytest.mark.parametrize("jac", [decay_slopes, "complex"], ids=["by hand", "complex"])
def test_derivatives_agree(jac):
    y, options = curves(), {"gtol": None, "maxiter": 60, "learning_rate": RATE}
    differences = curve_fit_many(decay, T, y, START, **options)
    found = curve_fit_many(decay, T, y, START, jac=jac, **options)
    assert_close(found.popt, differences.popt, 1e-7)
    assert_close(found.pcov, differences.pcov, 1e-7)
    assert (found.nit == 60).all()


def test_float32_and_integers():
    y = np.round(100 * curves()).astype(np.int16)
    start = (START * [100, 1]).astype(np.float32)
    found = curve_fit_many(decay, T, y, start, jac="complex", maxiter=800, learning_rate=RATE)
    popt, pcov = by_scipy(decay, T, y, START * [100, 1])
    assert found.popt.dtype == np.float32
    np.testing.assert_allclose(found.popt, popt, rtol=1e-3)
    np.testing.assert_allclose(found.pcov, pcov, rtol=1e-2)


def test_predictors_are_shared_or_not():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=12), rng.normal(size=(3, 12))
    truth = rng.normal(size=(3, 3))
    y = truth[:, :1] + truth[:, 1:2] * u + truth[:, 2:] * v + rng.normal(0, 0.01, (3, 12))
    found = curve_fit_many(plane, (u.astype(">f8"), v), y.astype(">f8"), [0.1, 0.1, 0.1], maxiter=3000)
    for i in range(3):
        popt, pcov = scipy.optimize.curve_fit(python(plane), np.stack([u, v[i]]), y[i], [0.1, 0.1, 0.1])
        assert (abs(found.popt[i] - popt) < 0.01 * np.sqrt(np.diag(pcov))).all()
        np.testing.assert_allclose(found.pcov[i], pcov, rtol=1e-3, atol=1e-9)


def test_units_do_not_matter():
    """A factor of ydata that is a power of 2 changes neither a bit nor the number of steps."""
    y, big = curves(), 2.0**20
    found = curve_fit_many(decay, T, y, START, maxiter=800, learning_rate=RATE)
    other = curve_fit_many(decay, T, y * big, START * [big, 1], maxiter=800, learning_rate=RATE)
    assert found.nit.tolist() == other.nit.tolist()
    np.testing.assert_array_equal(other.popt, found.popt * [big, 1])
    np.testing.assert_array_equal(other.cost, found.cost * big**2)


@pytest.mark.parametrize("loss", ["linear", "soft_l1"])
def test_gtol_is_the_cosine_of_minpack(loss):
    y = curves()
    popt, _ = by_scipy(decay, T, y, START, EACH)
    near = popt * (1 + 1e-4)
    cosines = []
    for x, curve, sigma in zip(near, y, EACH, strict=True):
        residuals, jacobian = (python(decay)(T, *x) - curve) / sigma, np.stack(python(decay_slopes)(T, *x)) / sigma
        if loss == "soft_l1":  # each residual with its weight in the gradient
            weights = (1 + residuals**2) ** -0.25
            residuals, jacobian = weights * residuals, weights * jacobian
        lengths = np.linalg.norm(jacobian, axis=1) * np.linalg.norm(residuals)
        cosines.append(max(abs(jacobian @ residuals) / lengths))
    for factor, status in ((1.001, 0), (0.999, 1)):
        for i, cosine in enumerate(cosines):
            found = curve_fit_many(decay, T, y, near, EACH, loss=loss, gtol=factor * cosine, maxiter=0)
            assert found.status[i] == status


def test_a_jacobian_without_full_rank():
    y = np.array([2 * T + 0.1 * np.sin(9 * T), T + 0.1 * np.cos(9 * T)])
    for x in (T, np.zeros(12)):
        found = curve_fit_many(sum_only, x, y, [0.75, 0.75], maxiter=0)
        for i in range(2):
            jacobian, residuals = np.stack([x, x], 1), 1.5 * x - y[i]
            expected = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-12) * (residuals**2).sum() / 10
            np.testing.assert_allclose(found.pcov[i], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_covariances_of_few_points(points):
    x, y = np.tile(T[:points], (2, 1)), np.ones((2, points))
    found = curve_fit_many(either, x, y, [1.5, 0.5], maxiter=2)
    meant = curve_fit_many(either, x, y, [1.5, 0.5], maxiter=2, absolute_sigma=True)
    assert np.isinf(found.pcov).all() == (points <= 2)
    np.testing.assert_allclose(meant.pcov, [np.diag([1.0, 1 / (points - 1) if points > 1 else 0.0])] * 2, atol=1e-8)


@pytest.mark.parametrize("absolute_sigma", [True, False])
def test_a_bad_curve_harms_no_other(absolute_sigma, threads):
    y, start = np.tile(curves(), (3, 1)), np.tile(START, (3, 1))
    expected = curve_fit_many(decay, T, y, start, maxiter=200, absolute_sigma=absolute_sigma)
    y[0, 3], y[4, 0], y[8, 11] = np.nan, 1e200, -np.inf
    found = curve_fit_many(decay, T, y, start, maxiter=200, absolute_sigma=absolute_sigma)
    good = np.setdiff1d(np.arange(9), [0, 4, 8])
    for name in ("popt", "pcov", "cost", "nit", "status"):
        assert found[name][good].tobytes() == expected[name][good].tobytes()
    assert found.status[[0, 4, 8]].tolist() == [3, 3, 3]
    assert np.isinf(found.pcov[[0, 4, 8]]).all()
    assert np.isnan(found.cost[[0, 4, 8]]).all()
    assert np.isfinite(found.pcov[good]).all()


def test_a_model_that_raises():
    x = np.tile(T, (3, 1))
    x[1, 5] = 11.0
    found = curve_fit_many(either, x, np.ones((3, 12)), [1.5, 0.5], maxiter=5)
    assert found.status.tolist() == [1, 4, 1]
    assert found.message[4] == "The function raised in 1 fits; in fit 1: ValueError('beyond')"
    assert np.isinf(found.pcov).all(axis=(1, 2)).tolist() == [False, True, False]


def test_a_point_of_infinite_sigma_is_left_out():
    y, sigma = curves(), EACH.copy()
    sigma[:, 3:5] = np.inf
    spoiled, kept = y.copy(), np.delete(np.arange(12), [3, 4])
    spoiled[0, 3], spoiled[1, 4], spoiled[2, 3:5] = 1e9, np.nan, np.inf
    options = {"absolute_sigma": True, "maxiter": 800, "learning_rate": RATE}
    found = curve_fit_many(decay, T, spoiled, START, sigma=sigma, **options)
    fewer, of_fewer = np.ascontiguousarray(y[:, kept]), np.ascontiguousarray(sigma[:, kept])
    without = curve_fit_many(decay, T[kept], fewer, START, sigma=of_fewer, **options)
    assert bits(found) == bits(without)


def test_inputs_stay_and_their_layout_is_free():
    y = np.asfortranarray(curves())
    y.setflags(write=False)
    wide = np.repeat(T, 2)[::2]
    inputs = [wide, y, START.copy(), EACH[::-1]]
    before = [array.copy() for array in inputs]
    found = curve_fit_many(decay, *inputs, maxiter=30)
    plain = [np.ascontiguousarray(array) for array in before]
    assert bits(found) == bits(curve_fit_many(decay, *plain, maxiter=30))
    assert all(np.array_equal(old, new) for old, new in zip(before, inputs, strict=True))


def test_little_memory_beside_inputs_and_results():
    fits = 100 if PLAIN else 20_000
    y, start, sigma = np.tile(curves()[:1], (fits, 1)), np.tile(START[:1], (fits, 1)), EACH[0]
    curve_fit_many(decay, T, y[:2], start[:2], sigma=sigma, maxiter=1)
    tracemalloc.start()
    try:
        found = curve_fit_many(decay, T, y, start, sigma=sigma, maxiter=1)
        beyond = tracemalloc.get_traced_memory()[1] - sum(
            found[name].nbytes for name in ("popt", "pcov", "cost", "nit")
        )
    finally:
        tracemalloc.stop()
    assert beyond < 1_500_000, beyond  # most of it for 4096 covariances at a time, however many there are


REFUSED = [
    ({"model": lambda t, a: a}, TypeError, r"model: expected a function that can be called as model\(x, b1, b2\)"),
    ({"model": lambda t, a, b: (a, b)}, TypeError, "model: expected a function that returns a real number"),
    ({"model": lambda t, a, b: None}, TypeError, "model: expected a function that returns a real number, got NoneType"),
    ({"jac": lambda t, a: a}, TypeError, r"jac: expected a function that can be called as jac\(x, b1, b2\)"),
    ({"jac": lambda t, a, b: (a, b, t)}, ValueError, "jac: expected a tuple of 2 numbers, .*got 3 of them"),
    ({"jac": lambda t, a, b: a}, ValueError, "jac: expected a tuple of 2 numbers, .*got float"),
    ({"jac": lambda t, a, b: (a, a + 1j)}, TypeError, "jac: expected a function that returns a real number"),
    ({"jac": "3-point"}, ValueError, "jac: expected a compiled function"),
    ({"model": lambda t, a, b: abs(a) * t + b, "jac": "complex"}, ValueError, "model: expected an analytic function"),
    ({"loss": "arctan"}, ValueError, "loss: expected one of linear, soft_l1, huber, cauchy, got 'arctan'"),
    ({"loss": []}, ValueError, "loss: expected one of linear"),
    ({"f_scale": 0.0}, ValueError, "f_scale: expected a finite number above 0, got 0.0"),
    ({"f_scale": np.nan}, ValueError, "f_scale: expected a finite number above 0, got nan"),
    ({"f_scale": [1.0]}, TypeError, r"f_scale: expected a number, got \[1.0\]"),
    ({"ydata": T}, ValueError, r"ydata: expected shape \(fits, points\)"),
    ({"ydata": np.ones((0, 12))}, ValueError, r"ydata: expected shape .*got shape \(0, 12\)"),
    ({"ydata": np.ones((3, 12)) * 1j}, TypeError, "ydata: expected real numbers, got complex128"),
    (
        {"ydata": np.ma.masked_invalid(curves())},
        TypeError,
        "ydata: expected an array without a mask; .*sigma of infinity",
    ),
    ({"xdata": T[:-1]}, ValueError, r"xdata: expected shape \(12,\) or \(3, 12\), as ydata has, got \(11,\)"),
    ({"xdata": (T, np.ones((2, 12)))}, ValueError, r"xdata\[1\]: expected shape .*got \(2, 12\)"),
    ({"xdata": ()}, ValueError, "xdata: expected an array, or a tuple of one at least"),
    ({"xdata": np.array(["a"] * 12)}, TypeError, "xdata: expected an array of numbers"),
    ({"p0": START[:2]}, ValueError, r"p0: expected shape \(3, parameters\) or \(parameters,\)"),
    ({"p0": [1.0, np.inf]}, ValueError, r"p0\[0, 1\]: expected a finite number"),
    ({"p0": []}, ValueError, r"p0: expected shape"),
    ({"bounds": (0, 1)}, ValueError, r"p0\[0, 0\]: expected a value within the bounds"),
    ({"sigma": 0.0}, ValueError, "sigma: expected a number above 0, got"),
    (
        {"sigma": np.where(T > 1, 1, np.nan)},
        ValueError,
        r"sigma\[0\]: expected a number above 0, got np.float64\(nan\)",
    ),
    (
        {"sigma": np.ones((12, 12))},
        ValueError,
        r"sigma: expected shape \(\) or \(12,\) or \(3, 12\), as ydata has, got \(12, 12\)",
    ),
    ({"sigma": T + 0j}, TypeError, "sigma: expected real numbers, got complex128"),
    ({"maxiter": 1.5}, TypeError, "maxiter: expected an integer"),
    ({"rho": lambda: 0.5}, TypeError, "rho: expected a number, the same for all steps"),
    ({"method": "trf"}, TypeError, "method: expected one of learning_rate, .*got an unknown argument"),
]


@pytest.mark.parametrize(("changed", "error", "message"), REFUSED, ids=[case[2][:50] for case in REFUSED])
def test_refused_before_any_fit(changed, error, message, no_fit_may_start):
    changed = {
        name: numba.njit(value) if name in ("model", "jac") and callable(value) else value
        for name, value in changed.items()
    }
    with pytest.raises(error, match=message):
        curve_fit_many(**{"model": decay, "xdata": T, "ydata": curves(), "p0": START} | changed)


@needs_jit
def test_refused_compiled_functions(no_fit_may_start):
    with pytest.raises(TypeError, match=r"model: expected a function compiled by numba.njit, got one that is not"):
        curve_fit_many(decay.py_func, T, curves(), START)
    with pytest.raises(ValueError, match="jac: expected a function for one thread"):
        curve_fit_many(decay, T, curves(), START, jac=numba.njit(parallel=True)(decay_slopes.py_func))
    with pytest.raises(
        TypeError, match=r"model: Numba cannot compile it for the arguments \(float64, float64, float64\)"
    ):
        curve_fit_many(numba.njit(lambda t, a, b: a.name), T, curves(), START)


def test_complex_steps_are_checked_at_the_size_of_the_parameters():
    """The decay takes nanoseconds, and the times are in seconds."""
    found = curve_fit_many(decay, 1e-9 * T, curves(), START * [1, 1e9], jac="complex", maxiter=0)
    assert np.isfinite(found.pcov).all()


@numba.njit
def cut_off(t, amplitude, rate):
    return amplitude * np.exp(-rate * t) if rate < 3.0 else 0.0 * amplitude


def test_where_the_model_depends_on_nothing_no_fit_has_converged():
    curves = np.full((1, T.size), 1e-3)
    found = curve_fit_many(cut_off, T, curves, [1.0, 2.9], learning_rate=0.5, maxiter=50)
    assert found.popt[0, 1] > 3  # the first steps lead there, where the cost is lower
    assert not found.success.any()


@pytest.mark.parametrize("unit", [1e-17, 1e-9, 1e9])
def test_the_unit_of_the_data_does_not_matter(unit):
    curve = decay(T, 1.0, 1.2) + np.random.default_rng(0).normal(0, 0.02, T.size)
    expected = curve_fit_many(decay, T, curve[np.newaxis], [1.0, 1.0])
    found = curve_fit_many(decay, T, unit * curve[np.newaxis], [unit, 1.0])
    assert found.success.all()
    np.testing.assert_allclose(found.popt / [unit, 1.0], expected.popt, rtol=1e-6)


def test_points_that_are_left_out_are_no_degrees_of_freedom():
    sigma = np.full((2, T.size), 0.1)
    sigma[0, 5:], sigma[1] = np.inf, np.inf
    curves = np.tile(decay(T, 1.0, 1.2) + np.random.default_rng(0).normal(0, 0.02, T.size), (2, 1))
    found = curve_fit_many(decay, T, curves, [1.0, 1.2], sigma, maxiter=300)
    alone = curve_fit_many(decay, T[:5], curves[:1, :5], [1.0, 1.2], sigma[:1, :5], maxiter=300)
    np.testing.assert_allclose(found.pcov[0], alone.pcov[0], rtol=1e-9)
    assert np.isinf(found.pcov[1]).all()


def test_an_amplitude_that_its_bound_holds_at_zero_has_converged():
    found = curve_fit_many(decay, T, np.full((1, T.size), -0.01), [0.1, 1.0], bounds=(0.0, np.inf), maxiter=500)
    assert found.popt[0, 0] == 0
    assert found.success.all()
