"""Rules: what an optimizer keeps of each element, how a step changes it, and what a skipped step does to it.

The kernels of a step are written once, around functions with the names below. They import those of RMSprop
(:mod:`~numba_rmsprop.kernels.rmsprop`); :mod:`~numba_rmsprop.kernels.compile_for_rule` compiles them for another rule.
Packing, clocks, checkpoints and their checks follow from a :class:`Rule` too. So another rule is a file with its
mathematics, and an :class:`~numba_rmsprop.base_optimizer.Optimizer` with its hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .jit import compiled_inline, inlined

MAX_SLOTS = 7
"""The most slots of a rule: :mod:`~numba_rmsprop.kernels.aliased_access` names as many arrays."""


@inlined
def no_values_enter(numbers: Any) -> Any:
    """Stand for ``values_enter`` in a rule without row-wise state: kernels compile it, and never call it."""
    return False


@compiled_inline
def not_entering(grad: Any, numbers: Any, *values: Any) -> Any:
    """Stand for ``entering``, in the same way."""
    return grad


@compiled_inline
def not_by_row(square: Any, numbers: Any, *values: Any) -> Any:
    """Stand for ``update_row``, in the same way."""
    return square, values


@compiled_inline
def not_in_row(grad: Any, rate: Any, numbers: Any, *values: Any) -> Any:
    """Stand for ``update_in_row``, in the same way."""
    return values


@dataclass(frozen=True, eq=False)
class Rule:
    """The mathematics of an optimizer, element by element.

    Functions take and return scalars of the dtype of the arithmetic, and are compiled with the decorators of
    :mod:`~numba_rmsprop.kernels.jit`. ``values`` stands for one argument for the variable's element and one for each
    slot, in their order; a slot that a variant lacks is None, and Numba drops the branches on it.

    Attributes
    ----------
    name : str
        The constant that holds the rule, as ``package.module.CONSTANT``; copies and pickles refer to it.
    slots : tuple of str
        All slots that there may be, in the order of ``get_weights``.
    factors : type of NamedTuple
        What a run of skipped steps does to an element, as floats.
    skipped : mapping of str to (float, float)
        The numbers on which a skipped step depends, each with its least and greatest value.
    at_rest : mapping of str to mapping of str to float
        For each slot that a step may leave out, the ``skipped`` numbers of such a step.
    slots_by_row : tuple of str
        Slots that may have one number for each row (row-wise state).
    slots_of_values : tuple of str
        Slots that stand for values of the variable: they start as it, and are never kept in 16 bits.
    values_enter, entering, update_row, update_in_row : callable
        For row-wise state. ``entering(grad, numbers, *values)`` returns the gradient whose square is averaged over the
        row, where ``values_enter(numbers)``; else it is ``grad``. ``update_row(square, numbers, *values)`` returns
        ``(rate, values)``: whatever is the same for the whole row, and the values with the row's own ones after the
        step. ``update_in_row(grad, rate, numbers, *values)`` returns the values of one element after the step.
    unpack : callable
        ``unpack(packed)`` returns the numbers of a step, as a NamedTuple, from the array that a launch takes:
        ``packed[0]`` and ``packed[1]`` are clipvalue and scale, and the rule's numbers follow.
    update : callable
        ``update(grad, numbers, *values)`` returns the values after one step with the clipped gradient ``grad``.
    skip_once : callable
        ``skip_once(run, runs)`` returns the factors of a step with gradient 0, whose ``skipped``
        numbers are ``runs[run, 1:]``.
    skip_none, skip_both : callable
        ``skip_none()`` returns the factors of no step, and ``skip_both(first, second)`` those of two gaps in turn.
    is_plain : callable
        ``is_plain(factors, *values)`` returns whether ``catch_up`` will do, given which values are None.
    catch_up : callable
        ``catch_up(factors, *values)`` returns the values after the skipped steps, before a step with a gradient.
    catch_up_any : callable
        The same, also for factors that are not plain and where no step follows.
    """

    name: str
    slots: tuple[str, ...]
    factors: Any
    skipped: Mapping[str, tuple[float, float]]
    unpack: Callable[..., Any]
    update: Callable[..., Any]
    skip_once: Callable[..., Any]
    skip_none: Callable[..., Any]
    skip_both: Callable[..., Any]
    is_plain: Callable[..., Any]
    catch_up: Callable[..., Any]
    catch_up_any: Callable[..., Any]
    at_rest: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slots_by_row: tuple[str, ...] = ()
    slots_of_values: tuple[str, ...] = ()
    values_enter: Callable[..., Any] = no_values_enter
    entering: Callable[..., Any] = not_entering
    update_row: Callable[..., Any] = not_by_row
    update_in_row: Callable[..., Any] = not_in_row

    def __post_init__(self) -> None:
        if len(self.slots) > MAX_SLOTS:
            raise ValueError(f"slots: expected at most {MAX_SLOTS}, got {len(self.slots)}")

    @property
    def names(self) -> dict[str, Any]:
        """The names under which kernels import the functions of a rule, with these functions."""
        return {name: getattr(self, name) for name in FUNCTIONS} | {"Factors": self.factors}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rule_called, (self.name,)


def _rule_called(name: str) -> Any:
    module, _, constant = name.rpartition(".")
    return getattr(import_module(module), constant)


FUNCTIONS = (
    "unpack",
    "update",
    "values_enter",
    "entering",
    "update_row",
    "update_in_row",
    "skip_once",
    "skip_none",
    "skip_both",
    "is_plain",
    "catch_up",
    "catch_up_any",
)
