"""One step of one of many fits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..clipping import clip
from ..jit import compiled_inline
from ..rmsprop import Numbers, update
from ..state import load_state, store_state


@compiled_inline
def take_step(learning_rate: Any, numbers: Any, scratch: Any) -> int:
    """Take a step of RMSprop in ``x / scale`` and move it into the bounds; return 1 if ``x`` has changed, else 0."""
    x, scaled, gradient = scratch.x, scratch.state[0], scratch.slopes.gradient
    scale, lower, upper = scratch.slopes.scale, scratch.slopes.lower, scratch.slopes.upper
    real, first = x.dtype.type, numbers.first
    of_step = Numbers(
        real(learning_rate),
        first.rho,
        first.one_minus_rho,
        first.momentum,
        first.epsilon_inside,
        first.epsilon_outside,
        real(1.0 - learning_rate * numbers.weight_decay),
        real(1.0),  # these four as constants, which LLVM folds
        real(0.0),
        real(0.0),
        real(1.0),
    )
    for j in range(x.size):
        gradient[j] = clip(gradient[j] * scale[j], numbers.clipvalue)
    if numbers.clipnorm < np.inf:
        clip_norm(gradient, numbers.clipnorm)
    for j in range(x.size):
        store_state(scratch.state, 0, j, update(gradient[j], of_step, *load_state(scratch.state, 0, j)), None)
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
def clip_norm(gradient: Any, clipnorm: Any) -> None:
    """Scale a gradient down to a norm of at most ``clipnorm``."""
    total = 0.0
    for j in range(gradient.size):
        total += np.float64(gradient[j]) ** 2
    norm = np.sqrt(total)
    if norm <= clipnorm:
        return
    scale = gradient.dtype.type(clipnorm / norm)
    for j in range(gradient.size):
        gradient[j] *= scale
