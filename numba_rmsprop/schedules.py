"""Learning-rate schedules, with the names, arguments and formulas of tf.keras.optimizers.schedules.

A schedule is any callable that takes the step (an int, 0 at the first) and returns a float. The schedules here are
frozen dataclasses: they compare by value, and ``get_config`` describes them. Derive from
:class:`LearningRateSchedule` to write one of your own.

References
----------
https://www.tensorflow.org/api_docs/python/tf/keras/optimizers/schedules (version 2.11 and later for the warm-up).
"""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .arrays.real_numbers import as_float


class LearningRateSchedule(abc.ABC):
    """A learning rate that depends on the step.

    Derive from it as a dataclass, or with a ``get_config`` of your own. To read it back, pass the class to
    ``from_config`` in ``custom_objects``.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class SquareRoot(LearningRateSchedule):
    ...     initial_learning_rate: float
    ...     def __call__(self, step):
    ...         return self.initial_learning_rate / (1 + step) ** 0.5
    >>> SquareRoot(0.2)(3)
    0.1
    >>> SquareRoot(0.2).get_config()
    {'initial_learning_rate': 0.2}
    """

    @abc.abstractmethod
    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``, 0 at the first."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, in a form that JSON can hold."""
        if not dataclasses.is_dataclass(self):
            raise NotImplementedError(f"{type(self).__name__} is not a dataclass, so it must define get_config itself")
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the schedule that ``get_config`` described."""
        return cls(**config)


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python, which JSON can hold."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def _check_numbers(schedule: Any, *positive: str, at_least_0: Sequence[str] = ()) -> None:
    """Raise unless all fields are finite numbers within their bounds; turn numbers of other libraries into floats."""
    kind = type(schedule).__name__
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        if field.name == "name" or isinstance(value, bool | np.bool) or (value is None and field.default is None):
            continue
        items = value if isinstance(value, tuple) else (value,)
        if any(isinstance(item, np.ma.MaskedArray) for item in items):
            raise TypeError(f"{kind}: {field.name} has a mask; fill it first, as with filled(0)")
        try:
            found = [as_float(field.name, item) for item in items]
        except TypeError:
            raise TypeError(f"{kind}: expected a number for {field.name}, got {value!r:.100}") from None
        if not all(map(math.isfinite, found)) and field.name != "boundaries":
            raise ValueError(f"{kind}: expected a finite number for {field.name}, got {value!r}")
        if not isinstance(value, tuple | numbers.Real | np.ndarray):
            object.__setattr__(schedule, field.name, found[0])
    for name in (*positive, *at_least_0):
        value = getattr(schedule, name)
        if not (value > 0 or (value == 0 and name in at_least_0)):
            raise ValueError(f"{kind}: expected {name} {'>=' if name in at_least_0 else '>'} 0, got {value!r}")


def _elapsed(step: int, steps: float, whole: bool = False) -> float:
    """Return ``step / steps``, made finite, or its whole part."""
    elapsed = min(step / steps, sys.float_info.max)
    return math.floor(elapsed) if whole else elapsed


def _between(low: float, value: float, high: float) -> float:
    """Return a value, clipped to a range that rounding or the end of a decay may have taken it out of."""
    return min(max(value, min(low, high)), max(low, high))


@dataclass(frozen=True)
class ExponentialDecay(LearningRateSchedule):
    """Multiply by ``decay_rate`` every ``decay_steps`` steps.

    ``initial_learning_rate * decay_rate ** (step / decay_steps)``, with the exponent rounded down if ``staircase``.

    Examples
    --------
    >>> ExponentialDecay(0.1, decay_steps=100, decay_rate=0.5)(200)
    0.025
    """

    initial_learning_rate: float
    decay_steps: int
    decay_rate: float
    staircase: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "decay_steps", at_least_0=["decay_rate"])

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        # A power of two integers would be exact, with as many digits as that takes.
        factor: float = float(self.decay_rate) ** _elapsed(step, self.decay_steps, self.staircase)
        return self.initial_learning_rate * factor


@dataclass(frozen=True)
class PiecewiseConstantDecay(LearningRateSchedule):
    """Keep ``values[i]`` up to and including step ``boundaries[i]``, and the last value after the last boundary.

    Examples
    --------
    >>> rate = PiecewiseConstantDecay(boundaries=[100, 200], values=[1.0, 0.5, 0.1])
    >>> rate(100), rate(101), rate(201)
    (1.0, 0.5, 0.1)
    """

    boundaries: Sequence[float]
    values: Sequence[float]
    name: str | None = None

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.values) - 1:
            raise ValueError(
                f"PiecewiseConstantDecay: expected one boundary fewer than values, got {len(self.boundaries)} "
                f"boundaries and {len(self.values)} values"
            )
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"PiecewiseConstantDecay: expected rising boundaries, got {self.boundaries!r}")
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        object.__setattr__(self, "values", tuple(self.values))
        _check_numbers(self)

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        return self.values[bisect_left(self.boundaries, step)]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, in a form that JSON can hold."""
        boundaries, values = (list(map(_plain, field)) for field in (self.boundaries, self.values))
        return {"boundaries": boundaries, "values": values, "name": self.name}


@dataclass(frozen=True)
class PolynomialDecay(LearningRateSchedule):
    """Go from ``initial_learning_rate`` to ``end_learning_rate`` in ``decay_steps`` steps, along a polynomial.

    ``(initial - end) * (1 - step / decay_steps) ** power + end``, and ``end_learning_rate`` afterwards. With
    ``cycle``, ``decay_steps`` is replaced by its smallest multiple that is ``step`` or more.

    Examples
    --------
    >>> PolynomialDecay(0.5, decay_steps=100, end_learning_rate=0.0)(50)
    0.25
    """

    initial_learning_rate: float
    decay_steps: int
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "decay_steps", at_least_0=["power"])

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        if self.cycle:
            length = self.decay_steps * max(1, math.ceil(_elapsed(step, self.decay_steps)))
        else:
            length = self.decay_steps
            step = min(step, length)
        span = self.initial_learning_rate - self.end_learning_rate
        # A length that is not a whole number may have been rounded to just below the step.
        remaining: float = max(1 - step / length, 0) ** self.power
        return _between(self.initial_learning_rate, span * remaining + self.end_learning_rate, self.end_learning_rate)


@dataclass(frozen=True)
class InverseTimeDecay(LearningRateSchedule):
    """Divide by a number that grows by ``decay_rate`` every ``decay_steps`` steps.

    ``initial_learning_rate / (1 + decay_rate * (step / decay_steps))``, the quotient rounded down if ``staircase``.

    Examples
    --------
    >>> InverseTimeDecay(0.1, decay_steps=10, decay_rate=1.0)(10)
    0.05
    """

    initial_learning_rate: float
    decay_steps: int
    decay_rate: float
    staircase: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "decay_steps", at_least_0=["decay_rate"])

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        return self.initial_learning_rate / (1 + self.decay_rate * _elapsed(step, self.decay_steps, self.staircase))


@dataclass(frozen=True)
class CosineDecay(LearningRateSchedule):
    """Fall along half a cosine to ``alpha`` times the first rate, after an optional linear warm-up.

    The warm-up goes linearly from ``initial_learning_rate`` to ``warmup_target`` in ``warmup_steps`` steps. The decay
    starts at r, which is ``warmup_target``, or ``initial_learning_rate`` if there is none. With s steps since then, at
    most ``decay_steps``, the rate is ``r * ((1 - alpha) * (1 + cos(pi * s / decay_steps)) / 2 + alpha)``.

    References
    ----------
    Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983, equation 5.

    Examples
    --------
    >>> CosineDecay(0.5, decay_steps=100)(50)
    0.25
    >>> CosineDecay(0.0, decay_steps=100, warmup_target=0.5, warmup_steps=10)(5)
    0.25
    """

    initial_learning_rate: float
    decay_steps: int
    alpha: float = 0.0
    name: str | None = None
    warmup_target: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_numbers(self, "decay_steps", at_least_0=["warmup_steps"])

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            target = self.warmup_target
            if step < self.warmup_steps:
                return _between(start, start + (target - start) * step / self.warmup_steps, target)
            start = target
            step -= self.warmup_steps
        cosine = 0.5 * (1 + math.cos(math.pi * min(step, self.decay_steps) / self.decay_steps))
        return _between(start, start * ((1 - self.alpha) * cosine + self.alpha), start * self.alpha)


@dataclass(frozen=True)
class CosineDecayRestarts(LearningRateSchedule):
    """Fall along half a cosine again and again; each period is ``t_mul`` times as long and ``m_mul`` times as high.

    In period i, of which the fraction f is over, the rate is
    ``initial_learning_rate * ((1 - alpha) * m_mul ** i * (1 + cos(pi * f)) / 2 + alpha)``.

    References
    ----------
    Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983.

    Examples
    --------
    >>> rate = CosineDecayRestarts(0.5, first_decay_steps=100)
    >>> rate(50), rate(100), rate(200)
    (0.25, 0.5, 0.25)
    """

    initial_learning_rate: float
    first_decay_steps: int
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "first_decay_steps", "t_mul", at_least_0=["m_mul"])
        if self.t_mul < 1:
            raise ValueError(f"CosineDecayRestarts: expected t_mul >= 1, got {self.t_mul!r}")

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        period, fraction = self._period(_elapsed(step, self.first_decay_steps))
        height = float(self.m_mul) ** period
        cosine = 0.5 * height * (1 + math.cos(math.pi * fraction))
        rate = self.initial_learning_rate * ((1 - self.alpha) * cosine + self.alpha)
        ends = self.initial_learning_rate * self.alpha, self.initial_learning_rate
        return _between(ends[0], rate, ends[1]) if height <= 1 else rate

    def _period(self, elapsed: float) -> tuple[int, float]:
        """Return the period, and the fraction of it that is over; ``elapsed`` is in units of the first period."""
        growth = self.t_mul - 1
        if growth == 0:
            return math.floor(elapsed), elapsed - math.floor(elapsed)
        period = math.floor(math.log1p(min(elapsed * growth, sys.float_info.max)) / math.log1p(growth))
        # At the step of a restart, rounding can put the quotient of logarithms beside a whole number.
        while self._start(period) > elapsed:
            period -= 1
        while self._start(period + 1) <= elapsed:
            period += 1
        start, end = self._start(period), self._start(period + 1)
        return period, _between(0.0, (elapsed - start) / (end - start), 1.0)

    def _start(self, period: int) -> float:
        growth = float(self.t_mul) - 1
        try:
            # Near 1, a power would lose its digits when 1 is subtracted; elsewhere, whole powers are exact.
            power = math.expm1(period * math.log1p(growth)) if growth < 1e-3 else float(self.t_mul) ** period - 1
        except OverflowError:
            return math.inf
        return power / growth
