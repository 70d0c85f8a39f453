"""The options of many fits: when they end and how their steps are taken, checked and brought into compiled form."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from ..kernels.fits.arguments import FitNumbers
from ..kernels.fits.stopping import StoppingRule
from ..kernels.rmsprop import Numbers
from ..optimizer import RMSprop
from ..settings.hyperparameters import check_number, evaluate_learning_rate
from ..settings.option_names import suggestion
from .options import as_count, as_real, falling_rate, near_the_lowest

FIRST_RATE, LAST_RATE = 1e-2, 1e-8
"""The default learning rate falls from one to the other. With the default rho, the first step is ten times as long."""

RHO, MOMENTUM = 0.99, 0.9
"""Defaults that differ from those of RMSprop."""

HYPERPARAMETERS = [
    *("rho", "momentum", "epsilon", "centered", "decay", "weight_decay"),
    *("clipvalue", "clipnorm", "epsilon_in_sqrt"),
]


def as_stopping_rule(maxiter: Any, gtol: Any, ftol: Any, patience: Any, dtype: np.dtype[Any]) -> StoppingRule:
    """Return the rule that ends the fits. A tolerance of None is never met."""
    return StoppingRule(
        maxiter=as_count("maxiter", maxiter, 0),
        gtol=_tolerance("gtol", gtol),
        ftol=_tolerance("ftol", ftol),
        patience=as_count("patience", patience, 1),
        near=near_the_lowest(dtype),
        precision=10.0 * float(np.finfo(dtype).eps),
    )


def as_optimizer(learning_rate: Any, maxiter: int, hyperparameters: dict[str, Any], dtype: np.dtype[Any]) -> RMSprop:
    """Return an optimizer that holds the checked hyperparameters of the fits."""
    for name, value in hyperparameters.items():
        if name not in HYPERPARAMETERS:
            options = ("learning_rate", "maxiter", *HYPERPARAMETERS)
            raise TypeError(
                f"{name}: expected one of {', '.join(options)}, got an unknown argument{suggestion(name, options)}"
            )
        if callable(value):
            raise TypeError(f"{name}: expected a number, the same for all steps, got {value!r}")
    # A larger epsilon would be large beside the slopes of data in small units, such as amperes.
    defaults = {"rho": RHO, "momentum": MOMENTUM, "epsilon": float(np.finfo(dtype).tiny)}
    if learning_rate is None:
        learning_rate = falling_rate(maxiter, FIRST_RATE, LAST_RATE)
    return RMSprop(learning_rate, **defaults | hyperparameters)


def fit_numbers(optimizer: RMSprop, maxiter: int, dtype: np.dtype[Any]) -> FitNumbers:
    """Return the numbers of all steps. A learning rate that does not change stands there once."""
    at_start = optimizer.numbers_at(0)
    clipvalue, _, *first = at_start.packed(dtype)
    given, decay = optimizer.learning_rate, check_number("decay", optimizer.decay)
    steps = max(maxiter, 1) if callable(given) or decay > 0 else 1
    later = (evaluate_learning_rate(given, decay, step) for step in range(1, steps))
    rates = np.fromiter(chain([at_start.of_rule.learning_rate], later), np.float64, steps)
    return FitNumbers(
        learning_rates=rates,
        highest_rate=float(rates.max()),
        first=Numbers(*first),
        clipvalue=clipvalue,
        clipnorm=np.inf if optimizer.clipnorm is None else optimizer.clipnorm,
        weight_decay=optimizer.weight_decay,
    )


def _tolerance(name: str, value: Any) -> float:
    number = -1.0 if value is None else as_real(name, value)
    if value is not None and number < 0:
        raise ValueError(f"{name}: expected 0 or more, or None, got {value!r}")
    return number
