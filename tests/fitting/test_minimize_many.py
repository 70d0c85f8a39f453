"""minimize_many: each fit takes the steps of plain NumPy, and no fit changes another."""

import numba
import numpy as np
import pytest
from all_schedules import ALL as SCHEDULES
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Reference, assert_close
from scipy.optimize import Bounds
from small_fits import PLAIN, bits, no_data, parabola, problem, valley
from strategies import DTYPES, VARIANTS

from numba_rmsprop import Shared, minimize_many

# On one worker, since each compiles the same functions anew.
pytestmark = pytest.mark.xdist_group("many")

TOLERANCE = {np.float32: 1e-3, np.float64: 1e-9}


def falling(step):
    return 0.1 / (1 + step)


RATES = [(0.05, lambda step: 0.05), (falling, falling), (lambda: 0.02, lambda step: 0.02), *[(s, s) for s in SCHEDULES]]
"""Learning rates as arguments, and the same rates as functions of the step."""


@numba.njit
def valley_slopes(x, row, out):
    target, curvature = row[0], row[1]
    for j in range(x.size):
        d = x[j] - target[j]
        out[j] = 2 * curvature[j] * d + 0.4 * d * d * d
    first = x[0]
    out[0] += 0.2 * x[x.size - 1]
    out[x.size - 1] += 0.2 * first


@numba.njit
def recorded(x, row):
    """Note each call in an array of the data."""
    target, curvature, calls = row
    value = valley(x, (target, curvature))
    calls[0, 0] += 1
    k = int(calls[0, 0])
    calls[k, 0] = value
    calls[k, 1:] = x
    return value


@numba.njit
def fenced(x, row):
    lower, upper = row
    for j in range(x.size):
        if not lower[j] <= x[j] <= upper[j]:
            return np.nan
    return np.sum((x - 0.3) ** 2)


def path(x0, row, lower, upper, scale, steps, rate, *, momentum, centered, inside, decay, **numbers):
    """Return all points of one fit by the reference."""
    reference = Reference([x0 / scale], momentum=momentum > 0, centered=centered, epsilon_inside=inside)
    x, points = np.array(x0, np.float64), [np.array(x0, np.float64)]
    for t in range(steps):
        slopes = np.empty(x.size)
        getattr(valley_slopes, "py_func", valley_slopes)(x, row, slopes)
        reference.step([scale * slopes], lr=rate(t) / (1 + decay * t), momentum=momentum, **numbers)
        x = np.clip(reference.vars[0] * scale, lower, upper)
        reference.vars[0] = x / scale
        points.append(x)
    return np.array(points)


# Each compiles anew, so each dtype comes with one variant; as plain Python, with all.
CASES = [(*v, d) for v in VARIANTS for d in DTYPES if PLAIN or (all(v) if d == np.float32 else not any(v))]


@pytest.mark.parametrize(("momentum", "centered", "dtype"), CASES)
@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_each_fit_is_the_reference(momentum, centered, dtype, data):
    def draw(*choices):
        return data.draw(st.sampled_from(choices))

    # Two at least, and neither scale nor bounds for each fit: those would compile anew.
    fits, n, steps = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 15))
    x0, (target, curvature) = problem(fits, n, data.draw(st.integers(0, 1000)), dtype)
    scale = draw(1.0, 0.1, np.linspace(0.5, 2, n))
    low, high = x0.min(axis=0) - dtype(draw(0, 0.5)), x0.max(axis=0) + dtype(draw(0, 0.5))
    lower, upper = draw((-np.inf, np.inf), (low, high), (float(low.min()), np.inf))
    rate, rate_at = draw(*RATES)
    numbers = {
        "rho": draw(0.5, 0.9, 0.99),
        "epsilon": draw(1e-2, 1e-3),
        "weight_decay": draw(0.0, 0.1),
        **draw({}, {"clipvalue": 0.5}, {"clipnorm": 0.7}, {"clipvalue": 0.5, "clipnorm": 0.6}),
    }
    inside, decay, momentum = draw(None, True, False), draw(0.0, 0.3), draw(0.5, 0.9) if momentum else 0.0
    calls = np.zeros((fits, steps + 3, n + 1))
    before = x0.copy(), target.copy(), curvature.copy()
    found = minimize_many(
        *(recorded, x0, (target, curvature, calls)),
        jac=valley_slopes,
        x_scale=scale,
        bounds=draw(None, (lower, upper)) if np.ndim(lower) == 0 and lower == -np.inf else (lower, upper),
        learning_rate=rate,
        maxiter=steps,
        gtol=None,
        ftol=None,
        momentum=momentum,
        centered=centered,
        epsilon_in_sqrt=inside,
        decay=decay,
        **numbers,
    )
    assert all(np.array_equal(old, new) for old, new in zip(before, (x0, target, curvature), strict=True))
    assert (found.x.dtype, found.fun.dtype) == (dtype, np.float64)
    assert (found.nit == steps).all()
    assert (found.status == 1).all()
    for i in range(fits):
        seen = calls[i, 1 + (i == 0) : 1 + int(calls[i, 0, 0])]  # the first fit's function was tried before
        assert len(seen) == steps + 1
        expected = path(
            *(
                x0[i],
                (target[i], curvature[i]),
                lower,
                upper,
            ),
            *(scale, steps, rate_at),
            momentum=momentum,
            centered=centered,
            inside=inside,
            decay=decay,
            **numbers,
        )
        assert_close(seen[:, 1:], expected, TOLERANCE[dtype])
        assert found.fun[i] == seen[:, 0].min()
        assert np.array_equal(found.x[i], seen[seen[:, 0].argmin(), 1:])


def test_scales_and_bounds_of_any_shape():
    x0, data = problem(4, 3)
    data[0][:, 2] += 30  # where the bound is in the way
    x0[0, 1], x0[1, 0] = 0.0, -abs(x0[1, 0])
    low, high = x0.min(axis=0) - 0.1, x0.max(axis=0) + 0.1
    one = minimize_many(valley, x0, data, jac="complex", x_scale="x0", bounds=Bounds(low, high), maxiter=20)
    scale, bounds = np.where(x0 == 0, 1, abs(x0)), (np.tile(low, (4, 1)), np.tile(high, (4, 1)))
    assert bits(one) == bits(minimize_many(valley, x0, data, jac="complex", x_scale=scale, bounds=bounds, maxiter=20))
    assert (one.x[:, 2] == high[2]).any()


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.long)])
def test_gradients_agree(dtype):
    x0, data = problem(5, 3, dtype=dtype)
    rough, exact = (1e-2, 1e-5) if dtype == np.float32 else (1e-7, 1e-12)
    options = {"learning_rate": 0.05, "maxiter": 30, "epsilon": 1e-2, "gtol": None, "ftol": None}
    by_hand = minimize_many(valley, x0, data, jac=valley_slopes, **options)
    for jac, tolerance in (("complex", exact), (None, rough)):
        found = minimize_many(valley, x0, data, jac=jac, **options)
        assert_close(found.x, by_hand.x, tolerance, str(jac))
        assert_close(found.fun, by_hand.fun, tolerance, str(jac))


def test_central_differences_stay_within_the_bounds():
    lower, upper = np.array([0.0, -1.0, 0.5, 0.3]), np.array([1e-7, 0.1, 0.5, 9.0])
    x0 = np.array([lower, upper, lower / 2 + upper / 2])
    found = minimize_many(fenced, x0, (Shared(lower), Shared(upper)), bounds=(lower, upper), ftol=None, maxiter=3000)
    assert found.success.all(), found.status  # by gtol, though slopes at bounds stay
    np.testing.assert_allclose(found.x, [[1e-7, 0.1, 0.5, 0.3]] * 3, atol=1e-5)
    assert (found.x[:, 2] == 0.5).all()


@numba.njit
def of_all_kinds(x, row):
    cube, vector, number, shared, flag = row
    total = (x[0] - number) ** 2 + (x[1] - shared[0]) ** 2
    for j in range(cube.shape[0]):
        total += cube[j, 0] * vector[j]
    return total + (1.0 if flag else 0.0)


def test_data_of_all_kinds(tmp_path):
    rng = np.random.default_rng(0)
    cube, vector, number = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4)), rng.normal(size=3)
    shared, flag, x0 = np.array([7.0]), np.array([True, False, True]), np.zeros((3, 2))
    expected = minimize_many(of_all_kinds, x0, (cube, vector, number, Shared(shared), flag))
    assert expected.success.all()
    np.testing.assert_allclose(expected.x, np.stack([number, np.full(3, 7.0)], axis=1), atol=1e-5)
    np.testing.assert_allclose(expected.fun, np.einsum("ijk,ij->i", cube[:, :, :1], vector) + flag, atol=1e-8)
    cube.tofile(tmp_path / "cube")
    number.setflags(write=False)
    odd = (
        np.memmap(tmp_path / "cube", np.float64, "r", shape=cube.shape),
        np.repeat(vector, 2, axis=1)[:, ::-2][:, ::-1],
        number,
        Shared(shared.astype(">f8")),
        flag.astype(np.uint8),
    )
    before = [np.array(getattr(item, "array", item)) for item in odd]
    assert bits(minimize_many(of_all_kinds, np.asfortranarray(x0).astype(">f8"), odd)) == bits(expected)
    for old, new in zip(before, odd, strict=True):
        np.testing.assert_array_equal(old, getattr(new, "array", new))
    lists = (cube.tolist(), vector.tolist(), number.tolist(), Shared([7.0]), flag.tolist())
    assert bits(minimize_many(of_all_kinds, [[0, 0]] * 3, lists)) == bits(expected)


def test_no_data_and_one_fit():
    found = minimize_many(no_data, [[0]])
    assert (found.x.shape, found.x.dtype, found.success.tolist()) == ((1, 1), np.float64, [True])
    assert abs(found.x[0, 0] - 3) < 1e-5
    assert found.message == {0: found.message[0]}
    first = minimize_many(no_data, [[1.0]], maxiter=0)
    assert (first.x.item(), first.fun.item(), first.nit.item(), first.status.item()) == (1.0, 4.0, 0, 1)


def test_a_bad_fit_harms_no_other(threads):
    """The data hold NaN and infinity, and numbers at which the function raises."""
    rng = np.random.default_rng(0)
    x0, y = rng.normal(0, 1, (40, 1)), rng.normal(0, 1, 40)
    expected = minimize_many(parabola, x0, (y,), maxiter=3000)
    assert expected.success.all()
    bad = {3: np.nan, 11: np.inf, 12: 1e7, 39: -np.inf, 0: 1e8}
    y[list(bad)] = list(bad.values())
    found = minimize_many(parabola, x0, (y,), maxiter=3000)
    good = np.setdiff1d(np.arange(40), list(bad))
    for name in ("x", "fun", "nit", "status"):
        assert found[name][good].tobytes() == expected[name][good].tobytes()
    assert found.status[[3, 11, 12, 39, 0]].tolist() == [3, 4, 4, 3, 4]
    assert np.isnan(found.fun[list(bad)]).all()
    np.testing.assert_array_equal(found.x[list(bad)], x0[list(bad)])
    assert found.success.tolist() == (found.status == 0).tolist()
    assert set(found.message) == {0, 3, 4}
    assert found.message[4] == "The function raised in 3 fits; in fit 0: ValueError('too far')"


@numba.njit
def slope_down(x, row):
    """Fall until x is beyond the edge, and then raise or return NaN."""
    edge, raises = row
    if x[0] > edge:
        if raises:
            raise ZeroDivisionError("beyond")
        return np.nan
    return -x[0]


def test_the_best_point_before_the_end_is_kept():
    data = np.array([0.5, 0.5, np.inf]), np.array([False, True, False])
    found = minimize_many(
        slope_down, np.zeros((3, 1)), data, jac=None, learning_rate=0.1, momentum=0.0, maxiter=9, rho=0.0
    )
    assert found.status.tolist() == [3, 4, 1]
    np.testing.assert_allclose(found.x[:, 0], [0.5, 0.5, 0.9], atol=0.11)
    assert (found.x[:2] > 0.3).all()
    np.testing.assert_array_equal(found.fun, -found.x[:, 0])
    assert found.nit[2] == 9


@pytest.mark.parametrize("rate", [0.0, lambda step: 0.01 if step < 20 else 0.0])
def test_steps_that_do_not_move_are_no_sign_of_a_minimum(rate):
    assert not minimize_many(no_data, [[1.0]], learning_rate=rate, maxiter=300).success.any()
