"""The settings of moving averages of variables, and the numbers of a step with them."""

from __future__ import annotations

from typing import Any

from ..kernels import averaged_rmsprop
from ..kernels.rmsprop import Numbers
from .hyperparameters import check_count


def check_frequency(use_ema: Any, frequency: Any) -> int | None:
    """Return ``ema_overwrite_frequency``; raise unless it is None, or a whole number above 0 with ``use_ema``."""
    found = check_count("ema_overwrite_frequency", frequency)
    if found is not None and not use_ema:
        raise ValueError(
            f"ema_overwrite_frequency: expected None without averages, got {found}; give use_ema=True as well"
        )
    return found


def is_apart(step: int, frequency: int | None) -> bool:
    """Return whether the average goes by other numbers in a step: at the first one, and where it overwrites."""
    return step == 0 or (frequency is not None and (step + 1) % frequency == 0)


def with_average(numbers: Numbers, step: int, momentum: float, frequency: int | None) -> averaged_rmsprop.Numbers:
    """Return the numbers of a step with those of the average, which at the first step is the value after it."""
    stays = momentum if step else 0.0
    overwrites = frequency is not None and (step + 1) % frequency == 0
    return averaged_rmsprop.Numbers(*numbers, stays, 1.0 - stays, float(overwrites))
