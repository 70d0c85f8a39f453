"""Settings that differ between variables, which are told apart by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .hyperparameters import check_number

AUTOMATIC = re.compile(r"variable ([0-9]{1,18})")
"""Names of variables that were given none, numbered in the order in which they were first seen."""


class VariableOptions(NamedTuple):
    """What differs from one variable to another."""

    rate_factor: float = 1.0
    """Multiplies the learning rate."""
    decays: bool = True
    """Whether weight decay is applied."""


USUAL_OPTIONS = VariableOptions()


def check_factors(factors: Any) -> dict[str, float]:
    """Return factors of the learning rate by names of variables, checked; None stands for none."""
    if factors is None:
        return {}
    if not isinstance(factors, Mapping) or not all(isinstance(name, str) for name in factors):
        raise TypeError(
            f"learning_rate_factors: expected a mapping of names of variables to numbers, got {factors!r:.100}"
        )
    return {name: check_number(f"learning_rate_factors[{name!r}]", factor) for name, factor in factors.items()}


def check_patterns(patterns: Any) -> tuple[str, ...]:
    """Return patterns of names, checked; None stands for none."""
    if patterns is None:
        return ()
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise TypeError(
            f"exclude_from_weight_decay: expected a list of names or regular expressions, got {patterns!r:.100}"
        )
    found = tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"exclude_from_weight_decay: expected strings as names of variables, got {pattern!r:.100}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"exclude_from_weight_decay: expected a name or a regular expression, got {pattern!r:.100}: {error}"
            ) from error
    return found


def options_of(name: str, factors: Mapping[str, float], excluded: Iterable[str]) -> VariableOptions:
    """Return the options of a variable of this name."""
    decays = AUTOMATIC.fullmatch(name) is not None or not any(re.search(pattern, name) for pattern in excluded)
    return VariableOptions(factors.get(name, 1.0), decays)


def unmatched(names: Iterable[str], by_name: Mapping[str, Iterable[str]], excluded: Iterable[str]) -> str:
    """Return words for options that name none of these variables; no words where there are none."""
    given = [name for name in names if not AUTOMATIC.fullmatch(name)]
    missing = [f"{option}[{name!r}]" for option, wanted in by_name.items() for name in wanted if name not in names]
    missing += [
        f"exclude_from_weight_decay {pattern!r}"
        for pattern in excluded
        if not any(re.search(pattern, name) for name in given)
    ]
    return ", ".join(missing)
