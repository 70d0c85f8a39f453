"""RMSprop: one step, told in order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from . import checkpoint
from .arguments import as_list, as_variables, check_pairs, refuse_duplicates, without_none
from .batches import Part
from .clipping import norm_scales
from .gradients import Dense, Gradient, as_gradient, as_indices, check_finite, check_rows
from .interrupts import Uninterrupted, call_in_one_go
from .minimize import check_call, gradients_of
from .plans import Plan, layout_is_known
from .rates import StepRates
from .serialize import deserialize, serialize
from .settings import Settings
from .slots import Slots, copy_rows
from .threads import launch_lock
from .variables import FloatArray, Label, Occupied, as_variable, describe
from .weights import WeightStore


class RMSprop(Settings, WeightStore):
    r"""RMSprop that takes sparse gradients and gives the numbers of the dense algorithm.

    Per element, with gradient g at step t (0 at the first) and lr = learning_rate(t) / (1 + decay·t)::

        rms <- rho·rms + (1 - rho)·g²
        mg  <- rho·mg  + (1 - rho)·g                       (centered)
        v    = rms, or max(rms - mg², 0)                   (centered)
        without momentum:  var <- var - lr·g / (sqrt(v) + epsilon)
        with momentum:     mom <- momentum·mom + lr·g / sqrt(v + epsilon);  var <- var - mom

    In one step, duplicates are summed, then the gradient is clipped (value, norm, global norm), then weight decay
    shrinks the variable, then it is updated.

    Parameters
    ----------
    learning_rate : float, LearningRateSchedule or callable, default 0.001
        A number; a schedule or any callable of the step; or a callable without arguments.
    rho : float or callable, default 0.9
        How much of the mean square stays from step to step, in [0, 1]. For embeddings take 0.99 to 0.999, so that a
        rare row remembers its last gradients.
    momentum : float or callable, default 0.0
        In [0, 1]. Whether there is momentum at all is fixed here: if it is above 0, or a callable.
    epsilon : float, callable or None, default 1e-7
        Keeps the division from 0. It stands under the root with momentum, outside it without. None stands for the
        default. With 0, a dense step divides 0 by 0 where an element's gradients were all 0.
    centered : bool, default False
        Divide by the estimated standard deviation and not the root of the mean square.
    name : str, default "RMSprop"
        A label, kept in the config.
    sparse_update : {"exact", "lazy"}, default "exact"
        What a sparse gradient means for the rows it leaves out: "exact", a gradient of 0, which decays their state as
        the dense algorithm does, computed when the row is next needed; "lazy", no step at all.
    epsilon_in_sqrt : bool, optional
        Put epsilon under the root (True: as in Keras 3) or outside (False: as in PyTorch) whatever the momentum.
    weight_decay : float, default 0.0
        Decoupled: each step first multiplies the variable by 1 - lr·weight_decay. In lazy mode, touched rows only.
    decay : float or callable, default 0.0
        Divides the learning rate by 1 + decay·t.
    clipvalue : float, optional
        Clip every element of the gradient to [-clipvalue, clipvalue].
    clipnorm : float, optional
        Scale each variable's gradient to a norm of at most this.
    global_clipnorm : float, optional
        Scale all gradients of a call together to a norm of at most this; not together with ``clipnorm``.
    check_finite : bool, default False
        Refuse gradients that hold NaN or infinity. Without it they pass through, to the elements that they touch.
    lr : float, LearningRateSchedule or callable, optional
        Another name of ``learning_rate``, which it overrides.
    slots_folder : path-like, optional
        A folder for files that hold the slots and clocks of variables seen from now on, for tables beyond memory; a
        variable may be an np.memmap. The files have no names and go with the process, as memory does: :meth:`save`
        keeps the state. They have their full size from the beginning, so that a disk that is too small is found out
        then. A forked process cannot use them. It is no part of the config.
    communicator : mpi4py.MPI.Intracomm, optional
        Ranks that train copies of the same variables, each on its part of a batch; each step sums their gradients
        before anything else, and all ranks then hold the same bits. What flushes (:meth:`flush`, :meth:`get_weights`,
        :meth:`get_slot`, :meth:`minimize`) must then be called on all ranks. Settable, on all ranks together. It is no
        part of the config.

    Raises
    ------
    TypeError
        If an argument is unknown or of the wrong kind.
    ValueError
        If a number is out of its bounds, or both ``clipnorm`` and ``global_clipnorm`` are given.

    Notes
    -----
    A variable is a writable NumPy array of float32 or float64 and is updated in place. In exact mode with momentum or
    weight decay, rows that a step did not touch move too, but only when they are needed: read rows through
    :meth:`gather`, or call :meth:`flush` before you read the array. Calls from several threads are serialised.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5 - RMSProp", COURSERA: Neural Networks for Machine Learning, 2012.
    Graves, https://arxiv.org/abs/1308.0850 (centered). The places of epsilon and of the learning rate are those of
    tf.keras.optimizers.RMSprop: https://www.tensorflow.org/versions/r2.10/api_docs/python/tf/keras/optimizers/RMSprop

    Examples
    --------
    >>> opt = RMSprop(learning_rate=0.1)
    >>> var1 = np.array(10.0)
    >>> loss = lambda: (var1 ** 2) / 2.0  # d(loss) / d(var1) = var1
    >>> step_count = opt.minimize(loss, [var1])
    >>> round(float(var1), 6)
    9.683772
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: Any = 1e-7,
        centered: bool = False,
        name: str = "RMSprop",
        *,
        sparse_update: str = "exact",
        epsilon_in_sqrt: bool | None = None,
        weight_decay: float = 0.0,
        decay: Any = 0.0,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        check_finite: bool = False,
        lr: Any = None,
        slots_folder: str | os.PathLike[str] | None = None,
        communicator: Any = None,
    ) -> None:
        WeightStore.__init__(self)
        self.slots_folder = slots_folder
        Settings.__init__(
            self,
            learning_rate=learning_rate if lr is None else lr,
            rho=rho,
            momentum=momentum,
            epsilon=epsilon,
            decay=decay,
            centered=centered,
            name=name,
            sparse_update=sparse_update,
            epsilon_in_sqrt=epsilon_in_sqrt,
            weight_decay=weight_decay,
            clipvalue=clipvalue,
            clipnorm=clipnorm,
            global_clipnorm=global_clipnorm,
            check_finite=check_finite,
        )
        self.communicator = communicator  # last, since ranks count those who have one, and not those who were refused

    @property
    def communicator(self) -> Any:
        """Ranks over which gradients are summed, or None; settable, by all ranks together."""
        return self._communicator

    @communicator.setter
    def communicator(self, value: Any) -> None:
        if value is not None:
            from .distributed.replicas import Replicas  # above this module, and needed by few

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
            A gradient is an array of the variable's shape, an :class:`~numba_rmsprop.IndexedSlices`, a scipy.sparse
            array or matrix of any format, or None; of the variable's dtype. In a sparse array, a row with a stored
            entry is a touched row. A 1-D variable of n elements also takes sparse arrays of shape (1, n) or (n, 1).
            None skips the variable, with a warning. An empty iterable does nothing; empty indices are a step.
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
            If all gradients are None, a shape does not fit, a variable comes twice, is read-only or overlaps another;
            on every rank, if ranks disagree about variables or hyperparameters.
        OtherRankError
            If another rank refuses the call.
        IndexError
            If an index is negative or too large.
        FloatingPointError
            If, with ``check_finite``, a gradient holds NaN or infinity; the message names the place.

        Examples
        --------
        >>> from numba_rmsprop import IndexedSlices
        >>> table = np.zeros((1000, 2), np.float32)
        >>> opt = RMSprop(learning_rate=0.1)
        >>> opt.apply_gradients([(IndexedSlices(np.ones((2, 2), np.float32), [7, 7]), table)])
        1
        >>> table[7].round(4)
        array([-0.3162, -0.3162], dtype=float32)
        """
        pairs = as_list(grads_and_vars)
        if self._replicas is not None and experimental_aggregate_gradients:
            return self._replicas.step(self, pairs, self._take_step)
        return self._take_step(pairs) if pairs else self._iterations

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

        In exact mode with momentum or weight decay, rows that are behind are caught up first; otherwise the rows are
        only copied. With a communicator, the copies are caught up and not the variable, since each rank may gather
        others, and a gap that is caught up in two parts is rounded twice.

        Parameters
        ----------
        var : ndarray, shape (rows, \*row_shape)
            The variable, seen before or not.
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
            If ``indices`` are not integers, or ``out`` does not fit.

        Examples
        --------
        >>> RMSprop().gather(np.arange(6.0).reshape(3, 2), [2, 0])
        array([[4., 5.],
               [0., 1.]])
        """
        slots = self._find_or_check(var)
        name = "variable" if slots is None else slots.name
        if var.ndim == 0:
            raise ValueError(f"{describe(name, var)} has no rows to gather")
        label = Label("indices of", name, var)
        wanted = as_indices(indices, label)
        shape = (*wanted.shape, *var.shape[1:])
        if out is None:
            out = np.empty(shape, var.dtype)
        else:
            self._check_output(out, shape, var)
        occupied = Occupied([var]) if slots is None else self._occupied
        rows, apart = check_rows(wanted.reshape(-1), out, len(var), label, occupied)
        if not apart:
            raise ValueError(f"out overlaps {describe(name, var)}, or another variable or slot; expected memory apart")
        flat = out.reshape(len(rows), math.prod(var.shape[1:]))
        if slots is None:
            copy_rows(var, rows, flat)
        else:
            slots.gather(rows, flat, in_place=self._replicas is None or self._replicas.alone)
        return out

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON can hold them.

        A schedule is written with its class and arguments; of any other callable, its name.

        Examples
        --------
        >>> RMSprop(0.01, rho=0.99).get_config()["rho"]
        0.99
        """
        return {
            "name": self.name,
            **{name: serialize(value) for name, value in self._values.items()},
            "centered": self.centered,
            "sparse_update": self.sparse_update,
            "epsilon_in_sqrt": self.epsilon_in_sqrt,
            "weight_decay": self.weight_decay,
            **self._clips,
            "check_finite": self.check_finite,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Return the optimizer that :meth:`get_config` described, without slots.

        Parameters
        ----------
        config : mapping
            From :meth:`get_config`; ``lr`` may stand for ``learning_rate``.
        custom_objects : mapping of str to class or function, optional
            Your own schedules by class name, and functions by name.

        Raises
        ------
        TypeError
            If it is no mapping, or there is an unknown key.
        ValueError
            If a schedule or function is not known.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config: expected a mapping, got {type(config).__name__}")
        return cls(**{name: deserialize(value, custom_objects, name) for name, value in config.items()})

    def save(self, path: str | os.PathLike[str], *, include_variables: bool = False) -> None:
        """Write the optimizer's state to a safetensors file, which is whole or not there whatever happens meanwhile.

        Rows that are behind stay behind: their clocks are saved, so that no later bit depends on when you saved. The
        file takes its name when it is complete and on the disk; until then, what was there before stays. Each array
        has a checksum, and none is copied in memory.

        Parameters
        ----------
        path : path-like
            The file.
        include_variables : bool, default False
            Save the variables as well. Without them they are yours to save, as they are, and to hand to :meth:`load`.

        Raises
        ------
        OSError
            If it cannot be written: no space, no permission. What was at ``path`` is untouched then. Only where the
            disk fails after the file has taken its name is it the new one.
        TypeError
            If a weight or slot that you have added has a dtype that safetensors files cannot hold.
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
            If nothing was saved or loaded before, or ``path`` is a file that the delta would go on from.
        OSError, TypeError
            As in :meth:`save`.
        """
        checkpoint.save_delta(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        variables: Sequence[FloatArray],
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
        variables : sequence of ndarray
            The variables in the order in which the saved optimizer had first seen them. If they are in the file, they
            are overwritten; if not, they must have the values they had then.
        custom_objects : mapping, optional
            As in :meth:`from_config`.
        slots_folder, communicator : optional
            As in the constructor; every rank loads the same file.

        Raises
        ------
        DamagedCheckpointError
            If a file is cut short or changed; a ValueError.
        ValueError
            If a file is not one of ours, or of a newer format, or the variables do not fit it. Nothing has been
            written then.
        OSError
            If a file cannot be read.
        """
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if communicator is None:
            return checkpoint.load(cls, paths, variables, custom_objects, slots_folder)
        from .distributed.replicas import load_together  # as above

        opt = load_together(communicator, lambda: checkpoint.load(cls, paths, variables, custom_objects, slots_folder))
        opt.communicator = communicator
        return opt

    def _built_in_slots(self) -> list[str]:
        return ["rms"] + ["momentum"] * self._has_momentum + ["mg"] * self.centered

    def _new_slots(self, var: FloatArray, name: str) -> Slots:
        return Slots(
            var,
            name,
            momentum=self._has_momentum,
            centered=self.centered,
            exact=self.sparse_update == "exact",
            decays=self.weight_decay > 0,
            folder=self.slots_folder,
        )

    def _take_step(self, pairs: list[Any], rates: StepRates | None = None) -> int:
        """Take one step, with the hyperparameters given or those of now."""
        with launch_lock:
            found: list[Slots] = []
            parts = self._parts_as_before(pairs)
            if parts is None:
                pairs = without_none(check_pairs(pairs))
                found = self._find_or_make([var for _, var in pairs])
                parts = self._parts([grad for grad, _ in pairs], found)
            if rates is None:
                rates = self._rates(self._iterations)
            scales = self._scales(parts, rates) if self._clips_norms else None
            if found or not self._step_alone(parts, rates, scales):
                self._step_all(parts, rates, scales, found)
            if found and layout_is_known():
                self._plan = Plan(found, self._occupied)
            return self._iterations

    def _parts_as_before(self, pairs: list[Any]) -> list[Part] | None:
        """Return the gradients, checked, each with what takes its step, where nothing needs a closer look."""
        plan = self._plan
        if plan is None or self.check_finite or self._clips_norms or not plan.fits(pairs):
            return None
        parts: list[Part] = [] if plan.batch is None else [(plan.batch.gradient, plan.batch)]
        for k, own in plan.rest:
            parts.append((as_gradient(pairs[k][0], own.var, own.name, self._occupied), own))
        return parts

    def _parts(self, grads: list[Any], found: list[Slots]) -> list[Part]:
        """Return the gradients, checked, each with what takes its step: small variables together, others alone."""
        refuse_duplicates(found)
        occupied = self._occupied_with(found)
        parts: list[Part] = []
        small: dict[Any, tuple[list[Slots], list[FloatArray]]] = {}
        for grad, own in zip(grads, found, strict=True):
            gradient = as_gradient(grad, own.var, own.name, occupied)
            self._check_values(gradient, own)
            if own.small and isinstance(gradient, Dense):
                # For a norm of its own, each needs a batch of its own.
                members, values = small.setdefault(own.dtype if self.clipnorm is None else own, ([], []))
                members.append(own)
                values.append(gradient.values)
            else:
                parts.append((gradient, own))
        for key, (members, values) in small.items():
            parts.append(self._batch(key, members).fill(values))
        return parts

    def _check_values(self, gradient: Gradient, own: Slots) -> None:
        if self.check_finite:
            check_finite(gradient, own.var, own.name)

    def _step_alone(self, parts: list[Part], rates: StepRates, scales: list[float] | None) -> bool:
        """Take the step of a call with one variable, or one batch of small ones; return whether it was so simple."""
        if len(parts) > 1:
            return False
        gradient, own = parts[0]
        calls = own.calls(gradient, rates, 1.0 if scales is None else scales[0])
        if calls is None:
            return False
        calls.append((setattr, self, "_iterations", self._iterations + 1))
        call_in_one_go(calls)
        return True

    def _step_all(self, parts: list[Part], rates: StepRates, scales: list[float] | None, found: list[Slots]) -> None:
        """Take the steps of all variables; those found may be new."""
        if found:
            self._plan = None  # which may take for small what is to have clocks now
        if len(parts) > 1:
            for gradient, own in parts:
                own.prepare(gradient)
        interrupts = Uninterrupted()
        try:
            interrupts.hold()
            if found:
                self._register(found)
            for k, (gradient, own) in enumerate(parts):
                own.step(gradient, rates, 1.0 if scales is None else scales[k])
            self._iterations += 1
        finally:
            interrupts.release()

    def _scales(self, parts: list[Part], rates: StepRates) -> list[float]:
        return norm_scales(parts, rates, clipnorm=self.clipnorm, global_clipnorm=self.global_clipnorm)

    def _check_output(self, out: FloatArray, shape: tuple[int, ...], var: FloatArray) -> None:
        """Refuse an ``out`` of another form."""
        if type(out) is not np.ndarray or not (out.flags.carray and out.dtype == var.dtype):
            as_variable(out, "out")
        if out.shape != shape or out.dtype != var.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out: expected a C-contiguous array ({var.dtype}, shape {shape}), got ({out.dtype}, "
                f"shape {out.shape}, C-contiguous: {out.flags.c_contiguous})"
            )

    def _gradients(
        self,
        loss: Callable[..., Any],
        variables: list[FloatArray],
        jac: Callable[..., Any] | bool | None,
        grad_loss: Any,
    ) -> list[Any]:
        check_call(loss, variables, jac)
        for slots in map(self._find_or_check, variables):
            if slots is not None and slots.values_fall_behind:
                slots.flush()
        return gradients_of(loss, variables, jac, grad_loss)
