"""Hyperparameters: checked when they are set, evaluated at each step."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..arrays.real_numbers import as_float
from ..schedules import LearningRateSchedule

Hyperparameter: TypeAlias = float | Callable[[], float]
LearningRate: TypeAlias = float | LearningRateSchedule | Callable[[], float] | Callable[[int], float]

UPPER_BOUNDS = {"rho": 1.0, "momentum": 1.0, "ema_momentum": 1.0, "initial_scale": float(np.finfo(np.float32).max)}
"""The largest values of hyperparameters. All are at least 0, and those that are not listed are finite."""

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_number(name: str, value: Any) -> float:
    """Return the value of a hyperparameter as a float; raise unless it is a finite number within its bounds."""
    number, high = as_float(name, value), UPPER_BOUNDS.get(name, math.inf)
    if not (0 <= number <= high and math.isfinite(number)):
        upper = f" <= {high:g}" if name in UPPER_BOUNDS else ", finite"
        raise ValueError(f"{name}: expected 0 <= {name}{upper}, got {number!r}")
    return number


def check_limit(name: str, value: Any) -> float:
    """Return a limit of gradients as a float; raise unless it is 0 or more. One that is infinite clips nothing."""
    number = as_float(name, value)
    if not number >= 0:
        raise ValueError(f"{name}: expected 0 <= {name}, or None, got {number!r}")
    return number


def check_count(name: str, value: Any) -> int | None:
    """Return a number of steps or calls, or None; raise ValueError unless it is a whole number above 0."""
    if value is None:
        return None
    try:
        found = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise ValueError(f"{name}: expected None or a whole number above 0, got {value!r:.100}")
    return found


def check(name: str, value: Any) -> Any:
    """Return a number after checking it, or a callable if a step can call it; raise TypeError if not."""
    if not callable(value):
        return check_number(name, value)
    if name == "learning_rate":
        at_step(value, 0)
    elif needs_arguments(value):
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
    if callable(value):
        try:
            rate = at_step(value, step)()
        except ArithmeticError as error:
            if not isinstance(value, LearningRateSchedule):
                raise
            raise ValueError(f"learning_rate: {value!r} has no value at step {step}: {error}") from error
        value = check_number("learning_rate", rate)
    return float(value) / (1.0 + decay * step)


def at_step(function: Callable[..., float], step: int) -> Callable[[], float]:
    """Return a learning rate as a function without arguments, to call at a step.

    The learning rate is called with the step if it has a positional argument without a default, or an argument named
    ``step``. It is called without the step if it has no positional arguments. If all positional arguments have defaults
    and other names, raise TypeError, since one of them may be meant for the step.

    >>> at_step(lambda t: 1 / (1 + t), 3)(), at_step(lambda step=0: 1 / (1 + step), 3)(), at_step(lambda: 0.1, 3)()
    (0.25, 0.25, 0.1)
    """
    if isinstance(function, LearningRateSchedule):
        return partial(function, step)
    parameters = _parameters(function)
    if any(map(_is_required, parameters.values())):
        return partial(function, step)
    if "step" in parameters and parameters["step"].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return partial(function, step=step)
    optional = [name for name, parameter in parameters.items() if parameter.kind in POSITIONAL]
    if optional:
        raise TypeError(
            f"learning_rate: a callable whose argument {optional[0]!r} has a default may want the step or not. To be "
            "called with the step, name the argument 'step' or leave out its default; to be called without, take none, "
            f"as lambda: function({optional[0]}=...)"
        )
    return function


def needs_arguments(function: Callable[..., Any]) -> bool:
    """Return whether a callable has positional arguments without a default, or ``*args``."""
    return any(map(_is_required, _parameters(function).values()))


def _is_required(parameter: inspect.Parameter) -> bool:
    has_default = parameter.default is not parameter.empty
    return parameter.kind is parameter.VAR_POSITIONAL or (parameter.kind in POSITIONAL and not has_default)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return {}
