"""Names of settings: those of other libraries, those that ask for nothing, and those that were misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

ARGUMENTS = (
    *("learning_rate", "rho", "momentum", "epsilon", "centered", "name", "sparse_update", "epsilon_in_sqrt"),
    *("weight_decay", "decay", "clipvalue", "clipnorm", "global_clipnorm", "check_finite", "lr", "slots_folder"),
    "communicator",
)
"""The arguments of RMSprop."""

OTHER_NAMES = {
    "alpha": "rho",
    "beta_2": "rho",
    "beta2": "rho",
    "decay_rate": "rho",
    "discounting_factor": "rho",
    "eps": "epsilon",
    "eta": "learning_rate",
    "step_size": "learning_rate",
    "stepsize": "learning_rate",
    "max_norm": "clipnorm",
    "wd": "weight_decay",
}
"""What other libraries call a setting."""

ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "use_ema": (None, False),
    "ema_momentum": (),
    "ema_overwrite_frequency": (),
    "jit_compile": (),
    "is_legacy_optimizer": (),
    "build_config": (),
    "loss_scale_factor": (None,),
    "gradient_accumulation_steps": (None,),
}
"""Arguments of Keras that this library does not have, and the values at which they ask for nothing; () for any."""

INSTEAD = {
    "use_ema": "keep a mean of the variables yourself",
    "loss_scale_factor": "divide the gradients by it",
    "gradient_accumulation_steps": "add up the gradients of so many batches, and call apply_gradients once",
}


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return which of the known names somebody may have meant, or None.

    >>> meant("learnig_rate", ["learning_rate", "rho"]), meant("eps", ["epsilon"]), meant("colour", ["rho"])
    ('learning_rate', 'epsilon', None)
    """
    names = list(known)
    if OTHER_NAMES.get(name) in names:
        return OTHER_NAMES[name]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.7)), None)


def hint(name: str, known: Iterable[str]) -> str:
    """Return what to add to a message about an unknown name; nothing if there is none like it."""
    found = meant(name, known)
    return f"; did you mean {found!r}?" if found else ""


def refuse_unknown(what: str, others: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise TypeError for arguments that are not known, unless they ask for nothing."""
    for name, value in others.items():
        if name not in ASKS_NOTHING:
            raise TypeError(
                f"{what}: expected arguments of {', '.join(known)}, got an unknown one, {name!r}{hint(name, known)}"
            )
        nothing = ASKS_NOTHING[name]
        if nothing and not any(value is one for one in nothing):
            raise TypeError(
                f"{what}: expected {name}={nothing[-1]}, which is not to be had here, got {value!r:.100}; "
                f"{INSTEAD[name]}"
            )


def refuse_misspelt(kind: type, name: str) -> None:
    """Raise AttributeError for a new attribute whose name is nearly that of a setting.

    A subclass may have names that are less near, and any that it declares.
    """
    known = (*ARGUMENTS, "iterations")
    if name in known or any(name in getattr(one, "__annotations__", ()) for one in kind.__mro__):
        return
    is_own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    found = meant(name, known) if is_own else next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.9)), None)
    if found:
        raise AttributeError(
            f"{kind.__name__} has no attribute {name!r}; did you mean {found!r}? A subclass that has an attribute of "
            f"such a name declares it in its body, as in '{name}: Any'"
        )
