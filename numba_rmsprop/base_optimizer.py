"""Optimizers: the calls that users make, for any rule."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from .arrays.variables import FloatArray, describe
from .files import checkpoint
from .files.atomic_file import as_paths
from .gradients.from_loss import check_call, gradients_of
from .gradients.pairs import as_list, as_variables
from .gradients.sums import Sum
from .mpi.replicas import Replicas, load_together
from .runtime.interrupts import Uninterrupted
from .state.known_variables import Accumulation
from .state.row_moves import RowMoves
from .stepping.accumulation import Accumulating, Pairs
from .stepping.gathering import Gathering


class Optimizer(Accumulating, Gathering, RowMoves):
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
        """Ranks over which gradients are summed, or None; settable, by all ranks together.

        With ``gradient_accumulation_steps``, set it where :attr:`accumulated_calls` is 0.
        """
        return self._communicator

    @communicator.setter
    def communicator(self, value: Any) -> None:
        if value is not None and self.accumulated_calls:
            raise ValueError(
                f"communicator: expected it to be set between steps, got {self.accumulated_calls} calls that wait for "
                "one, whose gradients the other ranks may have, too; set it when opt.accumulated_calls is 0"
            )
        self._join(value)

    def _join(self, value: Any) -> None:
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

        With ``gradient_accumulation_steps=n``, each n-th call takes one, with the mean of the gradients of n calls.
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
        >>> import numpy as np
        >>> from numba_rmsprop import IndexedSlices, RMSprop
        >>> table = np.zeros((1000, 2), np.float32)
        >>> opt = RMSprop(learning_rate=0.1)
        >>> opt.apply_gradients([(IndexedSlices(np.ones((2, 2), np.float32), [7, 7]), table)])
        1
        >>> table[7].round(4)
        array([-0.3162, -0.3162], dtype=float32)
        """
        pairs, count = as_list(grads_and_vars), self.gradient_accumulation_steps
        replicas = self._replicas if experimental_aggregate_gradients else None
        if count is not None and pairs:
            if replicas is not None:
                return replicas.accumulate(self, pairs, count)
            return self.accumulate(pairs, count, self._take_means)
        if replicas is not None:
            return replicas.step(self, pairs, self.take_step)
        return self.take_step(pairs) if pairs else self.known.iterations

    def _take_means(self, means: Pairs, after: Accumulation) -> int:
        return self.take_step([(mean, var) for mean, var in means if mean is not None], after=after)

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

    @property
    def gathers_in_place(self) -> bool:
        """Whether rows that are read are caught up where they lie: not by one of several ranks alone."""
        return self._replicas is None or self._replicas.alone

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
            If the file would be refused by :meth:`load`, for example since the config is longer than a megabyte. With a
            communicator, also amid the calls of ``gradient_accumulation_steps``, of which no rank has all gradients:
            save when :attr:`accumulated_calls` is 0.
        """
        self._check_round()
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
            file that the delta would go on from; or amid calls, as in :meth:`save`.
        OSError, TypeError
            As in :meth:`save`.
        """
        self._check_round()
        checkpoint.save_delta(self, path)

    def _check_round(self) -> None:
        if self._replicas is not None and not self._replicas.alone and self.accumulated_calls:
            raise ValueError(
                f"save: got {self.accumulated_calls} of {self.gradient_accumulation_steps} calls whose gradients are "
                "added up for a step, and no rank has all of them; save when opt.accumulated_calls is 0"
            )

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
        paths = as_paths(path)
        if communicator is None:
            return checkpoint.load(cls, paths, variables, custom_objects, slots_folder)
        opt = load_together(communicator, lambda: checkpoint.load(cls, paths, variables, custom_objects, slots_folder))
        opt._join(communicator)
        if communicator.Get_rank():  # one rank has the gradients of a round that one process had begun
            calls, sums = opt.known.accumulation
            opt.known.accumulation = Accumulation(calls, dict.fromkeys(sums, Sum()))
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
