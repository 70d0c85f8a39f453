"""The ends of fits by the method for SciPy, and their results."""

import builtins

import numpy as np
import pytest
from objectives import (
    NEVER,
    Counted,
    fit,
    square,
)

from numba_rmsprop import RMSprop, schedules


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
    """Return a fun and a jac of one element that return these values in turn, for any x."""
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
