"""The settings of moving averages of variables, and the numbers of a step with them."""

from __future__ import annotations

from typing import Any

from ..kernels import averaged_rmsprop
from ..kernels.rmsprop import Numbers
from .hyperparameters import check_count
from .step_numbers import StepNumbers


def check_frequency(use_ema: Any, frequency: Any) -> int | None:
    """Return ``ema_overwrite_frequency``; raise unless it is None, or a whole number above 0 with ``use_ema``."""
    found = check_count("ema_overwrite_frequency", frequency)
    if found is not None and not use_ema:
        raise ValueError(
            f"ema_overwrite_frequency: expected None without averages, got {found}; give use_ema=True as well"
        )
    return found


def overwrites_after(step: int, frequency: int | None) -> bool:
    """Return whether averages overwrite variables after a step."""
    return frequency is not None and (step + 1) % frequency == 0


def has_own_numbers(step: int, frequency: int | None) -> bool:
    """Return whether the numbers of the average in a step are not the usual ones: at first, and where it overwrites."""
    return step == 0 or overwrites_after(step, frequency)


def with_average(numbers: Numbers, momentum: float, *, overwrites: bool = False) -> averaged_rmsprop.Numbers:
    """Return the numbers of a step with those of its average."""
    return averaged_rmsprop.Numbers(*numbers, momentum, 1.0 - momentum, float(overwrites))


def at_first_step(numbers: StepNumbers) -> StepNumbers:
    """Return the numbers of a step after which the average is the variable."""
    return numbers.replaced(averaged_rmsprop.AVERAGED_RMSPROP, ema_momentum=0.0, one_minus_ema_momentum=1.0)
