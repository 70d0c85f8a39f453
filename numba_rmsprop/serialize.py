"""Between hyperparameters and what JSON can hold.

A number stays one. A schedule becomes ``{"class_name": ..., "config": ...}``. Any other callable becomes
``{"function": name}``: code is not written down, so reading it back takes the function, in ``custom_objects``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import schedules
from .schedules import LearningRateSchedule


def serialize(value: Any) -> Any:
    """Return a hyperparameter as JSON can hold it.

    Examples
    --------
    >>> serialize(schedules.InverseTimeDecay(0.1, 10, 0.5))["class_name"]
    'InverseTimeDecay'
    """
    if isinstance(value, LearningRateSchedule):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if callable(value):
        return {"function": _name(value)}
    return value


def deserialize(value: Any, custom_objects: Mapping[str, Any] | None, parameter: str) -> Any:
    """Return the hyperparameter that ``serialize`` described.

    Raises
    ------
    TypeError
        If a schedule's config is no mapping.
    ValueError
        If it names a class or function that is neither ours nor in ``custom_objects``, or a schedule without a config.
    """
    if not isinstance(value, Mapping):
        return value
    known = dict(custom_objects or {})
    if "function" in value:
        for name in (parameter, value["function"]):  # two lambdas have one name
            if isinstance(name, str) and name in known:
                return known[name]
        raise ValueError(
            f"{parameter} was the function {value['function']!r}, which a config cannot hold; "
            f"pass custom_objects={{{parameter!r}: the function}}, or {{{value['function']!r}: ...}}"
        )
    class_name = value.get("class_name")
    if isinstance(class_name, str) and class_name in known:
        return known[class_name].from_config(_config_of(value, parameter))
    ours = getattr(schedules, str(class_name), None)
    if not (isinstance(ours, type) and issubclass(ours, LearningRateSchedule)):
        raise ValueError(
            f"{parameter}: expected a class of numba_rmsprop.schedules or a key of custom_objects, got {class_name!r}"
        )
    return ours.from_config(_config_of(value, parameter))


def _config_of(value: Mapping[str, Any], parameter: str) -> Any:
    if "config" not in value:
        raise ValueError(f"{parameter}: expected the keys 'class_name' and 'config', got {sorted(value)}")
    if not isinstance(value["config"], Mapping):
        raise TypeError(f"{parameter}: expected a mapping as the config of a schedule, got {value['config']!r}")
    return value["config"]


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
