"""Names of settings: unknown ones are refused with a suggestion, and some arguments of Keras are accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

ARGUMENTS = (
    *("learning_rate", "rho", "momentum", "epsilon", "centered", "name", "sparse_update", "epsilon_in_sqrt"),
    *("weight_decay", "decay", "clipvalue", "clipnorm", "global_clipnorm", "check_finite", "lr", "slots_folder"),
    *("communicator", "state", "state_dtype", "rounding", "seed", "nesterov", "bias_correction", "initial_scale"),
    *("learning_rate_factors", "excluded_from_weight_decay", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("gradient_accumulation_steps", "row_norm"),
)
"""The arguments of RMSprop."""

ALIASES = {
    "alpha": "rho",
    "beta_2": "rho",
    "beta2": "rho",
    "decay_rate": "rho",
    "discounting_factor": "rho",
    "initial_accumulator_value": "initial_scale",
    "use_nesterov": "nesterov",
    "eps": "epsilon",
    "eta": "learning_rate",
    "step_size": "learning_rate",
    "stepsize": "learning_rate",
    "max_norm": "clipnorm",
    "wd": "weight_decay",
}
"""Names of settings in other libraries."""

KERAS_ONLY: dict[str, tuple[Any, ...]] = {
    "jit_compile": (),
    "is_legacy_optimizer": (),
    "build_config": (),
    "loss_scale_factor": (None,),
}
"""Arguments of Keras that this library lacks, and the values that turn them off; they are ignored where it is ()."""

WORKAROUNDS = {
    "loss_scale_factor": "divide the gradients by it",
}


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, or None.

    >>> known = ["learning_rate", "rho", "epsilon"]
    >>> closest_name("learnig_rate", known), closest_name("eps", known), closest_name("colour", known)
    ('learning_rate', 'epsilon', None)
    """
    names = list(known)
    return ALIASES[name] if ALIASES.get(name) in names else _similar_name(name, names, 0.7)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name; it is empty if no known name is similar."""
    found = closest_name(name, known)
    return f"; did you mean {found!r}?" if found else ""


def refuse_unknown(context: str, arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise TypeError for unknown arguments, unless they are turned off ones of Keras."""
    for name, value in arguments.items():
        if name not in KERAS_ONLY:
            raise TypeError(
                f"{context}: expected arguments of {', '.join(known)}, got an unknown one, "
                f"{name!r}{suggestion(name, known)}"
            )
        off = KERAS_ONLY[name]
        if off and not any(value is one for one in off):
            raise TypeError(
                f"{context}: expected {name}={off[-1]}, since this library does not have it, got {value!r:.100}; "
                f"{WORKAROUNDS[name]}"
            )


def refuse_misspelt(kind: type, name: str) -> None:
    """Raise AttributeError for a new attribute whose name is nearly that of a setting.

    In a subclass, only names that are much nearer are refused, and none that the class declares.
    """
    known = [*ARGUMENTS, "iterations"]
    if name in known or any(name in getattr(one, "__annotations__", ()) for one in kind.__mro__):
        return
    is_own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    found = closest_name(name, known) if is_own else _similar_name(name, known, 0.9)
    if found:
        raise AttributeError(
            f"{kind.__name__} has no attribute {name!r}; did you mean {found!r}? A subclass that has an attribute of "
            f"such a name declares it in its body, as in '{name}: Any'"
        )


def _similar_name(name: str, known: list[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, 1, cutoff)), None)
