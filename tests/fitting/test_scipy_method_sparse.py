"""Sparse gradients in the method for SciPy."""

import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from objectives import NEVER, Counted, fit

import numba_rmsprop.fitting.iterate
from numba_rmsprop import IndexedSlices


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
    """The callback overwrites the elements that no step may touch, so that a read or a write of them shows."""
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
        if iterate.optimizer.iterations < 20:
            iterate.best[others] = -78.0

    for options in ({"momentum": 0}, {"momentum": 0.9, "sparse_update": "lazy"}, {"momentum": 0, "x_scale": 2.0}):
        given = {"bounds": [(-1, 2)] * n, "callback": poison, "maxiter": 30} | options
        result = fit(fun, np.ones(n), jac=jac, **given, **NEVER)
        expected = fit(fun, np.ones(n), jac=jac, **(given | {"callback": None}), **NEVER)
        np.testing.assert_array_equal(result.x[where], expected.x[where])
        assert np.count_nonzero(result.x == -78.0) == n - 2
        assert given["momentum"] or not len(state["iterate"]._changed.indices())  # what was copied is not copied again
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
