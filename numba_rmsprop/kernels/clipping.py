"""Clipping of a gradient's elements by value, which comes before every norm and every step."""

from __future__ import annotations

from typing import Any

from .jit import inlined


@inlined
def clip(grad: Any, clipvalue: Any) -> Any:
    """Return an element between ``-clipvalue`` and ``clipvalue``. NaN fails both comparisons and passes through."""
    if grad > clipvalue:
        grad = clipvalue
    if grad < -clipvalue:
        grad = -clipvalue
    return grad
