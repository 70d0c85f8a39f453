"""The parts of a step over parameter groups, and the clipping of their norms."""

from __future__ import annotations

from typing import Any, TypeAlias

from ..settings.hyperparameters import check_limit
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots
from ..stepping.norm_clipping import each_limited, limited, norm_of
from ..stepping.small_batch import Batch
from .options import CLIPS

Group: TypeAlias = dict[str, Any]
Part: TypeAlias = tuple[Slots | Batch, Any, StepNumbers, Group]
"""What takes a step, its gradients, and the numbers and group of the step."""


def clips(part: Part) -> bool:
    """Return whether the group of a part clips norms."""
    return any(part[3][key] is not None for key in CLIPS)


def squares_of(parts: list[Part]) -> list[list[float]] | None:
    """Return the squared norms of the gradients of each part whose group clips norms; None if there is no such part."""
    if not any(map(clips, parts)):
        return None
    return [part[0].squares(*part[1:3]) if clips(part) else [] for part in parts]


def scale_of(part: Part, own: list[float], parts: list[Part], squares: list[list[float]]) -> float | list[float]:
    """Return what the clipping of norms leaves of the gradients of a part, whose squared norms are ``own``.

    ``squares`` are those of all parts.
    """
    group = part[3]
    kinds = [key for key in CLIPS if group[key] is not None]
    if not kinds:
        return 1.0
    if len(kinds) > 1:
        raise ValueError(f"parameter group: expected one of {', '.join(CLIPS)} at most, got {kinds}")
    kind = kinds[0]
    limit = check_limit(kind, group[kind])
    if kind == "clipnorm":
        return each_limited(limit, own)
    others = [other[3] for other in parts]
    if kind == "group_clipnorm":
        together = [each for other, each in zip(others, squares, strict=True) if other is group]
    else:
        together = [each for other, each in zip(others, squares, strict=True) if other[kind] is not None]
        limits = {other[kind] for other in others if other[kind] is not None}
        if len(limits) > 1:
            raise ValueError(f"{kind}: expected the same in all groups that have it, got {sorted(limits)}")
    return limited(limit, norm_of(together))
