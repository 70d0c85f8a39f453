"""Configs of optimizers: hyperparameters in a form that JSON can hold, as in Keras.

A number stays as it is. A schedule becomes ``{"class_name": ..., "config": ...}``. Any other callable becomes
``{"function": name}``. Its code is not saved: pass the function in ``custom_objects`` to read the config back.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from .. import schedules
from ..schedules import LearningRateSchedule
from .option_names import KERAS_ONLY, refuse_unknown

Made = TypeVar("Made")


def serialize(value: Any) -> Any:
    """Return a hyperparameter in a form that JSON can hold.

    >>> serialize(schedules.InverseTimeDecay(0.1, 10, 0.5))["class_name"]
    'InverseTimeDecay'
    """
    if isinstance(value, LearningRateSchedule):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if callable(value):
        return {"function": str(getattr(value, "__name__", type(value).__name__))}
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def deserialize(value: Any, custom_objects: Mapping[str, Any] | None, parameter: str) -> Any:
    """Return the hyperparameter that :func:`serialize` described; raise if it is incomplete or its class is unknown."""
    if not isinstance(value, Mapping) or parameter in ("learning_rate_factors", "row_norm"):
        return value
    known = dict(custom_objects or {})
    if "function" in value:
        for name in (parameter, value["function"]):  # the parameter first, since all lambdas have the same name
            if isinstance(name, str) and name in known:
                return known[name]
        raise ValueError(
            f"{parameter} was the function {value['function']!r}, which a config cannot hold; "
            f"pass custom_objects={{{parameter!r}: the function}}, or {{{value['function']!r}: ...}}"
        )
    class_name = value.get("class_name")
    kind: Any = known.get(class_name) if isinstance(class_name, str) else None
    if kind is None:
        kind = getattr(schedules, str(class_name), None)
        if not (isinstance(kind, type) and issubclass(kind, LearningRateSchedule)):
            raise ValueError(
                f"{parameter}: expected a class of numba_rmsprop.schedules or a key of custom_objects, "
                f"got {class_name!r}"
            )
    if "config" not in value:
        raise ValueError(f"{parameter}: expected the keys 'class_name' and 'config', got {sorted(value)}")
    if not isinstance(value["config"], Mapping):
        raise TypeError(f"{parameter}: expected a mapping as the config of a schedule, got {value['config']!r}")
    return kind.from_config(value["config"])


def arguments_in(config: Any, class_name: str) -> Mapping[str, Any]:
    """Return the constructor's arguments from a config, which may be one of Keras, with or without its class name.

    Raise TypeError if it is not a mapping, or asks for something that only Keras has.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config: expected a mapping, got {type(config).__name__}")
    if "class_name" in config and isinstance(config.get("config"), Mapping):
        if config["class_name"] not in ("RMSprop", class_name):
            raise TypeError(f"config: expected that of an RMSprop, got {config['class_name']!r:.100}")
        config = config["config"]
    refuse_unknown("config", {name: value for name, value in config.items() if name in KERAS_ONLY}, ())
    return {name: value for name, value in config.items() if name not in KERAS_ONLY}


def accepts_all(kind: type, settings: Mapping[str, Any]) -> bool:
    """Return whether the constructor of a class has all these arguments, or takes any."""
    parameters = inspect.signature(kind).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in parameters) or settings.keys() <= {one.name for one in parameters}


def construct(kind: type[Made], settings: Mapping[str, Any]) -> Made:
    """Return an instance, made with those settings that its constructor takes; raise TypeError if these are too few."""
    parameters = inspect.signature(kind).parameters
    missing = [
        name
        for name, one in parameters.items()
        if one.default is one.empty and one.kind is not one.VAR_POSITIONAL and name not in settings
    ]
    if missing:
        raise TypeError(
            f"{kind.__name__}: its constructor wants {', '.join(map(repr, missing))}, which is not in the config. "
            "Override get_config, to add what is missing, and let the constructor take **settings and hand them to "
            "RMSprop's; or override from_config"
        )
    return kind(**{name: value for name, value in settings.items() if name in parameters})
