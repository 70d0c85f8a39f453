"""Hyperparameters: checked when they are set, evaluated at each step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from .scalars import as_float
from .schedules import LearningRateSchedule

Hyperparameter: TypeAlias = float | Callable[[], float]
LearningRate: TypeAlias = float | LearningRateSchedule | Callable[[], float] | Callable[[int], float]

BOUNDS = {
    "learning_rate": (0.0, math.inf),
    "rho": (0.0, 1.0),
    "momentum": (0.0, 1.0),
    "epsilon": (0.0, math.inf),
    "decay": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "clipvalue": (0.0, math.inf),
    "clipnorm": (0.0, math.inf),
    "global_clipnorm": (0.0, math.inf),
}
"""Smallest and largest value of each; infinity itself is outside."""


def check_number(name: str, value: Any) -> float:
    """Return ``value`` as a float.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not finite, or outside its bounds.
    """
    low, high = BOUNDS[name]
    number = as_float(name, value)
    if not (low <= number <= high and math.isfinite(number)):
        upper = f" <= {high:g}" if math.isfinite(high) else ", finite"
        raise ValueError(f"{name}: expected {low:g} <= {name}{upper}, got {number!r}")
    return number


def check(name: str, value: Any) -> Any:
    """Return a number, checked, or a callable as it is; raise TypeError for a callable that nobody could call."""
    if not callable(value):
        return check_number(name, value)
    if name != "learning_rate" and takes_step(value):
        raise TypeError(
            f"{name}: expected a number or a callable without arguments, got {value!r:.100}, which takes one; only the "
            f"learning rate is called with the step. Write {name}=lambda: schedule(opt.iterations)"
        )
    return value


def evaluate(name: str, value: Any) -> float:
    """Return a hyperparameter's value for this step."""
    return check_number(name, value()) if callable(value) else float(value)


def evaluate_learning_rate(value: Any, decay: float, step: int) -> float:
    """Return ``learning_rate(step) / (1 + decay * step)``."""
    if isinstance(value, LearningRateSchedule):
        value = check_number("learning_rate", _at_step(value, step))
    elif callable(value):
        value = check_number("learning_rate", value(step) if takes_step(value) else value())
    return float(value) / (1.0 + decay * step)


def _at_step(schedule: LearningRateSchedule, step: int) -> float:
    try:
        return schedule(step)
    except ArithmeticError as error:
        raise ValueError(f"learning_rate: {schedule!r} has no value at step {step}: {error}") from error


def takes_step(function: Callable[..., float]) -> bool:
    """Return whether a learning rate is to be called with the step: if it has an argument without a default.

    >>> takes_step(lambda step: 0.1 / (1 + step)), takes_step(lambda: 0.1)
    (True, False)
    """
    return isinstance(function, LearningRateSchedule) or required_arguments(function) > 0


def required_arguments(function: Callable[..., Any]) -> int:
    """Return how many positional arguments a callable cannot do without; ``*args`` counts as one."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin that does not tell
        return 0
    count = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL or (
            parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            and parameter.default is parameter.empty
        ):
            count += 1
    return count
