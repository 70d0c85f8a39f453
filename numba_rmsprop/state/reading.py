"""Rows of a variable, copied or added up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays.storage import as_stored
from ..arrays.variables import FloatArray, as_table
from ..kernels.bags import Bags, sum_bags
from ..kernels.gather_and_flush import gather_rows
from ..runtime.launching import team_for
from ..runtime.whole_calls import in_turn


def copy_rows(var: FloatArray, indices: NDArray[np.int64], out: FloatArray) -> None:
    """Copy ``var[indices]`` into ``out``, shape (n, columns), contiguous."""
    table = var if var.ndim == 2 else as_table(var)
    if table is None or not var.flags.writeable:  # for which the kernel would be compiled anew
        out[...] = var[indices].reshape(out.shape)
        return
    in_turn(gather_rows, team_for(out.size, fine=True), indices, as_stored(out), as_stored(table))


def pool_rows(var: FloatArray, bags: Bags, out: FloatArray) -> None:
    """Write the sum or mean of each bag's rows of ``var`` into ``out``, shape (bags, columns), contiguous."""
    table, indices = var if var.ndim == 2 else as_table(var), bags.indices
    if table is None or not var.flags.writeable:  # for which the kernel would be compiled anew
        table, indices = var[indices].reshape(len(indices), out.shape[1]), np.arange(len(indices))
    team = team_for(len(indices) * out.shape[1], fine=True)
    in_turn(sum_bags, team, bags._replace(indices=indices), as_stored(table), out)
