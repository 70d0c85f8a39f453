"""By how much clipping scales each gradient.

Clipping by value happens inside the kernels, element by element. Clipping by norm needs the whole gradient first:
its norm, after duplicates are summed and values clipped, gives one factor for the kernel to multiply by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from ..arrays.variables import FloatArray, as_table
from ..gradients.kinds import CSR, Dense, Gradient, Rows
from ..kernels.csr import BLOCK_ROWS
from ..kernels.norms import (
    BLOCK,
    TERMS,
    csr_blocks_squares,
    csr_squares,
    dense_squares,
    rows_squares,
    rows_squares_share,
    small_squares,
    strided_squares,
    total,
)
from ..kernels.rows import CHUNK
from ..runtime.launching import row_links, row_scratch, workers_for, worth_a_launch
from ..settings.step_numbers import StepRates
from ..state.slots import Slots
from .small_batch import Batch, Part


def norm_scales(
    parts: Sequence[Part],
    rates: StepRates,
    *,
    clipnorm: float | None,
    global_clipnorm: float | None,
) -> list[float]:
    """Return the factor for each gradient that leaves its norm, or that of all together, at most the limit.

    The factor is ``limit / max(norm, limit)``, as in tf.clip_by_norm and tf.clip_by_global_norm. A norm of NaN makes
    a factor of NaN. Each variable's squares are summed by themselves, in float64 whatever its dtype.
    """
    squares = [squared_norms(gradient, own, rates) for gradient, own in parts]
    if clipnorm is not None:
        return [_scale(clipnorm, math.sqrt(square)) for (square,) in squares]
    assert global_clipnorm is not None
    # In the order of their sizes, since that of the parts depends on which variables are stepped together.
    return [_scale(global_clipnorm, math.sqrt(sum(sorted(chain.from_iterable(squares)))))] * len(parts)


def _scale(limit: float, norm: float) -> float:
    # Written so that a NaN is not below the limit, and goes through.
    return 1.0 if norm <= limit else limit / norm


def squared_norms(gradient: Gradient, own: Slots | Batch, rates: StepRates) -> list[float]:
    """Return the sum of squares of each variable's gradient, duplicates summed and values clipped."""
    packed = rates.packed(gradient.values.dtype)
    if isinstance(own, Batch):
        return _small(gradient.values, [member.var.size for member in own.members], packed)
    if isinstance(gradient, Dense):
        return _dense(gradient.values, packed)
    if isinstance(gradient, CSR):
        return [_csr(gradient, math.prod(own.shape[1:]), packed)]
    return [_rows(gradient, own, packed)]


def _rows(gradient: Rows, slots: Slots, rates: FloatArray) -> float:
    values, indices = gradient.values, gradient.indices
    workers = workers_for(values.size)
    partial = np.zeros((-(-len(indices) // CHUNK), TERMS))
    links = slots.seen(), *row_links(len(indices))
    scratch = row_scratch(workers, values)
    entries, clocks = (indices, values), slots.row_clocks()
    if workers == 1:
        rows_squares_share(0, 1, entries, clocks, rates, links, scratch, partial)
    else:
        rows_squares(workers, entries, clocks, rates, links, scratch, partial)
    return total(0, len(partial), partial)


def _small(flat: FloatArray, sizes: list[int], rates: FloatArray) -> list[float]:
    out = np.empty(len(sizes))
    partial = np.zeros((sum(-(-size // BLOCK) for size in sizes), TERMS))
    small_squares(flat.reshape(1, -1), np.array(sizes, np.int64), rates, partial, out)
    found: list[float] = out.tolist()
    return found


def _dense(values: FloatArray, rates: FloatArray) -> list[float]:
    table = None if values.flags.c_contiguous else as_table(values)
    if not worth_a_launch(values.size):
        return _small(np.ascontiguousarray(values), [values.size], rates)
    partial = np.zeros((-(-values.size // BLOCK), TERMS))
    if table is None:  # contiguous, or of three axes or more: then a copy
        dense_squares(values.reshape(1, -1), rates, partial)
    else:
        strided_squares(table, rates, partial)
    return [total(0, len(partial), partial)]


def _csr(gradient: CSR, columns: int, rates: FloatArray) -> float:
    workers = workers_for(gradient.values.size)
    sums = np.zeros((workers, columns), gradient.values.dtype)
    partial = np.empty(-(-(gradient.indptr.size - 1) // BLOCK_ROWS))
    matrix = gradient.indptr, gradient.indices, gradient.values
    if workers == 1:
        csr_blocks_squares(0, 1, matrix, rates, sums, partial)
    else:
        csr_squares(workers, matrix, rates, sums, partial)
    return float(np.sum(partial))
