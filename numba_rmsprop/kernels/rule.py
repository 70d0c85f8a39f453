"""The update of one element: the mathematics of the package, which stands here and nowhere else.

All functions take and return scalars of the variable's dtype. ``mg`` is None where the variant is not centered and
``momentum`` None where it has no momentum; Numba then drops those branches while it compiles, so that one source
serves all four variants.

References
----------
Tieleman and Hinton, "Lecture 6.5 - RMSProp", COURSERA: Neural Networks for Machine Learning, 2012. The centered form:
Graves, https://arxiv.org/abs/1308.0850, equations 38-45. The places of epsilon and of the learning rate follow
tf.keras.optimizers.RMSprop, or torch.optim.RMSprop: the rates say which.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .jit import compiled_inline, inlined


class Rates(NamedTuple):
    """The numbers of one step; they travel to the kernels in this order, as one array of the variable's dtype."""

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
    clipvalue: Any
    """Infinite where there is none."""
    scale: Any
    """What the clipping of norms leaves of the gradient; 1 where there is none. Negative to ascend."""
    outer_rate: Any
    """Multiplies the momentum as the value takes it: 1 where the learning rate stands inside the momentum (TensorFlow),
    the learning rate where it stands outside (PyTorch), and ``learning_rate`` is 1."""
    coupled_decay: Any
    """How much of the value is added to the gradient: L2, which also enters the mean square; 0 where there is none."""


class Factors(NamedTuple):
    """What a run of steps with gradient 0 does to one element: a linear map of its state and value.

    Of an infinite element the product of many numbers below 1 says nothing: it vanishes, and infinity times 0 is NaN,
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
def unpack_rates(rates: Any) -> Rates:
    """Name the entries of the array that came with the launch."""
    return Rates(
        *(rates[0], rates[1], rates[2], rates[3], rates[4], rates[5], rates[6], rates[7], rates[8], rates[9], rates[10])
    )


@inlined
def clip(grad: Any, rates: Any) -> Any:
    """Clip by value, then by norm. NaN fails both comparisons and passes through."""
    if grad > rates.clipvalue:
        grad = rates.clipvalue
    if grad < -rates.clipvalue:
        grad = -rates.clipvalue
    return grad * rates.scale


@inlined
def couple(grad: Any, var: Any, rates: Any) -> Any:
    """Add the L2 decay to a gradient. Without one, the value does not enter, which may be infinite."""
    return grad + rates.coupled_decay * var if rates.coupled_decay != 0 else grad


@compiled_inline
def update(var: Any, grad: Any, rms: Any, mg: Any, momentum: Any, rates: Any) -> Any:
    """Return ``(var, rms, mg, momentum)`` after one step with the clipped gradient ``grad``."""
    rms = rates.rho * rms + rates.one_minus_rho * grad * grad
    if mg is None:
        new_mg = None
        variance = rms
    else:
        new_mg = rates.rho * mg + rates.one_minus_rho * grad
        variance = rms - new_mg * new_mg
        # Rounding can leave a variance below 0, and the root would be NaN. A NaN of the user's stays one.
        if variance < 0:
            variance = rms * 0
    step = rates.learning_rate * grad / (np.sqrt(variance + rates.epsilon_inside) + rates.epsilon_outside)
    if momentum is None:
        new_momentum = None
    else:
        new_momentum = rates.momentum * momentum + step
        step = rates.outer_rate * new_momentum
    return var * rates.shrink - step, rms, new_mg, new_momentum


@compiled_inline
def are_plain(factors: Any, momentum: Any) -> Any:
    """Return whether :func:`catch_up` will do: whether the product of a factor and infinity, or 0, is as for each step.

    ``momentum`` is None where there is none, and else anything.
    """
    plain = factors.rms != 0 and factors.var != 0 and np.abs(factors.var) < np.inf
    if momentum is not None:
        drifts = factors.drift_sign > 0 and 0 < factors.drift < np.inf
        plain = plain and drifts and factors.momentum != 0
    return plain


@compiled_inline
def catch_up(var: Any, rms: Any, mg: Any, momentum: Any, factors: Any) -> Any:
    """Return ``(var, rms, mg, momentum)`` after the steps with gradient 0 that ``factors`` stands for; None is none.

    The factors must be plain. A step must follow, which makes NaN of what one of these steps has divided by NaN.
    """
    if factors is None:
        return var, rms, mg, momentum
    new_mg = None if mg is None else mg * factors.rms
    var = var * factors.var
    if momentum is None:
        new_momentum = None
    else:
        var = var - factors.drift * momentum
        new_momentum = momentum * factors.momentum
    return var, rms * factors.rms, new_mg, new_momentum


@compiled_inline
def catch_up_any(var: Any, rms: Any, mg: Any, momentum: Any, factors: Any) -> Any:
    """Return the same whatever the factors are and whatever follows."""
    new_rms = _times(rms, factors.rms, factors.rms_sign)
    new_mg = None if mg is None else _times(mg, factors.rms, factors.rms_sign)
    var = _times(var, factors.var, factors.var_sign)
    if momentum is None:
        new_momentum = None
    else:
        drift = factors.drift if np.abs(momentum) < np.inf else factors.drift_sign
        if drift != 0 and momentum != 0:
            var = var - drift * momentum
        new_momentum = _times(momentum, factors.momentum, factors.momentum_sign)
    # Each of the steps divided 0 by a root of this, which leaves 0 of all but NaN.
    variance = new_rms
    if mg is not None:
        variance = new_rms - mg * mg if new_mg == new_mg else new_mg
    if variance != variance:
        var = variance
        if momentum is not None:
            new_momentum = variance
    return var, new_rms, new_mg, new_momentum


@inlined
def _times(x: Any, factor: Any, sign: Any) -> Any:
    """Return ``x * factor``, or what the steps one by one make of it where that is infinity times 0."""
    product = x * factor
    return product if product == product else x * sign
