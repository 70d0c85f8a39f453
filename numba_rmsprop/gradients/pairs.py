"""Checks of the (gradient, variable) pairs and the variables of a call."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.variables import FloatArray, as_variable, describe, in_place_of, type_name
from ..runtime.caller_warnings import warn
from ..state.slots import Slots


def as_list(grads_and_vars: Any) -> list[Any]:
    """Return an iterable of pairs as a list; raise TypeError if it is not iterable."""
    try:
        return list(grads_and_vars)  # a new list, which keeps the gradients alive
    except TypeError as error:
        raise TypeError(f"grads_and_vars: expected (gradient, variable) pairs, got {grads_and_vars!r}") from error


def check_pairs(pairs: list[Any]) -> list[tuple[Any, FloatArray]]:
    """Return (gradient, variable) pairs as tuples; raise TypeError if they are no pairs."""
    checked = []
    for i, pair in enumerate(pairs):
        # Other iterables of two items are refused: an array, or a generator that computes the gradient.
        items = tuple(pair) if isinstance(pair, tuple | list) else None
        if items is None or len(items) != 2:
            got = type_name(pair) if items is None else f"{len(items)} items ({type(pair).__name__})"
            if isinstance(pair, np.ndarray) and pair.ndim:
                got = f"{len(pair)} items of an array"
            raise TypeError(
                f"grads_and_vars[{i}]: expected a pair (gradient, variable), got {got}; "
                "pass a list of pairs: opt.apply_gradients([(gradient, variable)])"
            )
        if not isinstance(items[1], np.ndarray):
            raise TypeError(
                f"grads_and_vars[{i}]: expected a pair (gradient, variable) whose variable is a NumPy array, "
                f"got {in_place_of(items[1])}"
            )
        checked.append(items)
    return checked


def warn_of_none(pairs: list[tuple[Any, FloatArray]]) -> None:
    """Warn of pairs without a gradient; raise ValueError if none has one."""
    missing = [describe(f"grads_and_vars[{i}]", var) for i, (grad, var) in enumerate(pairs) if grad is None]
    if len(missing) == len(pairs):
        raise ValueError(f"grads_and_vars: expected a gradient for at least one variable, got None for {missing}")
    if missing:
        warn(f"no gradient (None) for {', '.join(missing)}: skipped", UserWarning)


def refuse_duplicates(found: list[Slots]) -> None:
    """Raise ValueError if a variable comes twice."""
    seen: dict[Slots, int] = {}
    for i, slots in enumerate(found):
        if slots in seen:
            raise ValueError(
                f"{describe(slots.name, slots.var)} comes twice, as gradients {seen[slots]} and {i}; "
                "expected one gradient for each variable"
            )
        seen[slots] = i


def as_variables(var_list: Any) -> list[FloatArray]:
    """Return one variable or a sequence of them as a list, after checking each."""
    variables = [var_list] if hasattr(var_list, "__array__") else list(var_list)
    return [as_variable(var, f"var_list[{i}]") for i, var in enumerate(variables)]
