"""One step of one of many fits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..aliased_access import (
    load_mg,
    load_momentum,
    load_rms,
    load_var,
    store_mg,
    store_momentum,
    store_rms,
    store_var,
)
from ..jit import compiled_inline
from ..rule import Rates, clip, update


@compiled_inline
def take_step(learning_rate: Any, numbers: Any, scratch: Any) -> int:
    """Take a step of RMSprop in ``x / scale`` and move it into the bounds; return 1 if ``x`` has changed, else 0."""
    x, scaled, gradient = scratch.x, scratch.scaled, scratch.slopes.gradient
    scale, lower, upper = scratch.slopes.scale, scratch.slopes.lower, scratch.slopes.upper
    real, first = x.dtype.type, numbers.rates
    rates = Rates(
        real(learning_rate),
        first.rho,
        first.one_minus_rho,
        first.momentum,
        first.epsilon_inside,
        first.epsilon_outside,
        real(1.0 - learning_rate * numbers.weight_decay),
        first.clipvalue,
        real(1.0),  # these three as constants, which LLVM folds
        real(1.0),
        real(0.0),
    )
    for j in range(x.size):
        gradient[j] *= scale[j]
    if numbers.clipnorm < np.inf:
        clip_norm(gradient, rates, numbers.clipnorm)
    for j in range(x.size):
        var, rms, mg, momentum = update(
            load_var(scaled, 0, j),
            clip(gradient[j], rates),
            load_rms(scratch.rms, 0, j),
            load_mg(scratch.mg, 0, j),
            load_momentum(scratch.momentum, 0, j),
            rates,
        )
        store_rms(scratch.rms, 0, j, rms)
        store_mg(scratch.mg, 0, j, mg)
        store_momentum(scratch.momentum, 0, j, momentum)
        store_var(scaled, 0, j, var)
    moved = 0
    for j in range(x.size):
        before = x[j]
        x[j] = scaled[0, j] * scale[j]
        if x[j] < lower[j] or x[j] > upper[j]:
            x[j] = min(max(x[j], lower[j]), upper[j])
            scaled[0, j] = x[j] / scale[j]
        if x[j] != before:
            moved = 1
    return moved


@compiled_inline
def clip_norm(gradient: Any, rates: Any, clipnorm: Any) -> None:
    """Clip a gradient by value, and then scale it down to a norm of at most ``clipnorm``."""
    total = 0.0
    for j in range(gradient.size):
        gradient[j] = clip(gradient[j], rates)
        total += np.float64(gradient[j]) ** 2
    norm = np.sqrt(total)
    if norm <= clipnorm:
        return
    scale = gradient.dtype.type(clipnorm / norm)
    for j in range(gradient.size):
        gradient[j] *= scale
