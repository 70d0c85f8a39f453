"""Hyperparameters: checked when they are set, evaluated at each step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from ..arrays.real_numbers import as_float
from ..schedules import LearningRateSchedule

Hyperparameter: TypeAlias = float | Callable[[], float]
LearningRate: TypeAlias = float | LearningRateSchedule | Callable[[], float] | Callable[[int], float]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

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
    if name == "learning_rate":
        call_at(value)
    elif required_arguments(value):
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
        arguments, named = call_at(value, step)
        value = check_number("learning_rate", value(*arguments, **named))
    return float(value) / (1.0 + decay * step)


def _at_step(schedule: LearningRateSchedule, step: int) -> float:
    try:
        return schedule(step)
    except ArithmeticError as error:
        raise ValueError(f"learning_rate: {schedule!r} has no value at step {step}: {error}") from error


def call_at(function: Callable[..., float], step: int = 0) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return the arguments, and those by name, to call a learning rate with at a step.

    The step, where it has a positional argument without a default, or one that is called ``step``, with or without;
    none, where it has no positional argument.

    Raises
    ------
    TypeError
        If its positional arguments all have defaults and other names: then it may want the step or not.

    Examples
    --------
    >>> call_at(lambda t: 0.1 / (1 + t), 7), call_at(lambda step=0: 0.1 / (1 + step), 7), call_at(lambda: 0.1, 7)
    (((7,), {}), ((), {'step': 7}), ((), {}))
    """
    if isinstance(function, LearningRateSchedule):
        return (step,), {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin that does not tell
        return (), {}
    if required_arguments(function):
        return (step,), {}
    asked = parameters.get("step")
    if asked is not None and asked.kind is not asked.POSITIONAL_ONLY:
        return (), {"step": step}
    optional = [name for name, found in parameters.items() if found.kind in POSITIONAL]
    if optional:
        raise TypeError(
            f"learning_rate: a callable whose argument {optional[0]!r} has a default may want the step or not. To be "
            "called with the step, call the argument 'step' or leave out its default; to be called without, take none, "
            f"as lambda: function({optional[0]}=...)"
        )
    return (), {}


def required_arguments(function: Callable[..., Any]) -> int:
    """Return how many positional arguments a callable cannot do without; ``*args`` counts as one."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin that does not tell
        return 0
    count = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL or (
            parameter.kind in POSITIONAL and parameter.default is parameter.empty
        ):
            count += 1
    return count
