"""Learning-rate schedules, with the names, arguments and formulas of tf.keras.optimizers.schedules.

A schedule is any callable from a step (an int, 0 at the first) to a float. Those here are frozen dataclasses, so
that they compare by value and travel through ``get_config``; derive from :class:`LearningRateSchedule` for one of
your own that does so too.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .arrays.real_numbers import as_float


class LearningRateSchedule(abc.ABC):
    """A learning rate that depends on the step.

    Derive from it, as a dataclass or with a ``get_config`` of your own, and hand the class to ``from_config`` in
    ``custom_objects`` to read it back.

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
        """Return the constructor's arguments, as JSON can hold them."""
        if not dataclasses.is_dataclass(self):
            raise NotImplementedError(f"{type(self).__name__} is no dataclass, so it must define get_config itself")
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the schedule that ``get_config`` described."""
        return cls(**config)


def _plain(value: Any) -> Any:
    """Return a number of NumPy's as Python's, which JSON can hold."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def _check_numbers(schedule: Any, *positive: str, at_least_0: Sequence[str] = ()) -> None:
    """Raise unless all fields are finite numbers, some of them above 0 or not below it; make Python's of foreign ones.

    Raises
    ------
    TypeError
        If one is no number.
    ValueError
        If one is out of its bounds.
    """
    kind = type(schedule).__name__
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        if field.name == "name" or (value is None and field.default is None):
            continue
        given = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, np.ma.MaskedArray) for number in given):
            raise TypeError(f"{kind}: {field.name} has a mask; fill it first, as with filled(0)")
        try:
            found = [as_float(field.name, number) for number in given]
        except TypeError:
            if isinstance(value, (bool, np.bool)):
                continue
            raise TypeError(f"{kind}: expected a number for {field.name}, got {value!r:.100}") from None
        if not all(map(math.isfinite, found)) and field.name != "boundaries":
            raise ValueError(f"{kind}: expected a finite number for {field.name}, got {value!r}")
        if not isinstance(value, (tuple, numbers.Real, np.ndarray)):
            object.__setattr__(schedule, field.name, found[0])
    for names, bound in ((positive, "> 0"), (at_least_0, ">= 0")):
        for name in names:
            value = getattr(schedule, name)
            if not (value > 0 or (value == 0 and bound == ">= 0")):
                raise ValueError(f"{kind}: expected {name} {bound}, got {value!r}")


def _elapsed(step: int, steps: float) -> float:
    """Return ``step / steps``, finite."""
    return min(step / steps, sys.float_info.max)


def _between(low: float, value: float, high: float) -> float:
    """Return a value that rounding, or the end of a decay, may have put just outside of its range."""
    return min(max(value, min(low, high)), max(low, high))


@dataclass(frozen=True)
class ExponentialDecay(LearningRateSchedule):
    """Multiply by ``decay_rate`` every ``decay_steps`` steps.

    ``initial_learning_rate * decay_rate ** (step / decay_steps)``; with ``staircase``, the exponent's whole part.

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
        exponent = _elapsed(step, self.decay_steps)
        # As an integer, the rate would be raised to a whole power exactly, with as many digits as that takes.
        return self.initial_learning_rate * float(self.decay_rate) ** (
            math.floor(exponent) if self.staircase else exponent
        )


@dataclass(frozen=True)
class PiecewiseConstantDecay(LearningRateSchedule):
    """Hold ``values[i]`` up to and with step ``boundaries[i]``, and the last value after the last boundary.

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
        return self.values[sum(step > boundary for boundary in self.boundaries)]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON can hold them."""
        lists = {"boundaries": self.boundaries, "values": self.values}
        return {name: [_plain(number) for number in numbers] for name, numbers in lists.items()} | {"name": self.name}


@dataclass(frozen=True)
class PolynomialDecay(LearningRateSchedule):
    """Go from ``initial_learning_rate`` to ``end_learning_rate`` in ``decay_steps`` steps, along a polynomial.

    ``(initial - end) * (1 - step / decay_steps) ** power + end``, and ``end_learning_rate`` afterwards. With
    ``cycle``, ``decay_steps`` is first multiplied by the smallest whole number that brings it to ``step`` or above.

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
        # A length that is no whole number may have been rounded to just below the step.
        remaining: float = max(1 - step / length, 0) ** self.power
        return _between(self.initial_learning_rate, span * remaining + self.end_learning_rate, self.end_learning_rate)


@dataclass(frozen=True)
class InverseTimeDecay(LearningRateSchedule):
    """Divide by one more ``decay_rate`` every ``decay_steps`` steps.

    ``initial_learning_rate / (1 + decay_rate * step / decay_steps)``; with ``staircase``, the quotient's whole part.

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
        elapsed = _elapsed(step, self.decay_steps)
        return self.initial_learning_rate / (1 + self.decay_rate * (math.floor(elapsed) if self.staircase else elapsed))


@dataclass(frozen=True)
class CosineDecay(LearningRateSchedule):
    """Follow half a cosine down to ``alpha`` times where it starts, after an optional linear warm-up.

    With s the steps since the warm-up, at most ``decay_steps``, and r the rate where the decay starts
    (``warmup_target``, or ``initial_learning_rate`` without one):
    ``r * ((1 - alpha) * (1 + cos(pi * s / decay_steps)) / 2 + alpha)``. The warm-up rises linearly from
    ``initial_learning_rate`` to ``warmup_target`` in ``warmup_steps`` steps.

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
    """Follow half a cosine down, then start again, each period ``t_mul`` times longer and ``m_mul`` times lower.

    With m = ``m_mul ** i`` in period i, of which the fraction f is over:
    ``initial_learning_rate * ((1 - alpha) * m * (1 + cos(pi * f)) / 2 + alpha)``.

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
        """Return the period, and the fraction of it that is over; ``elapsed`` is in first periods."""
        growth = self.t_mul - 1
        if growth == 0:
            return math.floor(elapsed), elapsed - math.floor(elapsed)
        period = math.floor(math.log1p(min(elapsed * growth, sys.float_info.max)) / math.log1p(growth))
        # The quotient of logarithms can fall beside a whole number, at the step of a restart.
        while self._start(period) > elapsed:
            period -= 1
        while self._start(period + 1) <= elapsed:
            period += 1
        start, end = self._start(period), self._start(period + 1)
        return period, _between(0.0, (elapsed - start) / (end - start), 1.0)

    def _start(self, period: int) -> float:
        growth = float(self.t_mul) - 1
        try:
            # Near 1, powers differ too little from 1 to be told apart; elsewhere whole ones are exact.
            power = math.expm1(period * math.log1p(growth)) if growth < 1e-3 else float(self.t_mul) ** period - 1
        except OverflowError:
            return math.inf
        return power / growth
