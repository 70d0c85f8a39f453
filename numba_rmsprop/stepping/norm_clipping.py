"""Factors by which gradients are clipped by norm.

Clipping by value happens inside the kernels, element by element. Clipping by norm needs the whole gradient first:
its norm, after duplicates are summed and values clipped, gives one factor for the kernel to multiply by.

The factor is ``limit / max(norm, limit)``, as in tf.clip_by_norm and tf.clip_by_global_norm. A norm of NaN makes a
factor of NaN. Each variable's squares are summed by themselves, in float64 whatever its dtype. Variables that are
stepped together, as one part, have a list of squares and of factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain


def norm_of(squares: Iterable[Sequence[float]]) -> float:
    """Return the norm of all gradients together, of which these are the squared norms."""
    # In the order of their sizes, since that of the parts depends on which variables are stepped together.
    return math.sqrt(sum(sorted(chain.from_iterable(squares))))


def limited(limit: float | None, norm: float) -> float:
    """Return the factor for a gradient of this norm; None is no limit."""
    # Written so that a NaN is not below the limit, and goes through.
    return 1.0 if limit is None or norm <= limit or limit == math.inf else limit / norm


def each_limited(limit: float | None, squares: Sequence[float]) -> float | list[float]:
    """Return the factors for gradients by their own norms: a number for one, or where they are all the same."""
    factors = [limited(limit, math.sqrt(square)) for square in squares]
    return factors[0] if len(set(factors)) == 1 else factors
