"""Between hyperparameters and what JSON can hold.

A number stays one. A schedule becomes ``{"class_name": ..., "config": ...}``. Any other callable becomes
``{"function": name}``: code is not written down, so reading it back takes the function, in ``custom_objects``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from .. import schedules
from ..schedules import LearningRateSchedule
from .option_names import ASKS_NOTHING, refuse_unknown

Made = TypeVar("Made")


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


def settings_in(config: Any, class_name: str) -> Mapping[str, Any]:
    """Return the arguments that a config has, also one of Keras that stands beside the name of its class.

    Raises
    ------
    TypeError
        If it is no mapping, or there is an unknown key, or one that asks for what is not to be had here.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config: expected a mapping, got {type(config).__name__}")
    if "class_name" in config and isinstance(config.get("config"), Mapping):
        if config["class_name"] not in ("RMSprop", class_name):
            raise TypeError(f"config: expected that of an RMSprop, got {config['class_name']!r:.100}")
        config = config["config"]
    refuse_unknown("config", {name: value for name, value in config.items() if name in ASKS_NOTHING}, ())
    return {name: value for name, value in config.items() if name not in ASKS_NOTHING}


def takes_all(kind: type, settings: Mapping[str, Any]) -> bool:
    """Return whether a class can be made of all these settings, or would say itself which it does not know."""
    parameters = inspect.signature(kind).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in parameters) or settings.keys() <= {one.name for one in parameters}


def made_of_some(kind: type[Made], settings: Mapping[str, Any]) -> Made:
    """Make a class of the settings that its constructor takes; raise TypeError if it wants something else, too."""
    parameters = inspect.signature(kind).parameters
    wanted = [
        name
        for name, one in parameters.items()
        if one.default is one.empty and one.kind is not one.VAR_POSITIONAL and name not in settings
    ]
    if wanted:
        raise TypeError(
            f"{kind.__name__}: its constructor wants {', '.join(map(repr, wanted))}, which is not in the config. "
            "Override get_config, to add what is missing, and let the constructor take **settings and hand them to "
            "RMSprop's; or override from_config"
        )
    return kind(**{name: value for name, value in settings.items() if name in parameters})


def _config_of(value: Mapping[str, Any], parameter: str) -> Any:
    if "config" not in value:
        raise ValueError(f"{parameter}: expected the keys 'class_name' and 'config', got {sorted(value)}")
    if not isinstance(value["config"], Mapping):
        raise TypeError(f"{parameter}: expected a mapping as the config of a schedule, got {value['config']!r}")
    return value["config"]


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
