"""What ends a fit and how its steps are taken, checked and turned into what compiled code takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.fits.loop import Constants, Limits
from ..optimizer import RMSprop
from ..settings.hyperparameters import check_number, evaluate_learning_rate
from ..settings.option_names import suggestion
from .options import as_count, as_real, falling_rate

RATES = 1e-2, 1e-8
"""Between which the learning rate falls where none is given. With the rho below, a first step is ten times as long."""

RHO, MOMENTUM = 0.99, 0.9
"""Defaults that differ from those of RMSprop."""

HYPERPARAMETERS = [
    *("rho", "momentum", "epsilon", "centered", "decay", "weight_decay"),
    *("clipvalue", "clipnorm", "epsilon_in_sqrt"),
]


def as_limits(maxiter: Any, gtol: Any, ftol: Any, patience: Any, dtype: np.dtype[Any]) -> Limits:
    """Return what ends a fit; None stands for a tolerance that is never met."""
    return Limits(
        maxiter=as_count("maxiter", maxiter, 0),
        gtol=_tolerance("gtol", gtol),
        ftol=_tolerance("ftol", ftol),
        patience=as_count("patience", patience, 1),
        precision=10.0 * float(np.finfo(dtype).eps),
        near=near_the_best(dtype),
        highest_rate=0.0,  # known when the rates of all steps are
    )


def near_the_best(dtype: np.dtype[Any]) -> float:
    """Return how far above the lowest value seen, relative to its size, a point may be and still have converged.

    More than rounding, which in a sum of squares is that of the data and not of the residuals; far less than anybody
    would tell two minima by.
    """
    return float(np.sqrt(np.finfo(dtype).eps))


def as_optimizer(learning_rate: Any, maxiter: int, hyperparameters: dict[str, Any], dtype: np.dtype[Any]) -> RMSprop:
    """Return an optimizer with the hyperparameters of a fit, all of which were checked."""
    for name, value in hyperparameters.items():
        if name not in HYPERPARAMETERS:
            options = ("learning_rate", "maxiter", *HYPERPARAMETERS)
            raise TypeError(
                f"{name}: expected one of {', '.join(options)}, got an unknown argument{suggestion(name, options)}"
            )
        if callable(value):
            raise TypeError(f"{name}: expected a number, the same for all steps, got {value!r}")
    # An epsilon of a certain size would be large beside the slopes of data in small units: amperes, or fluxes.
    defaults = {"rho": RHO, "momentum": MOMENTUM, "epsilon": float(np.finfo(dtype).tiny)}
    if learning_rate is None:
        learning_rate = falling_rate(maxiter, *RATES)
    return RMSprop(learning_rate, **defaults | hyperparameters)


def learning_rates(optimizer: RMSprop, maxiter: int) -> NDArray[np.float64]:
    """Return the learning rate of each step, or of all."""
    given, decay = optimizer.learning_rate, check_number("decay", optimizer.decay)
    steps = maxiter if callable(given) or decay > 0 else 1
    rates = (evaluate_learning_rate(given, decay, step) for step in range(max(steps, 1)))
    return np.fromiter(rates, np.float64, max(steps, 1))


def constants(optimizer: RMSprop, dtype: np.dtype[Any]) -> Constants:
    """Return the other numbers of a step."""
    rho, momentum, epsilon = (float(getattr(optimizer, name)) for name in ("rho", "momentum", "epsilon"))
    inside = optimizer.epsilon_in_sqrt if optimizer.epsilon_in_sqrt is not None else has_momentum(optimizer)
    with np.errstate(over="ignore", under="ignore"):
        real = dtype.type
        return Constants(
            rho=real(rho),
            one_minus_rho=real(1.0 - rho),
            momentum=real(momentum),
            epsilon_inside=real(epsilon if inside else 0.0),
            epsilon_outside=real(0.0 if inside else epsilon),
            clipvalue=real(np.inf if optimizer.clipvalue is None else optimizer.clipvalue),
            clipnorm=np.inf if optimizer.clipnorm is None else optimizer.clipnorm,
            weight_decay=optimizer.weight_decay,
        )


def has_momentum(optimizer: RMSprop) -> bool:
    """Return whether there is momentum at all."""
    return "momentum" in optimizer.get_slot_names()


def _tolerance(name: str, value: Any) -> float:
    number = -1.0 if value is None else as_real(name, value)
    if value is not None and number < 0:
        raise ValueError(f"{name}: expected 0 or more, or None, got {value!r}")
    return number
