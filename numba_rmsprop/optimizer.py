"""RMSprop: its hyperparameters, and what they are at each step."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

from .arrays.variables import FloatArray, describe
from .base_optimizer import Optimizer
from .gradients.pairs import as_variables
from .runtime.interrupts import Call
from .runtime.whole_calls import carry_out, in_turn
from .settings.config import accepts_all, arguments_in, construct, deserialize, serialize
from .settings.option_names import ARGUMENTS, refuse_unknown
from .settings.settings import Settings, check_form
from .settings.variable_options import AUTOMATIC, check_patterns

POSITIONAL = ("learning_rate", "rho", "momentum", "epsilon", "centered", "name")


class RMSprop(Settings, Optimizer):
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
    nesterov : bool, default False
        Take Nesterov's momentum: var <- var - (momentum·mom + step), where step is what mom has just taken in.
    bias_correction : bool, default False
        Divide rms and mg by 1 - rho^t, where t is how many steps the variable has taken with this one, as Adam does and
        optax can; with a rho that changes, by 1 - the product of all rho. Early steps are then as long as later ones,
        and not longer by up to 1 / sqrt(1 - rho). With momentum this is LaProp. In lazy mode, too, t counts the steps
        of the variable, and not those of a row. rho must be below 1.
    initial_scale : float, default 0.0
        What every mean square starts from; 1 is TensorFlow 1's. It fills a slot, whose pages then all take memory.
    use_ema : bool, default False
        Keep a moving average of each variable, as Keras 3 does: after each of its steps,
        average <- ema_momentum·average + (1 - ema_momentum)·var. It starts as the variable, and the first step of the
        optimizer sets it to the variable once more. Rows that a sparse step leaves out are averaged too, at the cost of
        the rows that are touched (in lazy mode they are not). :meth:`average` and ``gather(..., averaged=True)`` read
        it. A call without a gradient for a variable does not average it. Its slot, ``average``, takes the variable's
        memory once more, in float32 for one of 16 bits.
    ema_momentum : float, default 0.99
        In [0, 1].
    ema_overwrite_frequency : int, optional
        Overwrite the variables with their averages each time so many steps have been taken; in exact mode all rows.
    gradient_accumulation_steps : int, optional
        Take one step for so many calls of :meth:`apply_gradients`, with the mean of their gradients, as Keras 3 does:
        the sum divided by the number of calls, also for a variable that had none in some. Sparse gradients are added up
        as rows. ``iterations`` counts steps; averages, too, go by steps. Files hold the sums of an unfinished round,
        :meth:`get_weights` does not. With a communicator, ranks agree at each call, and exchange the means.
    row_norm : float, "unit" or mapping of str to these, optional
        After each step, scale the rows that it has written down to a norm of at most this, or to norm 1 ("unit"), as
        Keras's MaxNorm and UnitNorm do for all rows. A mapping names the variables; else it holds for all of two axes
        or more. Rows that no step has written stay as they are. In exact mode it is refused with momentum and
        ``ema_overwrite_frequency``, and "unit" with weight decay, which move rows that a step leaves out. Rows of 16
        bits are rounded to the nearest after that.
    learning_rate_factors : mapping of str to float, optional
        Multiply the learning rate of some variables, by the names that :meth:`build` gave them: 0 freezes one
        (its state goes on, and with momentum it first coasts to a stop), 0.1 fine-tunes it. Settable.
    excluded_from_weight_decay : iterable of str, optional
        Variables without weight decay, as :meth:`exclude_from_weight_decay` takes their names.
    clipvalue : float, optional
        Clip every element of the gradient to [-clipvalue, clipvalue].
    clipnorm : float, optional
        Scale each variable's gradient to a norm of at most this. :attr:`gradient_norms` tells the norms of the latest
        step; with ``math.inf``, they are told and nothing is clipped.
    global_clipnorm : float, optional
        Scale all gradients of a call together to a norm of at most this; not together with ``clipnorm``.
    check_finite : bool, default False
        Refuse gradients that hold NaN or infinity. Without it they pass through, to the elements that they touch.
    state : {"elementwise", "rowwise"}, default "elementwise"
        With "rowwise", a row of a variable of two axes or more has one mean square, rms <- rho·rms + (1 - rho)·mean of
        g² over the row, by whose root the gradient of the whole row is divided. A NaN or infinity then spoils the mean
        square of its row. The slot ``rms`` then has the shape (rows,): in exact mode
        without momentum a row of 64 float32 takes 264 bytes with its clock, and not 516. Momentum stays elementwise. A
        row of a variable of one axis is one element.
    state_dtype : {"bfloat16"}, optional
        Keep rms and momentum in 16 bits where they would be float32; with ``rounding="stochastic"``, and not
        ``centered``.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How numbers of 16 bits are rounded when they are written: to the nearest, or at random, up with the probability
        that makes the expectation exact. To the nearest, steps of less than half a unit in the last place, 0.2 to 0.4 %
        of a bfloat16, are lost.
    seed : int, default 0
        In [0, 2**63): where the random bits come from, with the names of the variables. The same seed, the same bits,
        at any number of threads and ranks.
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
        Arguments of Keras's optimizers that ask for nothing, such as ``loss_scale_factor=None``.

    Raises
    ------
    TypeError
        If an argument is unknown, or of the wrong kind, or asks for what is not to be had here.
    ValueError
        If a number is out of its bounds, or both ``clipnorm`` and ``global_clipnorm`` are given.

    Notes
    -----
    A number may be any library's: what has ``__float__`` and no axes. So may a schedule: a callable of the step.

    A variable is a writable NumPy array of float32, float64, float16 or ml_dtypes.bfloat16, and is updated in place.
    For those of 16 bits, arithmetic and slots are float32, gradients float32 or of the variable's dtype, and
    :meth:`gather` returns float32. A dense step rounds every row, and a sparse one, or a gather or flush, only the rows
    that it writes, each once with all the steps that it has missed. So sparse steps equal dense ones up to these
    roundings: without momentum and weight decay, where other rows do not move, as float32 steps do.

    In exact mode with momentum or weight decay, rows that a step did not touch move too, but only when they are needed:
    read rows through :meth:`gather`, or call :meth:`flush` before you read the array, or write to it, or drop the
    optimizer. With ``use_ema`` alone, flush or gather before you write, since averages of skipped steps go by the
    values. A step for rows that nobody can have read so is told by a warning, once. Several optimizers may train one
    array: each step, and each :meth:`gather`, first catches up what the others owe to its rows, or to all if it leaves
    rows behind itself, which costs a pass over the array. Calls from several threads are serialised.

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
    >>> import numpy as np
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
        nesterov: bool = False,
        bias_correction: bool = False,
        initial_scale: float = 0.0,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        gradient_accumulation_steps: int | None = None,
        row_norm: float | str | Mapping[str, float | str] | None = None,
        learning_rate_factors: Mapping[str, float] | None = None,
        excluded_from_weight_decay: Iterable[str] | None = None,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        check_finite: bool = False,
        state: str = "elementwise",
        state_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
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
        Optimizer.__init__(self, slots_folder)
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
            nesterov=nesterov,
            bias_correction=bias_correction,
            initial_scale=initial_scale,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            gradient_accumulation_steps=gradient_accumulation_steps,
            row_norm=row_norm,
            learning_rate_factors=learning_rate_factors,
            excluded_from_weight_decay=excluded_from_weight_decay,
            clipvalue=clipvalue,
            clipnorm=clipnorm,
            global_clipnorm=global_clipnorm,
            check_finite=check_finite,
            state=state,
            state_dtype=state_dtype,
            rounding=rounding,
            seed=seed,
        )
        self.communicator = communicator  # last, since ranks count those who have one, and not those who were refused

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The slots that every variable has, in the order of :attr:`weights`."""
        return ("rms", *["momentum"] * self.has_momentum, *["mg"] * self.centered, *["average"] * self.has_average)

    @property
    def exact(self) -> bool:
        """True if rows that a sparse step leaves out take a step with gradient 0; False if they take none."""
        return self.sparse_update == "exact"

    @property
    def drifts(self) -> bool:
        """True if the value of a row moves in a step with gradient 0."""
        overwrites = self.has_average and self.ema_overwrite_frequency is not None
        return self.has_momentum or self.weight_decay > 0 or overwrites

    def exclude_from_weight_decay(
        self,
        var_list: Iterable[FloatArray] | None = None,
        var_names: Iterable[str] | None = None,
    ) -> None:
        """Take no weight decay of some variables from now on.

        Parameters
        ----------
        var_list : iterable of ndarray, optional
            The variables, which must have names: ``opt.build({"bias": bias})`` gives them.
        var_names : iterable of str, optional
            Names, parts of names or regular expressions: all variables in whose names one of these is found.

        Raises
        ------
        KeyError
            If an array is not known.
        ValueError
            If it has no name, or a regular expression is wrong.
        TypeError
            If names are not strings.

        Examples
        --------
        >>> import numpy as np
        >>> weight, bias, opt = np.ones((2, 2)), np.ones(2), RMSprop(weight_decay=0.1)
        >>> opt.build({"weight": weight, "bias": bias})
        >>> opt.exclude_from_weight_decay(var_names=["bias"])
        >>> step_count = opt.apply_gradients([(np.zeros((2, 2)), weight), (np.zeros(2), bias)])
        >>> weight[0, 0].round(6), bias[0].round(6)
        (np.float64(0.9999), np.float64(1.0))
        """
        given = check_patterns(var_names)
        for var in () if var_list is None else as_variables(var_list):
            own = self.known.called(var)
            if AUTOMATIC.fullmatch(own.name):
                raise ValueError(
                    f"var_list: expected variables with names, got {describe(own.name, own.var)}; "
                    "opt.build({'bias': bias}) names them"
                )
            given += (f"^{re.escape(own.name)}$",)
        in_turn(self._exclude, given)

    def _exclude(self, patterns: tuple[str, ...]) -> None:
        excluded = dict.fromkeys([*self.excluded_from_weight_decay, *patterns])
        self._set_variable_options("excluded_from_weight_decay", tuple(excluded) or None)

    @property
    def excluded_from_weight_decay(self) -> tuple[str, ...]:
        """Patterns of the names of variables without weight decay."""
        return self._values["excluded_from_weight_decay"] or ()

    def _set_variable_options(self, name: str, value: Any) -> None:
        super()._set_variable_options(name, value)
        self.known.has_warned_of_names = False
        self.known.remembered.pop("plan", None)  # variables that were stepped together may differ now

    def to_rowwise(self) -> None:
        """Go on with row-wise state.

        The mean square of a row becomes the mean of its elements' ones, which is what it would be had the state been
        row-wise from the beginning and the gradients the same. Every row is brought up to date first. With a
        communicator, on all ranks.

        Raises
        ------
        ValueError
            If it is centered.

        Examples
        --------
        >>> import numpy as np
        >>> table, opt = np.zeros((2, 2)), RMSprop()
        >>> step_count = opt.apply_gradients([(np.array([[3.0, 1.0], [0.0, 0.0]]), table)])
        >>> opt.to_rowwise()
        >>> opt.get_slot(table, "rms").round(2)
        array([0.5, 0. ])
        """
        in_turn(carry_out, self._add_rowwise)

    def _add_rowwise(self, calls: list[Call]) -> bool:
        check_form("rowwise", self.state_dtype, self.rounding, self.seed, centered=self.centered)
        self.flush()  # if any row was behind, this is a commit, and the look begins again
        for own in self.known.slots:
            calls.append((own.take_form, own.form._replace(by_row=True), own.means_by_row()))
        calls.append((self._become_rowwise,))
        return True

    def _become_rowwise(self) -> None:
        self._values = self._values | {"state": "rowwise"}
        self._note_values()
        self.known.note_new_form()

    def __repr__(self) -> str:
        """Return the learning rate, what else is not the default, and how far training has come."""
        defaults = inspect.signature(RMSprop).parameters
        told = ", ".join(
            f"{name}={getattr(value, '__name__', None) or repr(value)}"
            for name, value in self._settings().items()
            if name == "learning_rate" or callable(value) or value != defaults[name].default
        )
        n, steps = len(self.known.slots), self.known.iterations
        return f"<{type(self).__name__}({told}): {n} variable{'s' * (n != 1)}, {steps} step{'s' * (steps != 1)}>"

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
