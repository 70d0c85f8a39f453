"""The update of one element of RMSprop: the mathematics of the package, which stands here and nowhere else.

All functions take and return scalars of the dtype of the arithmetic, or :mod:`~numba_rmsprop.kernels.lanes` of them.
``momentum`` is None where the variant has none, and ``mg`` None where it is not centered; Numba then drops those
branches while it compiles, so that one source serves all four variants.

References
----------
Tieleman and Hinton, "Lecture 6.5 - RMSProp", COURSERA: Neural Networks for Machine Learning, 2012. The centered form:
Graves, https://arxiv.org/abs/1308.0850, equations 38-45. The places of epsilon and of the learning rate follow
tf.keras.optimizers.RMSprop, or torch.optim.RMSprop: the numbers say which.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any, NamedTuple

import numpy as np

from .jit import Integer, compiled_inline, inlined
from .rule import Rule


class Numbers(NamedTuple):
    """The numbers of one step."""

    learning_rate: Any
    rho: Any
    one_minus_rho: Any
    momentum: Any
    epsilon_inside: Any
    """Added under the root; 0 where epsilon stands outside."""
    epsilon_outside: Any
    """Added to the root; 0 where epsilon stands inside. Two numbers, of which one is 0, need no branch."""
    shrink: Any
    """1 - learning_rate * weight_decay."""
    outer_rate: Any
    """Multiplies the new momentum as the value takes it: 1 where the learning rate stands inside the momentum
    (TensorFlow), the learning rate where it stands outside (PyTorch), and ``learning_rate`` is 1. With Nesterov's
    momentum, that times ``momentum``."""
    coupled_decay: Any
    """The share of the value that is added to the gradient: L2 decay, which also enters the mean square."""
    step_rate: Any
    """Multiplies the step as the value takes it beside the momentum: 0, or with Nesterov's momentum 1 or PyTorch's
    learning rate."""
    mean_share: Any
    """Multiplies mg² where it is subtracted from rms: 1, or with bias correction 1 / (1 - the product of rho)."""


class Factors(NamedTuple):
    """The effect of a run of steps with gradient 0 on one element: a linear map of its value and slots.

    For an infinite element the product of many numbers below 1 says nothing: it vanishes, and infinity times 0 is NaN,
    where each step by itself leaves infinity. So the signs of the products stand beside them: 1 or -1, or 0 if one of
    the numbers was 0, since infinity is NaN after that step.
    """

    rms: Any
    """Multiplies rms, and mg: the product of rho."""
    momentum: Any
    """Multiplies the momentum: the product of momentum."""
    var: Any
    """Multiplies the value: the product of 1 - learning_rate * weight_decay."""
    drift: Any
    """The share of the old momentum that the value has lost."""
    rms_sign: Any
    momentum_sign: Any
    var_sign: Any
    drift_sign: Any
    """Multiplies an infinite momentum: 1, or 0 if no step let it into the value; NaN if one step let it in and another
    then turned the value's sign, or if one of the numbers was 0."""


@inlined
def unpack(packed: Any) -> Numbers:
    """Return the numbers of a step from the array that came with the launch."""
    return Numbers(
        *(packed[2], packed[3], packed[4], packed[5], packed[6], packed[7], packed[8], packed[9], packed[10]),
        *(packed[11], packed[12]),
    )


def corrected(numbers: Numbers, product: float) -> Numbers:
    """Return the numbers of a step with bias correction, where ``product`` is that of rho over the steps up to it.

    rms and mg have begun at 0, and stand for their means once they are divided by c = 1 - product (Kingma and Ba,
    https://arxiv.org/abs/1412.6980). Instead, the other numbers are multiplied: with v = rms / c - (mg / c)²,
    rate·g / (sqrt(v + inside) + outside) is rate·sqrt(c)·g / (sqrt(rms - mg² / c + inside·c) + outside·sqrt(c)).
    """
    share = 1.0 - product
    root = sqrt(share)
    return numbers._replace(
        learning_rate=numbers.learning_rate * root,
        epsilon_inside=numbers.epsilon_inside * share,
        epsilon_outside=numbers.epsilon_outside * root,
        mean_share=1.0 / share,
    )


@inlined
def values_enter(numbers: Any) -> Any:
    """Return whether the value of an element changes the gradient that enters the mean square."""
    return numbers.coupled_decay != 0


@inlined
def _decayed(grad: Any, numbers: Any, var: Any) -> Any:
    return grad + numbers.coupled_decay * var if values_enter(numbers) else grad  # infinity times 0 would be NaN


@compiled_inline
def entering(grad: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return the gradient that enters the mean square."""
    return _decayed(grad, numbers, var)


@compiled_inline
def update(grad: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return ``(var, rms, momentum, mg)`` after one step with the clipped gradient ``grad``."""
    grad = _decayed(grad, numbers, var)
    rms = numbers.rho * rms + numbers.one_minus_rho * grad * grad
    if mg is None:
        new_mg = None
        variance = rms
    else:
        new_mg = numbers.rho * mg + numbers.one_minus_rho * grad
        square = new_mg * new_mg
        if numbers.mean_share != 1:
            square = numbers.mean_share * square
        variance = rms - square
        # Rounding can leave a variance below 0, and the root would be NaN. A NaN of the user's stays one.
        if variance < 0:
            variance = rms * 0
    step = numbers.learning_rate * grad / (np.sqrt(variance + numbers.epsilon_inside) + numbers.epsilon_outside)
    var, momentum = _moved(step, numbers, var, momentum)
    return var, rms, momentum, new_mg


@compiled_inline
def update_row(square: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return by what the gradients of a row are multiplied, and its values with the new ``rms``, which all share.

    ``square`` is the mean of their squares.
    """
    rms = numbers.rho * rms + numbers.one_minus_rho * square
    rate = numbers.learning_rate / (np.sqrt(rms + numbers.epsilon_inside) + numbers.epsilon_outside)
    return rate, (var, rms, momentum, mg)


@compiled_inline
def update_in_row(grad: Any, rate: Any, numbers: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return ``(var, rms, momentum, mg)`` of one element of a row, of which :func:`update_row` has found ``rate``.

    ``grad`` is what has entered the mean square. The arguments may be lanes.
    """
    var, momentum = _moved(rate * grad, numbers, var, momentum)
    return var, rms, momentum, mg


@compiled_inline
def _moved(step: Any, numbers: Any, var: Any, momentum: Any) -> Any:
    """Return ``(var, momentum)`` after a step."""
    if momentum is None:
        new_momentum = None
    else:
        new_momentum = numbers.momentum * momentum + step
        if numbers.step_rate != 0:  # infinity times 0 would be NaN
            step = numbers.outer_rate * new_momentum + numbers.step_rate * step
        else:
            step = numbers.outer_rate * new_momentum
    return var * numbers.shrink - step, new_momentum


@compiled_inline
def skip_none() -> Factors:
    """Return the factors of no step."""
    return Factors(1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0)


@compiled_inline
def skip_once(run: Integer, runs: Any) -> Factors:
    """Return the factors of one step of a run."""
    rho, momentum, shrink, outer_rate = runs[run, 1], runs[run, 2], runs[run, 3], runs[run, 4]
    drift_sign = 1.0 if momentum * outer_rate > 0 else np.nan
    if momentum == 1 and outer_rate == 0:  # a step that goes without the momentum
        drift_sign = 0.0
    return Factors(
        rho,
        momentum,
        shrink,
        momentum * outer_rate,
        np.sign(rho),
        np.sign(momentum),
        np.sign(shrink),
        drift_sign,
    )


@compiled_inline
def skip_both(first: Any, second: Any) -> Factors:
    """Return the factors of ``first`` followed by ``second``."""
    # Either of two signs that are 0 or 1, or NaN; and a value that was infinite before is NaN after a turn.
    either = first.drift_sign + second.drift_sign - first.drift_sign * second.drift_sign
    return Factors(
        first.rms * second.rms,
        first.momentum * second.momentum,
        first.var * second.var,
        second.var * first.drift + second.drift * first.momentum,
        first.rms_sign * second.rms_sign,
        first.momentum_sign * second.momentum_sign,
        first.var_sign * second.var_sign,
        either if first.drift_sign == 0 or second.var_sign > 0 else np.nan,
    )


@compiled_inline
def is_plain(factors: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return whether :func:`catch_up` will do: whether the product of a factor and infinity, or 0, is as for each step.

    ``momentum`` is None where there is none, and else anything.
    """
    plain = factors.rms != 0 and factors.var != 0 and np.abs(factors.var) < np.inf
    if momentum is not None:
        drifts = factors.drift_sign > 0 and 0 < factors.drift < np.inf
        plain = plain and drifts and factors.momentum != 0
    return plain


@compiled_inline
def catch_up(factors: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return ``(var, rms, momentum, mg)`` after the steps with gradient 0 that ``factors``, which are plain, stand for.

    Only right before a step: a NaN in the mean square reaches the value in that step, and not here.
    """
    new_mg = None if mg is None else mg * factors.rms
    var = var * factors.var
    if momentum is None:
        new_momentum = None
    else:
        var = var - factors.drift * momentum
        new_momentum = momentum * factors.momentum
    return var, rms * factors.rms, new_momentum, new_mg


@compiled_inline
def catch_up_any(factors: Any, var: Any, rms: Any, momentum: Any, mg: Any) -> Any:
    """Return the same whatever the factors are and whatever follows."""
    new_rms = times(rms, factors.rms, factors.rms_sign)
    new_mg = None if mg is None else times(mg, factors.rms, factors.rms_sign)
    var = times(var, factors.var, factors.var_sign)
    if momentum is None:
        new_momentum = None
    else:
        drift = factors.drift if np.abs(momentum) < np.inf else factors.drift_sign
        if drift != 0 and momentum != 0:
            var = var - drift * momentum
        new_momentum = times(momentum, factors.momentum, factors.momentum_sign)
    # Each of the steps divided 0 by a root of this, which leaves 0 of all but NaN.
    variance = new_rms
    if mg is not None:
        variance = new_rms - mg * mg if new_mg == new_mg else new_mg
    if variance != variance:
        var = variance
        if momentum is not None:
            new_momentum = variance
    return var, new_rms, new_momentum, new_mg


@inlined
def times(x: Any, factor: Any, sign: Any) -> Any:
    """Return ``x * factor``, or what the steps one by one make of it where that is infinity times 0."""
    product = x * factor
    return product if product == product else x * sign


RMSPROP = Rule(
    name=f"{__name__}.RMSPROP",
    slots=("rms", "momentum", "mg"),
    slots_by_row=("rms",),
    factors=Factors,
    # The shrink, 1 - rate times decay, may overflow. The outer rate is 1, or with Nesterov's momentum that momentum;
    # PyTorch's learning rate is never in a file of ours.
    skipped={"rho": (0.0, 1.0), "momentum": (0.0, 1.0), "shrink": (-inf, 1.0), "outer_rate": (0.0, 1.0)},
    at_rest={"momentum": {"momentum": 1.0, "outer_rate": 0.0}},
    unpack=unpack,
    update=update,
    values_enter=values_enter,
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
