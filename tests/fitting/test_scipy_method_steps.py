"""The steps of the method for SciPy: bounds, scale, finite differences, and each step beside plain NumPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import NEVER, Counted, fit, square, square_der
from reference import Reference
from scipy.optimize import (
    Bounds,
    minimize,
    rosen,
    rosen_der,
)

from numba_rmsprop import rmsprop
from numba_rmsprop.fitting.scipy_options import as_bounds


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
        assert as_bounds(nothing, np.ones(2)) is None
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
@settings(max_examples=30)
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
