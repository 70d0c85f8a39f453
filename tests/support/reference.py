"""The dense algorithm in plain NumPy float64, one line for each formula. It imports nothing of the package."""

from __future__ import annotations

import numpy as np


class Reference:
    """RMSprop on zero-filled gradients; ``touched`` masks turn it into the lazy variant.

    With row-wise state (``by_row``), ``rms`` has the shape of the variable and equal numbers in a row.
    """

    def __init__(
        self,
        variables,
        *,
        momentum=False,
        centered=False,
        epsilon_inside=None,
        by_row=False,
        nesterov=False,
        bias_correction=False,
        initial_scale=0.0,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
    ):
        self.vars = [np.array(var, np.float64) for var in variables]
        self.rms = [np.full_like(var, initial_scale) for var in self.vars]
        self.products = [1.0] * len(self.vars)
        self.mg = [np.zeros_like(var) for var in self.vars]
        self.mom = [np.zeros_like(var) for var in self.vars]
        self.averages = [var.copy() for var in self.vars]
        self.calls = 0
        self.with_momentum = momentum
        self.centered = centered
        self.by_row = by_row
        self.nesterov = nesterov
        self.bias_correction = bias_correction
        self.use_ema, self.ema_momentum = use_ema, ema_momentum
        self.overwrite_frequency = ema_overwrite_frequency
        self.epsilon_inside = momentum if epsilon_inside is None else epsilon_inside
        self.largest = {name: self._sizes(name) for name in ("vars", "mg", "mom", "averages")}

    def _sizes(self, name):
        return [np.max(np.abs(array), initial=0) for array in getattr(self, name)]

    def _square(self, g):
        """Return what enters the mean square; with row-wise state the same for all of a row."""
        if not self.by_row or g.ndim < 2:
            return g**2
        return np.broadcast_to(np.mean(g**2, axis=tuple(range(1, g.ndim)), keepdims=True), g.shape)

    def step(
        self,
        grads,
        *,
        lr=0.001,
        rho=0.9,
        momentum=0.0,
        epsilon=1e-7,
        weight_decay=0.0,
        clipvalue=None,
        clipnorm=None,
        global_clipnorm=None,
        touched=None,
    ):
        grads = clipped(grads, clipvalue, clipnorm, global_clipnorm)
        for i, g in enumerate(grads):
            if g is None:
                continue
            var, rms, mg, mom = self.vars[i].copy(), self.rms[i].copy(), self.mg[i].copy(), self.mom[i].copy()
            var -= lr * weight_decay * var
            rms = rho * rms + (1 - rho) * self._square(g)
            mg = rho * mg + (1 - rho) * g
            self.products[i] *= rho
            share = 1 - self.products[i] if self.bias_correction else 1.0
            v = np.maximum(rms / share - (mg / share) ** 2, 0) if self.centered else rms / share
            step = lr * g / (np.sqrt(v + epsilon) if self.epsilon_inside else np.sqrt(v) + epsilon)
            if self.with_momentum:
                mom = momentum * mom + step
                step = momentum * mom + step if self.nesterov else mom
            var -= step
            ema = self.ema_momentum if self.calls else 0.0
            average = ema * self.averages[i] + (1 - ema) * var
            if self.use_ema and self.overwrite_frequency and (self.calls + 1) % self.overwrite_frequency == 0:
                var = average.copy()
            rows = slice(None) if touched is None or touched[i] is None else touched[i]
            if var.ndim == 0:
                rows = ()
            slots = (self.rms, rms), (self.mg, mg), (self.mom, mom), (self.averages, average)
            for old, new in ((self.vars, var), *slots):
                old[i][rows] = new[rows]
        self.calls += 1
        for name, before in self.largest.items():
            self.largest[name] = np.maximum(before, self._sizes(name))


def clipped(grads, clipvalue, clipnorm, global_clipnorm):
    grads = [None if g is None else np.array(g, np.float64) for g in grads]
    if clipvalue is not None:
        grads = [None if g is None else np.clip(g, -clipvalue, clipvalue) for g in grads]
    if clipnorm is not None:
        grads = [None if g is None else g * clipnorm / max(np.sqrt(np.sum(g**2)), clipnorm) for g in grads]
    if global_clipnorm is not None:
        norm = np.sqrt(sum(np.sum(g**2) for g in grads if g is not None))
        grads = [None if g is None else g * global_clipnorm / max(norm, global_clipnorm) for g in grads]
    return grads


def densified(values, indices, shape):
    dense = np.zeros(shape)
    np.add.at(dense, indices, values)
    return dense


def assert_close(actual, expected, tolerance, what="", largest=0.0):
    """Compare up to ``tolerance`` times the largest element, or times ``largest`` if that is more."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert actual.shape == expected.shape, what
    if expected.size:
        error = np.max(np.abs(actual - expected))
        largest = max(largest, np.max(np.abs(expected)))
        assert error <= tolerance * largest, f"{what}: off by {error}, largest {largest}"
