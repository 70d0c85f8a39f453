"""RMSprop with a moving average of the variable as one more slot: a rule that is made of RMSprop's functions.

With ema the momentum of the average, a step first is one of RMSprop, and then::

    average <- ema·average + (1 - ema)·var
    var     <- average                              (in a step that overwrites)

A step with gradient 0 is a linear map of value, momentum and average, and so is a run of them. The average of an
infinite element is infinite or NaN: sparse steps may end with one where dense ones end with the other.

References
----------
Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30, 1992; the
exponential form, and ``use_ema``, ``ema_momentum`` and ``ema_overwrite_frequency``, are those of Keras 3's optimizers.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from .jit import Integer, compiled_inline, inlined
from .rmsprop import RMSPROP, times
from .rmsprop import catch_up as catch_up_values
from .rmsprop import catch_up_any as catch_up_any_values
from .rmsprop import entering as gradient_entering
from .rmsprop import is_plain as plain_for_values
from .rmsprop import skip_both as both_for_values
from .rmsprop import skip_once as once_for_values
from .rmsprop import update as update_values
from .rmsprop import update_in_row as update_values_in_row
from .rmsprop import update_row as update_row_values
from .rule import Rule


class Numbers(NamedTuple):
    """The numbers of one step: those of :class:`numba_rmsprop.kernels.rmsprop.Numbers`, and the average's."""

    learning_rate: Any
    rho: Any
    one_minus_rho: Any
    momentum: Any
    epsilon_inside: Any
    epsilon_outside: Any
    shrink: Any
    outer_rate: Any
    coupled_decay: Any
    step_rate: Any
    mean_share: Any
    ema_momentum: Any
    """How much of the average stays: 0 at the first step, when it is the value."""
    one_minus_ema_momentum: Any
    overwrites: Any
    """1 if the average overwrites the value after the step, and else 0."""


class Factors(NamedTuple):
    """The effect of a run of steps with gradient 0.

    These are :class:`numba_rmsprop.kernels.rmsprop.Factors`, and four more::

        var      <- var·var         - drift·momentum          + var_average·average
        average  <- average_var·var - average_drift·momentum  + average·average

    ``var_average`` goes into the value, and ``average_var`` into the average.
    """

    rms: Any
    momentum: Any
    var: Any
    drift: Any
    rms_sign: Any
    momentum_sign: Any
    var_sign: Any
    drift_sign: Any
    average: Any
    average_var: Any
    average_drift: Any
    var_average: Any


@inlined
def unpack(packed: Any) -> Numbers:
    """Return the numbers of a step from the array that came with the launch."""
    return Numbers(
        *(packed[2], packed[3], packed[4], packed[5], packed[6], packed[7], packed[8], packed[9], packed[10]),
        *(packed[11], packed[12], packed[13], packed[14], packed[15]),
    )


@compiled_inline
def _averaged(numbers: Any, var: Any, average: Any) -> Any:
    """Return ``(var, average)`` after a step that has brought the value to ``var``."""
    average = numbers.ema_momentum * average + numbers.one_minus_ema_momentum * var
    if numbers.overwrites != 0:
        var = average
    return var, average


@compiled_inline
def entering(grad: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return the gradient that enters the mean square."""
    return gradient_entering(grad, numbers, var, rms, momentum, mg)


@compiled_inline
def update(grad: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return the values after one step with the clipped gradient ``grad``."""
    new_var, new_rms, new_momentum, new_mg = update_values(grad, numbers, var, rms, momentum, mg)
    new_var, new_average = _averaged(numbers, new_var, average)
    return new_var, new_rms, new_momentum, new_mg, new_average


@compiled_inline
def update_row(square: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return by what the gradients of a row are multiplied, and its values with the new ``rms``."""
    rate, values = update_row_values(square, numbers, var, rms, momentum, mg)
    return rate, (*values, average)


@compiled_inline
def update_in_row(grad: Any, rate: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return the values of one element of a row after a step; the arguments may be lanes."""
    new_var, new_rms, new_momentum, new_mg = update_values_in_row(grad, rate, numbers, var, rms, momentum, mg)
    new_var, new_average = _averaged(numbers, new_var, average)
    return new_var, new_rms, new_momentum, new_mg, new_average


@compiled_inline
def skip_none() -> Factors:
    """Return the factors of no step."""
    return Factors(1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)


@compiled_inline
def skip_once(run: Integer, runs: Any) -> Factors:
    """Return the factors of one step of a run."""
    own = once_for_values(run, runs)
    average, share = runs[run, 5], 1.0 - runs[run, 5]
    var, drift, var_average = own.var, own.drift, 0.0
    if runs[run, 6] != 0:
        var, drift, var_average = share * var, share * drift, average
    return Factors(
        *(own.rms, own.momentum, var, drift, own.rms_sign, own.momentum_sign, own.var_sign, own.drift_sign),
        *(average, share * own.var, share * own.drift, var_average),
    )


@compiled_inline
def skip_both(first: Any, second: Any) -> Factors:
    """Return the factors of ``first`` followed by ``second``: the product of two matrices."""
    own = both_for_values(first, second)
    var, drift = own.var, own.drift
    if second.var_average != 0:  # a factor of the value may be infinite, and times 0 it would be NaN
        var = var + second.var_average * first.average_var
        drift = drift + second.var_average * first.average_drift
    lost_in_second = second.average_var * first.drift + second.average_drift * first.momentum
    return Factors(
        *(own.rms, own.momentum, var, drift, own.rms_sign, own.momentum_sign, own.var_sign, own.drift_sign),
        second.average * first.average + second.average_var * first.var_average,
        second.average * first.average_var + second.average_var * first.var,
        second.average * first.average_drift + lost_in_second,
        second.var * first.var_average + second.var_average * first.average,
    )


@compiled_inline
def is_plain(factors: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return whether :func:`catch_up` will do; see :func:`numba_rmsprop.kernels.rmsprop.is_plain`."""
    return plain_for_values(factors, var, rms, momentum, mg) and np.abs(factors.average_var) < inf


@compiled_inline
def _overwritten(factors: Any, var: Any, average: Any) -> Any:
    """Return the value with what it has taken over from the average."""
    return var + factors.var_average * average if factors.var_average != 0 else var  # infinity times 0 would be NaN


@compiled_inline
def catch_up(factors: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return the values after the steps that ``factors``, which are plain, stand for, right before a step."""
    new_var, new_rms, new_momentum, new_mg = catch_up_values(factors, var, rms, momentum, mg)
    new_average = factors.average * average + factors.average_var * var
    if momentum is not None:
        new_average = new_average - factors.average_drift * momentum
    return _overwritten(factors, new_var, average), new_rms, new_momentum, new_mg, new_average


@compiled_inline
def catch_up_any(factors: Any, var: Any, rms: Any, momentum: Any, mg: Any, average: Any) -> Any:
    """Return the same whatever the factors are and whatever follows."""
    new_var, new_rms, new_momentum, new_mg = catch_up_any_values(factors, var, rms, momentum, mg)
    new_average = factors.average * average + times(var, factors.average_var, np.sign(factors.average_var))
    if momentum is not None and factors.average_drift != 0:  # a step may go without the momentum
        new_average = new_average - factors.average_drift * momentum
    if new_var != new_var:
        new_average = new_var
    return _overwritten(factors, new_var, average), new_rms, new_momentum, new_mg, new_average


AVERAGED_RMSPROP = Rule(
    name=f"{__name__}.AVERAGED_RMSPROP",
    slots=(*RMSPROP.slots, "average"),
    slots_by_row=RMSPROP.slots_by_row,
    slots_of_values=("average",),
    factors=Factors,
    skipped={**RMSPROP.skipped, "ema_momentum": (0.0, 1.0), "overwrites": (0.0, 1.0)},
    at_rest=RMSPROP.at_rest,
    unpack=unpack,
    update=update,
    values_enter=RMSPROP.values_enter,
    entering=entering,
    update_row=update_row,
    update_in_row=update_in_row,
    skip_once=skip_once,
    skip_none=skip_none,
    skip_both=skip_both,
    is_plain=is_plain,
    catch_up=catch_up,
    catch_up_any=catch_up_any,
)
