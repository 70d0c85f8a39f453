"""Many fits in one call, beside a loop over PyTorch's RMSprop and beside nothing but the user's functions."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from numba_rmsprop import curve_fit_many, minimize_many

from . import steps
from .steps import LIMIT, OURS, TORCH, Step

TORCH_BATCH = "torch, all fits in one tensor"
QUADRATIC = (OURS, LIMIT)
CURVES = (OURS, TORCH, TORCH_BATCH)
NO_TOLERANCE = {"gtol": None, "ftol": None, "learning_rate": 1e-3}


@numba.njit
def distance(x, row):
    """Return the squared distance between the parameters and the row."""
    (target,) = row
    total = 0.0
    for j in range(x.size):
        total += (x[j] - target[j]) ** 2
    return total


@numba.njit
def distance_slopes(x, row, out):
    """Write its gradient."""
    (target,) = row
    for j in range(x.size):
        out[j] = 2 * (x[j] - target[j])


@numba.njit(nogil=True)
def only_the_functions(x0, targets, steps, out):
    """Call both as often as the steps do, and do nothing else but move a parameter."""
    total = 0.0
    x = x0.copy()
    for i in range(targets.shape[0]):
        row = (targets[i],)
        for _ in range(steps):
            distance_slopes(x, row, out)
            total += distance(x, row)
            x[0] += 1e-9
    return total


@numba.njit
def two_decays(t, first, fast, second, slow, offset):
    """Return the sum of two exponential decays and an offset."""
    return first * np.exp(-fast * t) + second * np.exp(-slow * t) + offset


@numba.njit
def two_decays_slopes(t, first, fast, second, slow, offset):
    """Return its derivatives."""
    a, b = np.exp(-fast * t), np.exp(-slow * t)
    return a, -t * first * a, b, -t * second * b, 1.0


def quadratic(library: str, fits: int, count: int, threads: int = 1) -> Step:
    """Return a function that takes ``count`` steps of each fit; the functions cost next to nothing."""
    targets = np.random.default_rng(0).standard_normal((fits, 5))
    x0 = np.zeros((fits, 5))
    if library == LIMIT:
        return lambda: only_the_functions(x0[0], targets, count, np.empty(5))

    def run() -> object:
        steps.use_threads(threads)
        try:
            return minimize_many(distance, x0, (targets,), jac=distance_slopes, maxiter=count, **NO_TOLERANCE)
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)

    return run


def curves(library: str, fits: int, count: int, threads: int | None = None) -> Step:
    """Return a function that takes ``count`` steps of each fit of two decays to 24 points."""
    t = np.linspace(0.0, 3.0, 24)
    rng = np.random.default_rng(0)
    start = np.array([1.0, 3.0, 0.5, 0.5, 0.1])
    data = np.array([two_decays(t, *start * rng.uniform(0.7, 1.3, 5)) for _ in range(fits)])
    if library == OURS:

        def run() -> object:
            steps.use_threads(threads or numba.config.NUMBA_NUM_THREADS)
            try:
                return curve_fit_many(two_decays, t, data, start, jac=two_decays_slopes, maxiter=count, **NO_TOLERANCE)
            finally:
                numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)

        return run
    return _torch_curves(library, t, data, start, count)


def _torch_curves(library: str, t: Any, data: Any, start: Any, count: int) -> Step:
    torch = steps.torch_module()
    points, curves_there = torch.tensor(t), torch.tensor(data)

    def fit(curves: Any) -> None:
        x = torch.tensor(np.broadcast_to(start, (len(curves), 5)).copy(), requires_grad=True)
        optimizer = torch.optim.RMSprop([x], lr=1e-3, alpha=0.99, momentum=0.9)
        for _ in range(count):
            optimizer.zero_grad()
            first, fast, second, slow, offset = (x[:, j : j + 1] for j in range(5))
            model = first * torch.exp(-fast * points) + second * torch.exp(-slow * points) + offset
            loss = 0.5 * ((model - curves) ** 2).sum()
            loss.backward()
            optimizer.step()

    if library == TORCH_BATCH:
        return lambda: fit(curves_there)

    def one_after_the_other() -> None:
        for i in range(len(curves_there)):
            fit(curves_there[i : i + 1])

    return one_after_the_other


class Overhead(steps._Timed):
    """Fits whose functions cost next to nothing, on one thread, beside these functions alone."""

    params = (steps.sizes(100, 2000), steps.sizes(*QUADRATIC))
    param_names = ("fits", "library")

    def setup(self, fits: int, library: str) -> None:
        """Make the call."""
        self.warm_up(quadratic(library, fits, 1000))


class Curves(steps._Timed):
    """Two decays to 24 points, on one thread and on two."""

    params = (steps.sizes(100, 2000), steps.sizes(1, 2))
    param_names = ("fits", "threads")

    def setup(self, fits: int, threads: int) -> None:
        """Make the call."""
        steps.use_threads(threads)
        self.warm_up(curves(OURS, fits, 100, threads))
