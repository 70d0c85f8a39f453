"""Current rows of a variable, read through its optimizer: copied, or summed in bags."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray, Label, Occupied, as_variable, describe, memory_key
from ..gradients.bags import as_bags, as_bags_of_matrix
from ..gradients.indexed_slices import as_indices, check_rows
from ..gradients.scipy_sparse import readable
from ..kernels.bags import Bags
from ..runtime.whole_calls import in_turn
from ..state.reading import copy_rows, pool_rows
from ..state.slots import Slots
from .averages import Averages


class Gathering(Averages):
    """The calls of an optimizer that read rows."""

    @property
    def gathers_in_place(self) -> bool:
        """Whether rows that are behind are caught up where they lie, and not in copies."""
        return True

    def gather(
        self,
        var: FloatArray,
        indices: ArrayLike,
        out: FloatArray | None = None,
        *,
        dtype: DTypeLike | None = None,
        averaged: bool = False,
    ) -> FloatArray:
        r"""Return current rows of a variable, at the cost of those rows.

        In exact mode with momentum, weight decay or averages, rows that are behind are caught up first, also those that
        another optimizer has left behind; otherwise the rows are only copied. After this you may write to these rows of
        the variable yourself; to others only after :meth:`flush`, since what they have missed is applied to what is
        there when they are caught up. With a communicator, the copies are caught up and not the variable, since each
        rank may gather others, and a gap that is caught up in two parts is rounded twice; what another optimizer has
        left behind then stays so, until that one is flushed.

        Parameters
        ----------
        var : ndarray, shape (rows, \*row_shape)
            The variable, seen before or not. It may be read-only as long as no row of it is behind.
        indices : array_like of int, any shape
            Rows, in [0, rows); repeated ones are repeated.
        out : ndarray, shape (\*indices.shape, \*row_shape), optional
            Where to put them: C-contiguous, of the variable's dtype; where that has 16 bits, float32 will do, too.
        dtype : dtype, optional
            The dtype of a new array: the variable's, or, as by default for variables of 16 bits, float32.
        averaged : bool, default False
            Return rows of the variable's moving average (``use_ema``), in float32 for one of 16 bits.

        Returns
        -------
        ndarray, shape (\*indices.shape, \*row_shape)
            ``out``, or a new array.

        Raises
        ------
        IndexError
            If an index is negative or too large.
        TypeError, ValueError
            If ``indices`` are not integers, or ``out`` or ``dtype`` does not fit; or rows are behind and the variable
            or a slot is read-only, or was changed in place; or the array is unknown where one of its shape was
            restored, as for :meth:`apply_gradients`; or there is no average.

        Examples
        --------
        >>> from numba_rmsprop import RMSprop
        >>> RMSprop().gather(np.arange(6.0).reshape(3, 2), [2, 0])
        array([[4., 5.],
               [0., 1.]])
        """
        return in_turn(self._gather, var, as_indices(indices, "indices"), out, dtype, averaged)

    def gather_sum(
        self,
        var: FloatArray,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        mode: str = "sum",
        out: FloatArray | None = None,
        *,
        include_last_offset: bool = False,
    ) -> FloatArray:
        r"""Return the sum, or mean, of the current rows of each bag, as torch.nn.EmbeddingBag does.

        Rows that are behind are caught up first, as by :meth:`gather`. Rows of a bag are added up in order. The
        gradient that belongs to it is :meth:`SparseProduct.from_bags
        <numba_rmsprop.SparseProduct.from_bags>` with the same bags.

        Parameters
        ----------
        var : ndarray, shape (rows, \*row_shape)
            The variable, as for :meth:`gather`.
        indices : array_like of int, shape (n,) or (bags, rows of each)
            The rows of the bags, one bag after the other, in [0, rows).
        offsets : array_like of int, shape (bags,), optional
            Where each bag begins; None only where ``indices`` have two axes. The sum of an empty bag is 0.
        weights : array_like, of the shape of ``indices``, optional
            A factor for each entry, of the variable's dtype (float32 where that has 16 bits); with the mode "sum".
        mode : {"sum", "mean"}, default "sum"
            What is done with the rows of a bag.
        out : ndarray, shape (bags, \*row_shape), optional
            Where to put the sums: C-contiguous, of the variable's dtype (float32 where that has 16 bits).
        include_last_offset : bool, default False
            Whether ``offsets`` have one item more, the number of indices, as ``indptr`` of a CSR matrix.

        Returns
        -------
        ndarray, shape (bags, \*row_shape)
            ``out``, or a new array.

        Raises
        ------
        IndexError
            If an index is negative or too large.
        TypeError, ValueError
            If offsets fall, do not start at 0 or reach beyond the indices, weights or ``out`` do not fit, or for what
            :meth:`gather` refuses.

        Examples
        --------
        >>> from numba_rmsprop import RMSprop
        >>> RMSprop().gather_sum(np.arange(6.0).reshape(3, 2), [2, 0, 1], offsets=[0, 2])
        array([[4., 6.],
               [2., 3.]])
        """
        dtype = computed_in(as_variable(var, "variable", written=False).dtype)
        bags = as_bags(indices, offsets, weights, mode, include_last_offset=include_last_offset, dtype=dtype)
        return in_turn(self._gather_sum, var, bags, out)

    def multiply(self, matrix: Any, var: FloatArray, out: FloatArray | None = None) -> FloatArray:
        r"""Return ``matrix @ var`` for a sparse matrix and current rows of a variable.

        The gradient that belongs to it is ``SparseProduct(matrix, gradient of the result)``.

        Parameters
        ----------
        matrix : scipy.sparse array or matrix, shape (examples, rows)
            Of the variable's dtype (float32 for one of 16 bits), or of integers or booleans.
        var : ndarray, shape (rows, \*row_shape)
            The variable, as for :meth:`gather`.
        out : ndarray, shape (examples, \*row_shape), optional
            Where to put the result: C-contiguous, of the variable's dtype (float32 where that has 16 bits).

        Returns
        -------
        ndarray, shape (examples, \*row_shape)
            ``out``, or a new array.

        Raises
        ------
        TypeError, ValueError
            If the matrix is none of scipy.sparse, or its shape or dtype does not fit, or for what :meth:`gather`
            refuses.

        Examples
        --------
        >>> import scipy.sparse
        >>> from numba_rmsprop import RMSprop
        >>> RMSprop().multiply(scipy.sparse.eye_array(2, 3, format="csr"), np.arange(3.0))
        array([0., 1.])
        """
        dtype = computed_in(as_variable(var, "variable", written=False).dtype)
        bags, rows = as_bags_of_matrix(matrix, "matrix", dtype)
        if var.ndim and rows != len(var):
            raise ValueError(f"matrix: expected a column for each of {len(var)} rows of the variable, got {rows}")
        return in_turn(self._gather_sum, var, bags, out)

    def _gather(
        self,
        var: FloatArray,
        wanted: NDArray[np.integer],
        out: FloatArray | None,
        dtype: DTypeLike | None,
        averaged: bool,
    ) -> FloatArray:
        if averaged:
            self.averaged_slots(var)
        slots, rows, out, in_place = self._look_to_read(
            var, wanted, wanted.shape, out, dtype, as_they_are=not averaged, reads_slot=averaged
        )
        flat = out.reshape(len(rows), math.prod(var.shape[1:]))
        if slots is None:
            copy_rows(var, rows, flat)
        elif averaged:
            slots.gather_slot("average", rows, flat, in_place=in_place)
        else:
            slots.gather(rows, flat, in_place=in_place)
        return out

    def _gather_sum(self, var: FloatArray, bags: Bags, out: FloatArray | None) -> FloatArray:
        count = len(bags.offsets) - 1
        slots, rows, out, in_place = self._look_to_read(var, bags.indices, (count,), out)
        flat, weights = out.reshape(count, math.prod(var.shape[1:])), bags.weights
        if weights is not None:
            # A kernel that writes must not read from there; and it would be compiled anew for a read-only array.
            weights = readable(weights, self.known.occupied)
            apart = weights.flags.writeable and not np.may_share_memory(weights, out)
            weights = weights if apart else weights.copy()
        bags = bags._replace(indices=rows, weights=weights)
        if slots is None:
            pool_rows(var, bags, flat)
        else:
            slots.pool(bags, flat, in_place=in_place)
        return out

    def _look_to_read(
        self,
        var: FloatArray,
        wanted: NDArray[np.integer],
        leading: tuple[int, ...],
        out: FloatArray | None,
        dtype: DTypeLike | None = None,
        *,
        as_they_are: bool = False,
        reads_slot: bool = False,
    ) -> tuple[Slots | None, NDArray[np.int64], FloatArray, bool]:
        """Check what reads rows, and let others catch up theirs; return slots, rows, ``out`` and whether to write.

        Rows that are read ``as_they_are`` may have the variable's dtype, and any the one that steps are computed in.
        A call that ``reads_slot`` needs rows caught up that are current as far as the variable goes.
        """
        slots = self.known.find(var)
        in_place = self.gathers_in_place
        if slots is None:
            self.known.check_new(var)
        else:
            behind = slots.has_rows_behind if reads_slot else slots.must_catch_up
            slots.check_memory(written=in_place and behind)
        self.known.gathers = True
        name = "variable" if slots is None else slots.name
        if var.ndim == 0:
            raise ValueError(f"{describe(name, var)} has no rows to gather")
        label = Label("indices of", name, var)
        shape = (*leading, *var.shape[1:])
        computed = computed_in(var.dtype)
        allowed = (computed, var.dtype) if as_they_are and var.dtype != computed else (computed,)
        if dtype is not None and np.dtype(dtype) not in allowed:
            raise TypeError(f"dtype: expected {' or '.join(map(str, allowed))}, got {np.dtype(dtype)}")
        if out is None:
            out = np.empty(shape, computed if dtype is None else dtype)
        else:
            check_output(out, shape, allowed if dtype is None else (np.dtype(dtype),))
        occupied = Occupied([var]) if slots is None else self.known.occupied
        rows, apart = check_rows(wanted.reshape(-1), out, len(var), label, occupied)
        if not apart:
            raise ValueError(f"out overlaps {describe(name, var)}, or another variable or slot; expected memory apart")
        if in_place and (slots is None or self.known.registry.may_share):
            for other in self.known.registry.others_on(var, slots):
                other.pay(rows if memory_key(other.var) == memory_key(var) else None)
        return slots, rows, out, in_place


def check_output(out: FloatArray, shape: tuple[int, ...], dtypes: tuple[np.dtype[Any], ...]) -> None:
    """Refuse an ``out`` of another form."""
    if type(out) is not np.ndarray or not (out.flags.carray and out.dtype in dtypes):
        as_variable(out, "out")
    if out.shape != shape or out.dtype not in dtypes or not out.flags.c_contiguous:
        raise ValueError(
            f"out: expected a C-contiguous array ({' or '.join(map(str, dtypes))}, shape {shape}), got ({out.dtype}, "
            f"shape {out.shape}, C-contiguous: {out.flags.c_contiguous})"
        )
