"""Factors by which gradients are clipped by norm.

Clipping by value happens inside the kernels, element by element. Clipping by norm needs the whole gradient first:
its norm, after duplicates are summed and values clipped, gives one factor for the kernel to multiply by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from ..settings.step_numbers import StepNumbers
from .part import Part
from .small_batch import Batch


def norm_scales(
    parts: Sequence[Part], numbers: StepNumbers, clipnorm: float | None, global_clipnorm: float | None
) -> list[float | list[float]]:
    """Return the factor for each gradient that leaves its norm, or that of all together, at most the limit.

    The factor is ``limit / max(norm, limit)``, as in tf.clip_by_norm and tf.clip_by_global_norm. A norm of NaN makes
    a factor of NaN. Each variable's squares are summed by themselves, in float64 whatever its dtype. For many small
    variables that are stepped together, there is a list of factors, or one for all of them.
    """
    squares = [taker.squares(gradient, numbers) for gradient, taker in parts]
    if clipnorm is None:
        assert global_clipnorm is not None
        # In the order of their sizes, since that of the parts depends on which variables are stepped together.
        return [limited(global_clipnorm, sum(sorted(chain.from_iterable(squares))))] * len(parts)
    scales = [[limited(clipnorm, square) for square in of_one] for of_one in squares]
    return [of_one if isinstance(taker, Batch) else of_one[0] for of_one, (_, taker) in zip(scales, parts, strict=True)]


def limited(limit: float, square: float) -> float:
    """Return the factor for a gradient of this squared norm."""
    norm = math.sqrt(square)
    # Written so that a NaN is not below the limit, and goes through.
    return 1.0 if norm <= limit else limit / norm
