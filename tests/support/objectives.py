"""Functions to minimize, and a short way to minimize them by the method for SciPy."""

import numpy as np
from scipy.optimize import minimize

from numba_rmsprop import rmsprop

NEVER = {"gtol": -1, "ftol": -1}


def square(x):
    return float(np.sum(x.astype(np.float64) ** 2))


def square_der(x):
    return 2 * x


def fit(fun=square, x0=(1.0, -2.0), *, jac=square_der, **given):
    """Call minimize with 20 steps. Keywords that it does not take become options of the method."""
    own = {name: given.pop(name) for name in ("args", "bounds", "callback", "tol", "constraints") if name in given}
    return minimize(fun, np.asarray(x0), jac=jac, method=rmsprop, options={"maxiter": 20} | given, **own)


class Counted:
    """A function that notes a copy of each x."""

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
