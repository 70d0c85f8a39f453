"""Names of variables: checks that they are valid and unique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..settings.variable_options import AUTOMATIC
from .slots import Slots


def is_text(name: object) -> bool:
    """Return whether a name is a string that UTF-8 can encode, without surrogates."""
    return isinstance(name, str) and not any("\ud800" <= letter <= "\udfff" for letter in name)


def named(variables: Iterable[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Return the names of a mapping, or an empty list, and the variables; raise ValueError for a bad name."""
    if not isinstance(variables, Mapping):
        return [], [variables] if isinstance(variables, np.ndarray) else list(variables)
    for name in variables:
        if not is_text(name) or not name or AUTOMATIC.fullmatch(name):
            raise ValueError(
                f"variables: expected a name for each, got {name!r}; a name is a string that is not empty, and not "
                "like 'variable 0', which is what variables without a name are called"
            )
    return list(variables), list(variables.values())


def check_names(names: Sequence[str], found: Sequence[Slots], known: Iterable[Slots]) -> None:
    """Raise ValueError if a variable already has another name, or another variable has its name."""
    owners = {own.name: own for own in known} if names else {}
    given: dict[Slots, str] = {}
    for name, own in zip(names, found, strict=False):
        called = given.setdefault(own, name if AUTOMATIC.fullmatch(own.name) else own.name)
        if called != name:
            raise ValueError(f"variables[{name!r}]: expected one name for each array, this one is called {called!r}")
        if owners.get(name, own) is not own:
            raise ValueError(f"variables[{name!r}]: another array is called so; opt.rebind({name!r}, array) moves it")
