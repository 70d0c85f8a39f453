"""One step on every element of a variable."""

from __future__ import annotations

from typing import Any

from numba import prange

from .jit import Integer, compiled, compiled_parallel
from .optional import line_of, load_item, store_item
from .rule import clip, unpack_rates, update


@compiled
def _step_item(i: Integer, var: Any, grad: Any, rms: Any, mg: Any, momentum: Any, rates: Any) -> None:
    new = update(var[i], clip(grad[i], rates), rms[i], load_item(mg, i), load_item(momentum, i), rates)
    var[i] = new[0]
    rms[i] = new[1]
    store_item(mg, i, new[2])
    store_item(momentum, i, new[3])


@compiled
def step_dense_serial(var: Any, grad: Any, rms: Any, mg: Any, momentum: Any, rates: Any) -> None:
    """Step 1-D contiguous arrays on the calling thread: a launch costs more than a small variable."""
    named = unpack_rates(rates)
    for i in range(var.size):
        _step_item(i, var, grad, rms, mg, momentum, named)


@compiled_parallel
def step_dense(var: Any, grad: Any, rms: Any, mg: Any, momentum: Any, rates: Any) -> None:
    """Step 1-D contiguous arrays on all threads.

    The loop over elements is the parallel one, not a loop over blocks: Numba marks the arrays of a parallel body as
    free of aliases, and without that LLVM gives up vectorising the variants with many arrays (8 times slower).
    """
    for i in prange(var.size):
        _step_item(i, var, grad, rms, mg, momentum, unpack_rates(rates))


@compiled_parallel
def step_dense_strided(var: Any, grad: Any, rms: Any, mg: Any, momentum: Any, rates: Any) -> None:
    """Step 2-D arrays of any strides, a row at a time."""
    for row in prange(var.shape[0]):
        _step_line(var[row], grad[row], rms[row], line_of(mg, row), line_of(momentum, row), unpack_rates(rates))


@compiled
def _step_line(var: Any, grad: Any, rms: Any, mg: Any, momentum: Any, rates: Any) -> None:
    for i in range(var.size):
        _step_item(i, var, grad, rms, mg, momentum, rates)
