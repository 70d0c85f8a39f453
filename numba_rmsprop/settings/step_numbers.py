"""The numbers of one step, as kernels take them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from ..arrays.variables import FloatArray
from ..kernels.rule import Rule


class StepNumbers:
    """The hyperparameters of one step, evaluated.

    Parameters
    ----------
    rule : Rule
        The optimizer's rule.
    of_rule : NamedTuple
        The numbers that the rule's ``unpack`` returns.
    clipvalue : float, default infinity
        Limit of every element of a gradient.
    ascends : bool, default False
        Whether to go up the gradient.
    corrected : callable, optional
        ``corrected(of_rule, product)`` returns the rule's numbers with bias correction, where ``product`` is that of
        rho over a variable's steps up to this one; None for none.
    rests : str, optional
        A slot that this step leaves as it is, and goes without.

    Attributes
    ----------
    sign : float
        1, or -1 to go up the gradient.
    when_skipped : tuple of float
        The numbers that the step leaves for rows that it skips, in the order of ``rule.skipped``: a run of
        :mod:`numba_rmsprop.kernels.skip_factors`.
    """

    __slots__ = ("_packed", "clipvalue", "corrected", "of_rule", "rests", "sign", "when_skipped")

    def __init__(
        self,
        rule: Rule,
        of_rule: Any,
        *,
        clipvalue: float = inf,
        ascends: bool = False,
        corrected: Callable[[Any, float], Any] | None = None,
        rests: str | None = None,
    ) -> None:
        self.of_rule = of_rule
        self.clipvalue = clipvalue
        self.corrected = corrected
        self.rests = rests
        self.when_skipped = tuple([getattr(of_rule, name) for name in rule.skipped])  # a list is made faster
        if rests is not None:
            at_rest: dict[str, Any] = dict(zip(rule.skipped, self.when_skipped, strict=True)) | dict(
                rule.at_rest[rests]
            )
            self.when_skipped = tuple(at_rest.values())
        self.sign = -1.0 if ascends else 1.0
        self._packed: dict[np.dtype[np.floating], FloatArray] = {}

    def with_rule_numbers(self, of_rule: Any) -> StepNumbers:
        """Return the same step with other numbers of the rule; a skipped step must not depend on those that differ."""
        made = object.__new__(StepNumbers)
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        made.of_rule, made._packed = of_rule, {}
        return made

    def replaced(self, rule: Rule, **changes: float) -> StepNumbers:
        """Return the same step with other numbers of the rule, of which some may hold for skipped rows, too."""
        return StepNumbers(
            rule,
            self.of_rule._replace(**changes),
            clipvalue=self.clipvalue,
            ascends=self.sign < 0,
            corrected=self.corrected,
            rests=self.rests,
        )

    @property
    def key(self) -> tuple[float, ...]:
        """All the numbers, to compare them with those of other processes."""
        return (self.clipvalue, self.sign, *self.of_rule, *self.when_skipped)

    def packed(self, dtype: np.dtype[np.floating], scale: float = 1.0) -> FloatArray:
        """Return clipvalue, ``scale`` (what the clipping of norms leaves of the gradient) and the rule's numbers."""
        if scale != 1.0:
            return self._rounded((self.clipvalue, self.sign * scale, *self.of_rule), dtype)
        packed = self._packed.get(dtype)
        if packed is None:
            packed = self._packed[dtype] = self._rounded((self.clipvalue, self.sign, *self.of_rule), dtype)
        return packed

    def scales(self, dtype: np.dtype[np.floating], scales: list[float]) -> FloatArray:
        """Return what the clipping of norms leaves of each of many gradients, in place of ``packed[1]``."""
        return self._rounded([self.sign * scale for scale in scales], dtype)

    def _rounded(self, numbers: Any, dtype: np.dtype[np.floating]) -> FloatArray:
        # Variables before this one may have taken their step: no warning may become an exception here.
        with np.errstate(over="ignore", under="ignore"):
            return np.array(numbers, dtype)
