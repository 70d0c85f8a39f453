"""Optimizers: the calls that users make, for any rule."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays.variables import FloatArray, Label, Occupied, as_variable, describe, memory_key
from .files import checkpoint
from .files.atomic_file import as_path
from .gradients.bags import as_bags, as_bags_of_matrix
from .gradients.from_loss import check_call, gradients_of
from .gradients.indexed_slices import as_indices, check_rows
from .gradients.pairs import as_list, as_variables
from .kernels.bags import Bags
from .mpi.replicas import Replicas, load_together
from .runtime.interrupts import Uninterrupted
from .runtime.whole_calls import in_turn
from .state.reading import copy_rows, pool_rows
from .state.slots import Slots
from .stepping.step import Stepping


class Optimizer(Stepping):
    """The calls of an optimizer, whatever its rule.

    A subclass names its :class:`~numba_rmsprop.kernels.rule.Rule` and says which hyperparameters a step has; the rest
    follows: dense and sparse steps, reading, saving and loading.
    """

    _communicator: Any
    _replicas: Replicas | None

    def __init__(self, slots_folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__(slots_folder)
        self._communicator, self._replicas = None, None

    def __copy__(self) -> Self:
        """Return an optimizer with the same variables and slots, which goes on by itself."""
        made = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            object.__setattr__(made, name, copy.copy(value) if name == "known" else value)
        return made

    @property
    def communicator(self) -> Any:
        """Ranks over which gradients are summed, or None; settable, by all ranks together."""
        return self._communicator

    @communicator.setter
    def communicator(self, value: Any) -> None:
        with Uninterrupted():
            replicas = None if value is None else Replicas(value)
            self._communicator, self._replicas = value, replicas

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, FloatArray]],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> int:
        """Take one step, and return the number of steps taken.

        Everything is checked before anything is written: a call that raises leaves every array as it was. Ctrl-C waits
        until the step is whole.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            Pairs are tuples or lists. A gradient is an array of the variable's shape, an
            :class:`~numba_rmsprop.IndexedSlices`, a :class:`~numba_rmsprop.SparseProduct`, a scipy.sparse array or
            matrix of any format, or None; of the variable's dtype. In a sparse array, a row with a stored entry is a
            touched row. A 1-D variable of n elements also takes sparse arrays of shape (1, n) or (n, 1). Arrays of
            other libraries are read by ``__array__`` or DLPack; tf.IndexedSlices, tf.SparseTensor, sparse tensors of
            PyTorch and arrays of the package sparse are taken as well. A gradient that lies in memory which the step
            writes is copied first. None skips the variable, with a warning, but counts as seen. An empty iterable does
            nothing; empty indices are a step.
        name : str, optional
            Ignored; tf.keras names an operation so.
        experimental_aggregate_gradients : bool, default True
            With a communicator, sum the gradients over all ranks, which make this call together, for the same
            variables in the same order. A rank whose batch has no gradient for a variable gives None. With False, the
            gradients are taken as they are, and no rank waits for another.

        Returns
        -------
        int
            ``iterations`` after the step.

        Raises
        ------
        TypeError
            If a pair is malformed, or a gradient or variable of the wrong kind or dtype.
        ValueError
            If all gradients are None, a shape does not fit, a variable comes twice, is read-only or overlaps another,
            or it or a slot was resized or otherwise changed in place, or its file closed, since it was first seen, or
            is unknown where one of its shape was restored and is held by nobody else (see :meth:`rebind`); on every
            rank, if ranks disagree about variables or hyperparameters.
        OtherRankError
            If another rank refuses the call.
        IndexError
            If an index is negative or too large.
        FloatingPointError
            If, with ``check_finite``, a gradient holds NaN or infinity; the message names the place.

        Examples
        --------
        >>> from numba_rmsprop import IndexedSlices, RMSprop
        >>> table = np.zeros((1000, 2), np.float32)
        >>> opt = RMSprop(learning_rate=0.1)
        >>> opt.apply_gradients([(IndexedSlices(np.ones((2, 2), np.float32), [7, 7]), table)])
        1
        >>> table[7].round(4)
        array([-0.3162, -0.3162], dtype=float32)
        """
        pairs = as_list(grads_and_vars)
        if self._replicas is not None and experimental_aggregate_gradients:
            return self._replicas.step(self, pairs, self.take_step)
        return self.take_step(pairs) if pairs else self.known.iterations

    def minimize(
        self,
        loss: Callable[..., Any],
        var_list: Sequence[FloatArray] | Callable[[], Sequence[FloatArray]] | FloatArray,
        grad_loss: Any = None,
        name: str | None = None,
        *,
        jac: Callable[..., Any] | bool | None = None,
    ) -> int:
        """Compute the gradients of ``loss`` and take one step with them.

        Parameters
        ----------
        loss : callable
            Returns the loss, without arguments or called with the variables, as its signature asks. With ``jac=True``
            it returns ``(loss, gradients)``.
        var_list : sequence of ndarray, a callable that returns one, or one ndarray
            The variables.
        grad_loss : float or array_like, optional
            The gradient of what is to be minimized with respect to ``loss``; 1 by default.
        name : str, optional
            Ignored, as in :meth:`apply_gradients`.
        jac : True, callable or None
            Where the gradients come from: True, from ``loss``; a callable, called as ``loss`` is, which returns one for
            each variable, dense, sparse or None; None, from central finite differences, for at most 1,000 elements.

        Returns
        -------
        int
            ``iterations`` after the step.

        Raises
        ------
        ValueError
            If finite differences would take too many calls, or for what :meth:`apply_gradients` refuses.

        Notes
        -----
        In exact mode with momentum or weight decay, the variables are flushed first, since the loss may read any row.
        A training loop over a large table reads it through :meth:`gather` and calls :meth:`apply_gradients`.
        """
        variables = as_variables(var_list() if callable(var_list) else var_list)
        gradients = self._gradients(loss, variables, jac, grad_loss)
        return self.apply_gradients(zip(gradients, variables, strict=True), name=name)

    def get_gradients(
        self,
        loss: Callable[..., Any],
        params: Sequence[FloatArray] | FloatArray,
        *,
        jac: Callable[..., Any] | bool | None = None,
    ) -> list[Any]:
        """Return the gradients of ``loss``, one for each variable, before any clipping.

        Arguments are those of :meth:`minimize`.

        Raises
        ------
        ValueError
            If a gradient is None.
        """
        variables = as_variables(params)
        gradients = self._gradients(loss, variables, jac, None)
        for i, gradient in enumerate(gradients):
            if gradient is None:
                raise ValueError(f"gradient of {describe(f'params[{i}]', variables[i])}: expected one, got None")
        return gradients

    def get_updates(
        self,
        loss: Callable[..., Any],
        params: Sequence[FloatArray] | FloatArray,
        *,
        jac: Callable[..., Any] | bool | None = None,
    ) -> list[int]:
        """Take one step with :meth:`get_gradients`; return ``[iterations]``, where tf.keras returns its operations."""
        variables = as_variables(params)
        return [self.apply_gradients(zip(self.get_gradients(loss, variables, jac=jac), variables, strict=True))]

    def gather(self, var: FloatArray, indices: ArrayLike, out: FloatArray | None = None) -> FloatArray:
        r"""Return current rows of a variable, at the cost of those rows.

        In exact mode with momentum or weight decay, rows that are behind are caught up first, also those that another
        optimizer has left behind; otherwise the rows are only copied. After this you may write to these rows of the
        variable yourself; to others only after :meth:`flush`, since what they have missed is applied to what is there
        when they are caught up. With a communicator, the copies are caught up and not the variable, since each rank
        may gather others, and a gap that is caught up in two parts is rounded twice; what another optimizer has left
        behind then stays so, until that one is flushed.

        Parameters
        ----------
        var : ndarray, shape (rows, \*row_shape)
            The variable, seen before or not. It may be read-only as long as no row of it is behind.
        indices : array_like of int, any shape
            Rows, in [0, rows); repeated ones are repeated.
        out : ndarray, shape (\*indices.shape, \*row_shape), optional
            Where to put them: C-contiguous, of the variable's dtype.

        Returns
        -------
        ndarray, shape (\*indices.shape, \*row_shape)
            ``out``, or a new array.

        Raises
        ------
        IndexError
            If an index is negative or too large.
        TypeError, ValueError
            If ``indices`` are not integers, or ``out`` does not fit; or rows are behind and the variable or a slot is
            read-only, or was changed in place; or the array is unknown where one of its shape was restored, as for
            :meth:`apply_gradients`.

        Examples
        --------
        >>> from numba_rmsprop import RMSprop
        >>> RMSprop().gather(np.arange(6.0).reshape(3, 2), [2, 0])
        array([[4., 5.],
               [0., 1.]])
        """
        return in_turn(self._gather, var, as_indices(indices, "indices"), out)

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
            A factor for each entry, of the variable's dtype; with the mode "sum".
        mode : {"sum", "mean"}, default "sum"
            What is done with the rows of a bag.
        out : ndarray, shape (bags, \*row_shape), optional
            Where to put the sums: C-contiguous, of the variable's dtype.
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
        dtype = getattr(var, "dtype", np.dtype(np.float32))
        bags = as_bags(indices, offsets, weights, mode, include_last_offset=include_last_offset, dtype=dtype)
        return in_turn(self._gather_sum, var, bags, out)

    def multiply(self, matrix: Any, var: FloatArray, out: FloatArray | None = None) -> FloatArray:
        r"""Return ``matrix @ var`` for a sparse matrix and current rows of a variable.

        The gradient that belongs to it is ``SparseProduct(matrix, gradient of the result)``.

        Parameters
        ----------
        matrix : scipy.sparse array or matrix, shape (examples, rows)
            Of the variable's dtype, or of integers or booleans.
        var : ndarray, shape (rows, \*row_shape)
            The variable, as for :meth:`gather`.
        out : ndarray, shape (examples, \*row_shape), optional
            Where to put the result: C-contiguous, of the variable's dtype.

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
        bags, rows = as_bags_of_matrix(matrix, "matrix", getattr(var, "dtype", np.dtype(np.float32)))
        if getattr(var, "ndim", 0) and rows != len(var):
            raise ValueError(f"matrix: expected a column for each of {len(var)} rows of the variable, got {rows}")
        return in_turn(self._gather_sum, var, bags, out)

    def _gather(self, var: FloatArray, wanted: NDArray[np.integer], out: FloatArray | None) -> FloatArray:
        slots, rows, out, in_place = self._look_to_read(var, wanted, wanted.shape, out)
        flat = out.reshape(len(rows), math.prod(var.shape[1:]))
        if slots is None:
            copy_rows(var, rows, flat)
        else:
            slots.gather(rows, flat, in_place=in_place)
        return out

    def _gather_sum(self, var: FloatArray, bags: Bags, out: FloatArray | None) -> FloatArray:
        count = len(bags.offsets) - 1
        slots, rows, out, in_place = self._look_to_read(var, bags.indices, (count,), out)
        flat, bags = out.reshape(count, math.prod(var.shape[1:])), bags._replace(indices=rows)
        if slots is None:
            pool_rows(var, bags, flat)
        else:
            slots.pool(bags, flat, in_place=in_place)
        return out

    def _look_to_read(
        self, var: FloatArray, wanted: NDArray[np.integer], leading: tuple[int, ...], out: FloatArray | None
    ) -> tuple[Slots | None, NDArray[np.int64], FloatArray, bool]:
        """Check what reads rows, and let others catch up theirs; return slots, rows, ``out`` and whether to write."""
        slots = self.known.find(var)
        in_place = self._replicas is None or self._replicas.alone
        if slots is None:
            self.known.check_new(var)
        else:
            slots.check_memory(written=in_place and slots.has_values_behind)
        self.known.gathers = True
        name = "variable" if slots is None else slots.name
        if var.ndim == 0:
            raise ValueError(f"{describe(name, var)} has no rows to gather")
        label = Label("indices of", name, var)
        shape = (*leading, *var.shape[1:])
        if out is None:
            out = np.empty(shape, var.dtype)
        else:
            _check_output(out, shape, var)
        occupied = Occupied([var]) if slots is None else self.known.occupied
        rows, apart = check_rows(wanted.reshape(-1), out, len(var), label, occupied)
        if not apart:
            raise ValueError(f"out overlaps {describe(name, var)}, or another variable or slot; expected memory apart")
        if in_place and (slots is None or self.known.registry.may_share):
            for other in self.known.registry.others_on(var, slots):
                other.pay(rows if memory_key(other.var) == memory_key(var) else None)
        return slots, rows, out, in_place

    def save(self, path: str | os.PathLike[str], *, include_variables: bool = True) -> None:
        """Write the optimizer's state to a safetensors file, which is whole or not there whatever happens meanwhile.

        Rows that are behind stay behind: their clocks are saved, so that no later bit depends on when you saved. The
        file takes its name when it is complete and on the disk; until then, what was there before stays. Each array
        has a checksum, and none is copied in memory.

        Parameters
        ----------
        path : path-like
            The file; through a symbolic link, the one that it leads to. A file that is replaced leaves its permissions
            to the new one, and where the system allows it its owner.
        include_variables : bool, default True
            Save the variables as well. Without them they are yours to save, as they are, and to hand to :meth:`load`,
            which knows them by a checksum.

        Raises
        ------
        OSError
            If it cannot be written: no space, no permission; or if ``path`` is a folder, a device or a pipe. What was
            there is untouched then. Only where the disk fails after the file has taken its name is it the new one.
        TypeError
            If a weight or slot that you have added has a dtype that safetensors files cannot hold, or ``path`` is no
            path.
        ValueError
            If the file would be refused by :meth:`load`, for example since the config is longer than a megabyte.
        """
        checkpoint.save(self, path, include_variables=include_variables)

    def save_delta(self, path: str | os.PathLike[str]) -> None:
        """Write what has changed since the last :meth:`save`, :meth:`save_delta` or :meth:`load`.

        Of a variable with sparse gradients, the rows that steps have touched or :meth:`gather` has caught up; rows that
        only a flush has moved are moved again by :meth:`load`. After a dense step, all rows. Variables are included
        if they were in the last file. Rows that you have changed yourself, in a variable or in a slot, are not
        noticed: call :meth:`save` then.

        Parameters
        ----------
        path : path-like
            The file; another one than those it goes on from.

        Raises
        ------
        ValueError
            If nothing was saved or loaded before, or not since a variable was forgotten or let go, or ``path`` is a
            file that the delta would go on from.
        OSError, TypeError
            As in :meth:`save`.
        """
        checkpoint.save_delta(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        variables: Sequence[FloatArray] | Mapping[str, FloatArray],
        custom_objects: Mapping[str, Any] | None = None,
        *,
        slots_folder: str | os.PathLike[str] | None = None,
        communicator: Any = None,
    ) -> Self:
        """Return the optimizer that :meth:`save` wrote, bound to ``variables``.

        Parameters
        ----------
        path : path-like, or sequence of them
            The file; or the file and its deltas, in order.
        variables : mapping of str to ndarray, or sequence of ndarray
            The variables by the names that :meth:`build` gave them, in any order; or, if none has a name, in the order
            in which the saved optimizer had first seen them. If they are in the file, they are overwritten; if not,
            they must have the values they had then, or a warning tells of it.
        custom_objects : mapping, optional
            As in :meth:`from_config`.
        slots_folder, communicator : optional
            As in the constructor; every rank loads the same file.

        Raises
        ------
        DamagedCheckpointError
            If a file is cut short or changed, or not one of ours; a ValueError.
        ValueError
            If a file is of a newer format, or the variables or their names do not fit it. Nothing has been written
            then.
        OSError
            If a file cannot be read, which does not mean that it is damaged.

        Warns
        -----
        UserWarning
            If variables are not in the file and do not have the values that they had when it was saved: then the state
            belongs to others.
        """
        paths = [as_path(each) for each in ([path] if isinstance(path, (str, bytes, os.PathLike)) else path)]
        if communicator is None:
            return checkpoint.load(cls, paths, variables, custom_objects, slots_folder)
        opt = load_together(communicator, lambda: checkpoint.load(cls, paths, variables, custom_objects, slots_folder))
        opt.communicator = communicator
        return opt

    def _gradients(
        self,
        loss: Callable[..., Any],
        variables: list[FloatArray],
        jac: Callable[..., Any] | bool | None,
        grad_loss: Any,
    ) -> list[Any]:
        check_call(loss, variables, jac)
        for var, slots in zip(variables, map(self.known.find_or_check, variables), strict=True):
            for own in [*([] if slots is None else [slots]), *self.known.registry.others_on(var, slots)]:
                own.pay(None)
        return gradients_of(loss, variables, jac, grad_loss)


def _check_output(out: FloatArray, shape: tuple[int, ...], var: FloatArray) -> None:
    """Refuse an ``out`` of another form."""
    if type(out) is not np.ndarray or not (out.flags.carray and out.dtype == var.dtype):
        as_variable(out, "out")
    if out.shape != shape or out.dtype != var.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out: expected a C-contiguous array ({var.dtype}, shape {shape}), got ({out.dtype}, "
            f"shape {out.shape}, C-contiguous: {out.flags.c_contiguous})"
        )
