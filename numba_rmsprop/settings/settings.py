"""The settings of an optimizer: what was given, checked, and what it comes to at a step."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from .hyperparameters import Hyperparameter, LearningRate, check, check_number, evaluate, evaluate_learning_rate
from .option_names import refuse_misspelt
from .step_numbers import StepRates

MODES = ("exact", "lazy")
CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")


class Settings:
    """The hyperparameters of :class:`~numba_rmsprop.RMSprop`, whose docstring describes them."""

    def __init__(
        self,
        *,
        learning_rate: Any,
        rho: Any,
        momentum: Any,
        epsilon: Any,
        decay: Any,
        centered: bool,
        name: str,
        sparse_update: str,
        epsilon_in_sqrt: bool | None,
        weight_decay: float | None,
        clipvalue: float | None,
        clipnorm: float | None,
        global_clipnorm: float | None,
        check_finite: bool,
    ) -> None:
        if sparse_update not in MODES:
            raise ValueError(f"sparse_update: expected one of {MODES}, got {sparse_update!r}")
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {name!r}")
        self.name = name
        self._sparse_update = sparse_update
        self._centered = bool(centered)
        self.check_finite = bool(check_finite)
        self._epsilon_in_sqrt = None if epsilon_in_sqrt is None else bool(epsilon_in_sqrt)
        self._weight_decay = check_number("weight_decay", 0.0 if weight_decay is None else weight_decay)
        self._clips: dict[str, float | None] = dict.fromkeys(CLIPS)
        self._clips_norms = False
        self._constant_rates: StepRates | None = None
        self.clipvalue = clipvalue
        self.clipnorm = clipnorm
        self.global_clipnorm = global_clipnorm
        self._values = {
            "learning_rate": check("learning_rate", learning_rate),
            "rho": check("rho", rho),
            "momentum": check("momentum", momentum),
            "epsilon": check("epsilon", 1e-7 if epsilon is None else epsilon),
            "decay": check("decay", decay),
        }
        self._has_momentum = callable(momentum) or self._values["momentum"] > 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; refuse one that was meant for a setting."""
        if name[0] != "_" and not hasattr(type(self), name):  # to ask self.__dict__ would slow all attributes down
            refuse_misspelt(type(self), name)
        object.__setattr__(self, name, value)

    @property
    def learning_rate(self) -> LearningRate:
        """What was given: a number, a schedule or another callable; settable."""
        return cast(LearningRate, self._values["learning_rate"])

    @learning_rate.setter
    def learning_rate(self, value: LearningRate) -> None:
        self._set("learning_rate", value)

    lr = learning_rate

    @property
    def rho(self) -> Hyperparameter:
        """The decay of the mean square; settable, also between steps of exact mode."""
        return cast(Hyperparameter, self._values["rho"])

    @rho.setter
    def rho(self, value: Hyperparameter) -> None:
        self._set("rho", value)

    @property
    def momentum(self) -> Hyperparameter:
        """The momentum; settable, but whether there is momentum at all was fixed when the optimizer was made."""
        return cast(Hyperparameter, self._values["momentum"])

    @momentum.setter
    def momentum(self, value: Hyperparameter) -> None:
        checked = check("momentum", value)
        if self._has_momentum != (callable(checked) or checked > 0):
            raise ValueError(
                f"momentum: expected {'a callable or more than 0' if self._has_momentum else '0'}, since the optimizer "
                f"was made {'with' if self._has_momentum else 'without'} momentum, got {value!r}; make a new optimizer"
            )
        self._set("momentum", checked)

    @property
    def epsilon(self) -> Hyperparameter:
        """What keeps the division from 0; settable."""
        return cast(Hyperparameter, self._values["epsilon"])

    @epsilon.setter
    def epsilon(self, value: Hyperparameter) -> None:
        self._set("epsilon", value)

    @property
    def decay(self) -> Hyperparameter:
        """What the learning rate falls by: it is divided by 1 + decay·t; settable."""
        return cast(Hyperparameter, self._values["decay"])

    @decay.setter
    def decay(self, value: Hyperparameter) -> None:
        self._set("decay", value)

    @property
    def clipvalue(self) -> float | None:
        """Limit of every element of a gradient, or None; settable."""
        return self._clips["clipvalue"]

    @clipvalue.setter
    def clipvalue(self, value: float | None) -> None:
        self._set_clip("clipvalue", value)

    @property
    def clipnorm(self) -> float | None:
        """Limit of each gradient's norm, or None; settable."""
        return self._clips["clipnorm"]

    @clipnorm.setter
    def clipnorm(self, value: float | None) -> None:
        self._set_clip("clipnorm", value)

    @property
    def global_clipnorm(self) -> float | None:
        """Limit of the norm of all gradients of a call together, or None; settable."""
        return self._clips["global_clipnorm"]

    @global_clipnorm.setter
    def global_clipnorm(self, value: float | None) -> None:
        self._set_clip("global_clipnorm", value)

    @property
    def centered(self) -> bool:
        """Whether steps are divided by the standard deviation; fixed when the optimizer was made."""
        return self._centered

    @property
    def sparse_update(self) -> str:
        """Either "exact" or "lazy"; fixed when the optimizer was made."""
        return self._sparse_update

    @property
    def weight_decay(self) -> float:
        """The decoupled weight decay; fixed when the optimizer was made."""
        return self._weight_decay

    @property
    def epsilon_in_sqrt(self) -> bool | None:
        """Where epsilon stands, or None for what follows from the momentum; fixed when the optimizer was made."""
        return self._epsilon_in_sqrt

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "name": self.name,
            **self._values,
            "centered": self.centered,
            "sparse_update": self.sparse_update,
            "epsilon_in_sqrt": self.epsilon_in_sqrt,
            "weight_decay": self.weight_decay,
            **self._clips,
            "check_finite": self.check_finite,
        }

    def _take_over(self, other: Settings) -> None:
        """Take all settings of another; ``self`` has no slots yet."""
        Settings.__init__(self, **other._settings())

    def _set(self, name: str, value: Any) -> None:
        self._values[name] = check(name, value)
        self._constant_rates = None

    def _set_clip(self, name: str, value: float | None) -> None:
        clips = self._clips | {name: None if value is None else check_number(name, value)}
        if clips["clipnorm"] is not None and clips["global_clipnorm"] is not None:
            raise ValueError(
                f"expected clipnorm or global_clipnorm, got both: {clips['clipnorm']} and {clips['global_clipnorm']}"
            )
        self._clips = clips
        self._clips_norms = clips["clipnorm"] is not None or clips["global_clipnorm"] is not None
        self._constant_rates = None

    def _rates(self, step: int) -> StepRates:
        """Return the hyperparameters of step ``step``."""
        if self._constant_rates is not None:
            return self._constant_rates
        values = self._values
        decay = evaluate("decay", values["decay"])
        learning_rate = evaluate_learning_rate(values["learning_rate"], decay, step)
        epsilon = evaluate("epsilon", values["epsilon"])
        inside = self._has_momentum if self._epsilon_in_sqrt is None else self._epsilon_in_sqrt
        rates = StepRates(
            learning_rate=learning_rate,
            rho=evaluate("rho", values["rho"]),
            momentum=evaluate("momentum", values["momentum"]),
            epsilon_inside=epsilon if inside else 0.0,
            epsilon_outside=0.0 if inside else epsilon,
            shrink=1.0 - learning_rate * self._weight_decay,
            clipvalue=np.inf if self.clipvalue is None else self.clipvalue,
        )
        if values["decay"] == 0 and not any(map(callable, values.values())):
            self._constant_rates = rates
        return rates
