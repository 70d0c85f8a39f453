"""RMSprop: one step, told in order."""

from __future__ import annotations

import inspect
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays.noted_layouts import layout_is_known
from .arrays.variables import FloatArray, Label, Occupied, as_variable, describe, may_be_variable, memory_key
from .files import checkpoint
from .files.atomic_file import as_path
from .gradients.from_loss import check_call, gradients_of
from .gradients.kinds import Dense, Gradient, as_gradient, as_indices, as_known, check_finite, check_rows, is_known
from .gradients.pairs import as_list, as_variables, check_pairs, refuse_duplicates, without_none
from .runtime.caller_warnings import warn
from .runtime.interrupts import Call, Uninterrupted
from .runtime.locking import carry_out, in_turn
from .settings.config import accepts_all, arguments_in, construct, deserialize, serialize
from .settings.option_names import ARGUMENTS, refuse_unknown
from .settings.settings import Settings
from .settings.step_numbers import StepRates
from .state.registry import Registry
from .state.slots import Slots, copy_rows, touched_rows
from .state.weights import WeightStore
from .stepping.norm_clipping import norm_scales
from .stepping.remembered_call import Plan
from .stepping.small_batch import Batch, Part

POSITIONAL = ("learning_rate", "rho", "momentum", "epsilon", "centered", "name")


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
        A number; a schedule or any callable of the step; or a callable without arguments. A callable is called with
        the step if it has an argument without a default, or one called ``step``.
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
    weight_decay : float or None, default 0.0
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
        then. A forked process cannot use them; a copy, also one that is unpickled, has them in memory. It is no part of
        the config.
    communicator : mpi4py.MPI.Intracomm, optional
        Ranks that train copies of the same variables, each on its part of a batch; each step sums their gradients
        before anything else, and all ranks then hold the same bits. What flushes (:meth:`flush`, :meth:`get_weights`,
        :meth:`get_slot`, :meth:`minimize`) must then be called on all ranks. Settable, on all ranks together. It is no
        part of the config.
    **others : optional
        Arguments of Keras's optimizers that ask for nothing, such as ``use_ema=False``.

    Raises
    ------
    TypeError
        If an argument is unknown, or of the wrong kind, or asks for what is not to be had here.
    ValueError
        If a number is out of its bounds, or both ``clipnorm`` and ``global_clipnorm`` are given.

    Notes
    -----
    A number may be any library's: what has ``__float__`` and no axes. So may a schedule: a callable of the step.

    A variable is a writable NumPy array of float32 or float64 and is updated in place. In exact mode with momentum or
    weight decay, rows that a step did not touch move too, but only when they are needed: read rows through
    :meth:`gather`, or call :meth:`flush` before you read the array, or write to it, or drop the optimizer. A step for
    rows that nobody can have read so is told by a warning, once. Several optimizers may train one array: each step, and
    each :meth:`gather`, first catches up what the others owe to its rows, or to all if it leaves rows behind itself,
    which costs a pass over the array. Calls from several threads are serialised.

    A variable is known by its memory: ``table[:]`` is ``table``, and ``table / norms`` is another one, which starts
    from nothing. :meth:`rebind` lets the same one go on at another array, :meth:`build` gives it a name. An array that
    nobody but the optimizer holds can be trained no further, and is let go when others come; a loop that hands over a
    new array at each step is told so, once. A copied or unpickled optimizer has the arrays that were copied with it,
    and views of such arrays; where it came alone, as from joblib, it refuses unknown arrays of its variables' shapes
    until :meth:`rebind` or :meth:`forget` has told what they are.

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
        *too_many: Any,
        sparse_update: str = "exact",
        epsilon_in_sqrt: bool | None = None,
        weight_decay: float | None = 0.0,
        decay: Any = 0.0,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        check_finite: bool = False,
        lr: Any = None,
        slots_folder: str | os.PathLike[str] | None = None,
        communicator: Any = None,
        **others: Any,
    ) -> None:
        if too_many:
            raise TypeError(
                f"RMSprop: expected at most {len(POSITIONAL)} arguments without a name, {', '.join(POSITIONAL)}, got "
                f"{len(POSITIONAL) + len(too_many)}; give the others by name, as in clipnorm=1.0"
            )
        refuse_unknown("RMSprop", others, ARGUMENTS)
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

    def __repr__(self) -> str:
        """Return the learning rate, what else is not the default, and how far training has come."""
        defaults = inspect.signature(RMSprop).parameters
        told = ", ".join(
            f"{name}={getattr(value, '__name__', None) or repr(value)}"
            for name, value in self._settings().items()
            if name == "learning_rate" or callable(value) or value != defaults[name].default
        )
        n, steps = len(self._slots), self._iterations
        return f"<{type(self).__name__}({told}): {n} variable{'s' * (n != 1)}, {steps} step{'s' * (steps != 1)}>"

    @property
    def communicator(self) -> Any:
        """Ranks over which gradients are summed, or None; settable, by all ranks together."""
        return self._communicator

    @communicator.setter
    def communicator(self, value: Any) -> None:
        if value is not None:
            from .mpi.replicas import Replicas  # above this module, and needed by few

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
            :class:`~numba_rmsprop.IndexedSlices`, a scipy.sparse array or matrix of any format, or None; of the
            variable's dtype. In a sparse array, a row with a stored entry is a touched row. A 1-D variable of n
            elements also takes sparse arrays of shape (1, n) or (n, 1). Arrays of other libraries are read by
            ``__array__`` or DLPack; tf.IndexedSlices, tf.SparseTensor, sparse tensors of PyTorch and arrays of the
            package sparse are taken as well. A gradient that lies in memory which the step writes is copied first.
            None skips the variable, with a warning, but counts as seen. An empty iterable does nothing; empty indices
            are a step.
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

        In exact mode with momentum or weight decay, rows that are behind are caught up first, also those that another
        optimizer has left behind; otherwise the rows are only copied. After this you may write to these rows of the
        variable yourself; to others only after :meth:`flush`, since what they have missed is applied to what is there
        when they are caught up. With a communicator, the copies are caught up and not the variable, since each rank
        may gather others, and a gap that is caught up in two parts is rounded twice.

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
        >>> RMSprop().gather(np.arange(6.0).reshape(3, 2), [2, 0])
        array([[4., 5.],
               [0., 1.]])
        """
        return in_turn(self._gather, var, as_indices(indices, "indices"), out)

    def _gather(self, var: FloatArray, wanted: NDArray[np.integer], out: FloatArray | None) -> FloatArray:
        slots = self._find(var)
        in_place = self._replicas is None or self._replicas.alone
        if slots is None:
            self._check_new(var)
        else:
            slots.check_memory(written=in_place and slots.has_values_behind)
        self._gathers = True
        name = "variable" if slots is None else slots.name
        if var.ndim == 0:
            raise ValueError(f"{describe(name, var)} has no rows to gather")
        label = Label("indices of", name, var)
        shape = (*wanted.shape, *var.shape[1:])
        if out is None:
            out = np.empty(shape, var.dtype)
        else:
            self._check_output(out, shape, var)
        occupied = Occupied([var]) if slots is None else self._occupied
        rows, apart = check_rows(wanted.reshape(-1), out, len(var), label, occupied)
        if not apart:
            raise ValueError(f"out overlaps {describe(name, var)}, or another variable or slot; expected memory apart")
        if in_place and (slots is None or self._registry.seen != Registry.changes or self._registry.shared):
            for other in self._registry.others_on(var, slots):
                other.pay(rows if memory_key(other.var) == memory_key(var) else None)
        flat = out.reshape(len(rows), math.prod(var.shape[1:]))
        if slots is None:
            copy_rows(var, rows, flat)
        else:
            slots.gather(rows, flat, in_place=in_place)
        return out

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON can hold them.

        A schedule is written with its class and arguments; of any other callable, its name.

        Examples
        --------
        >>> RMSprop(0.01, rho=0.99).get_config()["rho"]
        0.99
        """
        return {name: serialize(value) for name, value in self._settings().items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Return the optimizer that :meth:`get_config` described, without slots.

        Parameters
        ----------
        config : mapping
            From :meth:`get_config`; ``lr`` may stand for ``learning_rate``. Also that of an RMSprop of Keras or
            tf.keras, serialized or not; where epsilon stands in Keras 3, ``epsilon_in_sqrt=True`` says.
        custom_objects : mapping of str to class or function, optional
            Your own schedules by class name, and functions by name.

        Raises
        ------
        TypeError
            If it is no mapping, or a key is unknown or asks for what is not to be had here; or if a subclass has a
            constructor with arguments of its own that the config does not have.
        ValueError
            If a schedule or function is not known.

        Notes
        -----
        A subclass is made by its own constructor, of the settings that it takes, and then has all of them.
        """
        settings = {
            name: deserialize(value, custom_objects, name) for name, value in arguments_in(config, cls.__name__).items()
        }
        if accepts_all(cls, settings):
            return cls(**settings)
        opt = construct(cls, settings)
        opt._take_over(RMSprop(**settings))
        return opt

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
        from .mpi.replicas import load_together  # as above

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

    def _take_step(self, pairs: list[Any], given: StepRates | None = None) -> int:
        """Take one step, with the hyperparameters given or those of now, and return the number of steps taken.

        What is the user's is called here, where no lock is held: hyperparameters, and what a closer look at pairs asks.
        """
        closer: list[tuple[Any, FloatArray]] | None = None  # all pairs, those without a gradient too
        step = self._iterations
        rates = self._rates(step) if given is None else given
        while True:
            taken = in_turn(self._step, pairs, closer, rates, step)
            if taken is not None:
                return taken
            if self._was_overtaken(step):
                step = self._iterations
                rates = self._rates(step) if given is None else given
            elif closer is None:
                closer = self._known_pairs(check_pairs(pairs))
                without_none(closer)  # warns

    def _known_pairs(self, pairs: list[tuple[Any, FloatArray]]) -> list[tuple[Any, FloatArray]]:
        """Return pairs whose gradients run no code of others any more when they are looked at."""
        found = []
        for grad, var in pairs:
            if is_known(grad):
                found.append((grad, var))
                continue
            own = self._find(var)
            name = self._registry.new_name() if own is None else own.name
            found.append((as_known(grad, Label("gradient of", name, var)), var))
        return found

    def _was_overtaken(self, step: int) -> bool:
        """Return whether another thread has taken step ``step``; if a callable of the user has, its answer counts."""
        return self._iterations != step and self._latest_thread != threading.get_ident()

    def _step(
        self, pairs: list[Any], closer: list[tuple[Any, FloatArray]] | None, rates: StepRates, step: int
    ) -> int | None:
        """Take one step; return None where other rates or a closer look are needed. For a call in its turn."""
        if closer is not None:
            self._let_go_before([var for _, var in closer])
        return self._iterations if carry_out(self._look_at, pairs, closer, rates, step) else None

    def _look_at(
        self,
        calls: list[Call],
        pairs: list[Any],
        closer: list[tuple[Any, FloatArray]] | None,
        rates: StepRates,
        step: int,
    ) -> bool | None:
        if self._iterations != step and rates is not self._constant_rates and self._was_overtaken(step):
            return None
        if closer is None:
            parts = self._parts_as_before(pairs)
            return None if parts is None else self._add_step(calls, parts, rates)
        seen, found = self._seen_in(closer)
        parts = self._parts([grad for grad, _ in closer if grad is not None], found)
        self._plan = None  # which may take for small what is to have clocks from now on, also if this call is refused
        calls.append((self._register, seen))
        self._add_step(calls, parts, rates)
        if not self.check_finite and not self._clips_norms and layout_is_known():
            calls.append((self._remember, found))
        return True

    def _add_step(self, calls: list[Call], parts: list[Part], rates: StepRates) -> bool:
        """Add what a step comes to; return whether it may compile."""
        scales = self._scales(parts, rates) if self._clips_norms else None
        if self._registry.seen != Registry.changes or self._registry.shared:
            self._let_others_pay(parts)
        compiles = False
        for k, (gradient, own) in enumerate(parts):
            compiles |= own.add_step(calls, gradient, rates, 1.0 if scales is None else scales[k])
        calls.append((object.__setattr__, self, "_iterations", self._iterations + 1))
        if rates is not self._constant_rates:
            calls.append((object.__setattr__, self, "_latest_thread", threading.get_ident()))
        return compiles

    def _remember(self, found: list[Slots]) -> None:
        self._plan = Plan(found, self._occupied)

    def _seen_in(self, pairs: list[tuple[Any, FloatArray]]) -> tuple[list[Slots], list[Slots]]:
        """Return the variables of a call, and those among them with a gradient.

        The others count as seen, so that the order of first sight is that of the call, whichever gradients it has.
        """
        counted = [(grad, var) for grad, var in pairs if grad is not None or may_be_variable(var)]
        seen = self._find_or_make([var for _, var in counted])
        return seen, [own for own, (grad, _) in zip(seen, counted, strict=True) if grad is not None]

    def _parts_as_before(self, pairs: list[Any]) -> list[Part] | None:
        """Return the gradients, checked, each with what takes its step, where nothing needs a closer look."""
        plan = self._plan
        if plan is None or self.check_finite or self._clips_norms or not plan.fits(pairs):
            return None
        parts: list[Part] = [] if plan.batch is None else [(plan.batch.gradient, plan.batch)]
        for k, own in plan.rest:
            grad = pairs[k][0]
            if not is_known(grad):
                return None
            gradient = as_gradient(grad, own.var, own.name, self._occupied)
            if own.values_fall_behind and own.read_at < own.steps:
                self._check_read(gradient, own)
            parts.append((gradient, own))
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
            self._check_read(gradient, own)
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

    def _let_others_pay(self, parts: list[Part]) -> None:
        """Let other optimizers catch up what they owe to the variables of a step.

        To the rows that it writes; or to all, if it leaves rows behind itself, which then come after those others.
        """
        for gradient, taker in parts:
            for own in taker.members if isinstance(taker, Batch) else [taker]:
                rows = None if isinstance(gradient, Dense) or own.values_fall_behind else touched_rows(gradient)
                for other in self._registry.others_on(own.var, own):
                    other.pay(rows if memory_key(other.var) == memory_key(own.var) else None)

    def _check_read(self, gradient: Gradient, own: Slots) -> None:
        """Warn once of a sparse step for rows that are behind, and that nobody can have read as they are now."""
        if isinstance(gradient, Dense) or self._has_warned_of_old_rows or not own.was_not_read(gradient):
            return
        self._has_warned_of_old_rows = True
        warn(
            f"table[batch] may have read old values of {describe(own.name, own.var)}: with momentum or weight decay, "
            "rows that a step does not touch fall behind, and these were not caught up since the last step. Read rows "
            "with opt.gather(table, batch), or call opt.flush() before you read the table"
        )

    def _check_values(self, gradient: Gradient, own: Slots) -> None:
        if self.check_finite:
            check_finite(gradient, own.var, own.name)

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
        for var, slots in zip(variables, map(self._find_or_check, variables), strict=True):
            for own in [*([] if slots is None else [slots]), *self._registry.others_on(var, slots)]:
                own.pay(None)
        return gradients_of(loss, variables, jac, grad_loss)
