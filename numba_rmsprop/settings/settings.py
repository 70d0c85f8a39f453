"""The settings of an optimizer, checked when they are set, and their values at a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..kernels.averaged_rmsprop import AVERAGED_RMSPROP
from ..kernels.rmsprop import RMSPROP, Numbers, corrected
from ..kernels.rule import Rule
from .form import Form
from .hyperparameters import (
    Hyperparameter,
    LearningRate,
    check,
    check_count,
    check_limit,
    check_number,
    evaluate,
    evaluate_learning_rate,
)
from .moving_average import check_frequency, has_own_numbers, overwrites_after, with_average
from .option_names import refuse_misspelt
from .row_norms import Bounds, RowNorm, bounds_of, check_row_norm, check_with_others
from .step_numbers import StepNumbers
from .variable_options import USUAL_OPTIONS, VariableOptions, check_factors, check_patterns, options_of, unmatched

MODES = ("exact", "lazy")
STATES, STATE_DTYPES, ROUNDINGS = ("elementwise", "rowwise"), (None, "bfloat16"), ("nearest", "stochastic")
CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")


FIXED = (
    *("centered", "sparse_update", "epsilon_in_sqrt", "weight_decay", "nesterov", "bias_correction", "initial_scale"),
    *("state", "state_dtype", "rounding", "seed", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("gradient_accumulation_steps", "row_norm"),
)
"""Settings that cannot be set."""


def _settable(name: str, doc: str) -> Any:
    """Return a property that reads a setting, and checks what it is set to."""
    return property(
        lambda self: self._values[name], lambda self, value: self._set(name, value), doc=f"{doc}; settable."
    )


def _fixed(name: str, doc: str) -> Any:
    """Return a property that reads a setting."""
    return property(lambda self: self._values[name], doc=f"{doc}; fixed when the optimizer was made.")


class Settings:
    """The hyperparameters of :class:`~numba_rmsprop.RMSprop`, whose docstring describes them."""

    has_momentum: bool
    has_average: bool
    clips_norms: bool

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
        nesterov: bool = False,
        bias_correction: bool = False,
        initial_scale: float = 0.0,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        gradient_accumulation_steps: int | None = None,
        row_norm: RowNorm | Mapping[str, RowNorm] | None = None,
        learning_rate_factors: Mapping[str, float] | None = None,
        excluded_from_weight_decay: Iterable[str] | None = None,
        state: str = "elementwise",
        state_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
    ) -> None:
        _check_choice("sparse_update", sparse_update, MODES)
        if not (state_dtype is None or isinstance(state_dtype, str)):
            state_dtype = str(np.dtype(state_dtype))  # NumPy's dtype, or that of ml_dtypes
        check_form(state, state_dtype, rounding, seed, centered=bool(centered))
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {name!r}")
        shrinks = check_number("weight_decay", 0.0 if weight_decay is None else weight_decay)
        given = zip(CLIPS, (clipvalue, clipnorm, global_clipnorm), strict=True)
        clips = {name: None if limit is None else check_limit(name, limit) for name, limit in given}
        _refuse_both(clips)
        self.name = name
        self.check_finite = bool(check_finite)
        self._values: dict[str, Any] = {
            "learning_rate": check("learning_rate", learning_rate),
            "rho": check("rho", rho),
            "momentum": check("momentum", momentum),
            "epsilon": check("epsilon", 1e-7 if epsilon is None else epsilon),
            "decay": check("decay", decay),
            "centered": bool(centered),
            "sparse_update": sparse_update,
            "epsilon_in_sqrt": None if epsilon_in_sqrt is None else bool(epsilon_in_sqrt),
            "weight_decay": shrinks,
            "nesterov": bool(nesterov),
            "bias_correction": bool(bias_correction),
            "initial_scale": check_number("initial_scale", initial_scale),
            "use_ema": bool(use_ema),
            "ema_momentum": check_number("ema_momentum", ema_momentum),
            "ema_overwrite_frequency": ema_overwrite_frequency,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "state": state,
            "state_dtype": state_dtype,
            "rounding": rounding,
            "seed": int(seed),
            "row_norm": row_norm,
            "learning_rate_factors": check_factors(learning_rate_factors) or None,
            "excluded_from_weight_decay": check_patterns(excluded_from_weight_decay) or None,
            **clips,
        }
        self.has_momentum = callable(momentum) or self._values["momentum"] > 0
        self._check_fixed()
        if nesterov and not self.has_momentum:
            raise ValueError("nesterov: expected False without momentum, got True; give momentum, such as momentum=0.9")
        self._note_values()

    def _check_fixed(self) -> None:
        """Check settings that a subclass may fix in its body."""
        frequency = check_frequency(self.use_ema, self.ema_overwrite_frequency)
        count = check_count("gradient_accumulation_steps", self.gradient_accumulation_steps)
        norm = check_row_norm(self.row_norm)
        check_with_others(
            norm,
            exact=self.sparse_update == "exact",
            momentum=self.has_momentum,
            overwrites=frequency is not None,
            weight_decay=self.weight_decay,
        )
        checked = {"ema_overwrite_frequency": frequency, "gradient_accumulation_steps": count, "row_norm": norm}
        self._values = self._values | checked

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; raise AttributeError for a misspelt setting."""
        if name[0] != "_" and not hasattr(type(self), name):  # self.__dict__ would slow down every attribute
            refuse_misspelt(type(self), name)
        object.__setattr__(self, name, value)

    learning_rate: LearningRate = _settable("learning_rate", "The learning rate: a number, a schedule or a callable")
    lr: LearningRate = learning_rate
    rho: Hyperparameter = _settable("rho", "The decay of the mean square")
    momentum: Hyperparameter = _settable(
        "momentum", "The momentum, which stays 0 if the optimizer was made with 0, and stays above 0 otherwise"
    )
    epsilon: Hyperparameter = _settable("epsilon", "The number that keeps the division from 0")
    decay: Hyperparameter = _settable("decay", "The decay of the learning rate, which is divided by 1 + decay·t")
    clipvalue: float | None = _settable("clipvalue", "The limit of every element of a gradient, or None")
    clipnorm: float | None = _settable("clipnorm", "The limit of each gradient's norm, or None")
    global_clipnorm: float | None = _settable(
        "global_clipnorm", "The limit of the norm of all gradients of a call together, or None"
    )

    centered: bool = _fixed("centered", "True if steps are divided by the standard deviation")
    sparse_update: str = _fixed("sparse_update", 'Either "exact" or "lazy"')
    weight_decay: float = _fixed("weight_decay", "The decoupled weight decay")
    epsilon_in_sqrt: bool | None = _fixed(
        "epsilon_in_sqrt", "True if epsilon is added inside the root, None if only with momentum"
    )
    nesterov: bool = _fixed("nesterov", "True if the momentum is Nesterov's")
    bias_correction: bool = _fixed("bias_correction", "True if the means are corrected for their start at 0")
    initial_scale: float = _fixed("initial_scale", "The number that every mean square starts from")
    use_ema: bool = _fixed("use_ema", "True if variables have moving averages")
    ema_momentum: float = _fixed("ema_momentum", "How much of the averages stays from step to step")
    ema_overwrite_frequency: int | None = _fixed(
        "ema_overwrite_frequency", "After how many steps the averages overwrite the variables, or None"
    )
    gradient_accumulation_steps: int | None = _fixed(
        "gradient_accumulation_steps", "After how many calls a step is taken, with the mean of their gradients, or None"
    )
    row_norm: RowNorm | Mapping[str, RowNorm] | None = _fixed(
        "row_norm", 'The largest norm of a row, or "unit", or these by the names of variables, or None'
    )
    state: str = _fixed("state", 'Either "elementwise" or "rowwise"')
    state_dtype: str | None = _fixed(
        "state_dtype", 'The dtype of the slots, "bfloat16", or None for that of the arithmetic'
    )
    rounding: str = _fixed("rounding", 'How numbers of 16 bits are rounded, "nearest" or "stochastic"')
    seed: int = _fixed("seed", "Where the random bits of stochastic rounding come from")

    @property
    def learning_rate_factors(self) -> Mapping[str, float] | None:
        """Factors of the learning rate, by the names of variables, or None; settable as a whole."""
        factors = self._values["learning_rate_factors"]
        return None if factors is None else MappingProxyType(factors)

    @learning_rate_factors.setter
    def learning_rate_factors(self, value: Mapping[str, float] | None) -> None:
        self._set_variable_options("learning_rate_factors", check_factors(value) or None)

    def _set_variable_options(self, name: str, value: Any) -> None:
        """Take over checked options of single variables."""
        self._values = self._values | {name: value}
        self._note_values()

    @property
    def rule(self) -> Rule:
        """The mathematics of a step."""
        return AVERAGED_RMSPROP if self.use_ema else RMSPROP

    @property
    def form(self) -> Form:
        """The form in which state is kept."""
        dtype = None if self.state_dtype is None else np.dtype(self.state_dtype)
        seed = self.seed if self.rounding == "stochastic" else None
        starts = (("rms", self.initial_scale),) if self.initial_scale else ()
        return Form(self.state == "rowwise", dtype, seed, starts=starts)

    @property
    def corrects_bias(self) -> bool:
        """True if the numbers of a step depend on how many a variable has taken."""
        return bool(self.bias_correction)

    def product_after(self, steps: int) -> float:
        """Return the product of rho over so many steps of a variable, where bias correction needs it; else 1."""
        return evaluate("rho", self._values["rho"]) ** steps if self.corrects_bias else 1.0

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        fixed = {name: getattr(self, name) for name in FIXED}  # a subclass may fix them in its body
        return {"name": self.name, **self._values, **fixed, "check_finite": self.check_finite}

    def _take_over(self, other: Settings) -> None:
        """Take all settings of another optimizer; ``self`` has no slots yet."""
        Settings.__init__(self, **other._settings())

    def _set(self, name: str, given: Any) -> None:
        value = given
        if name not in CLIPS:
            value = check(name, value)
        elif value is not None:
            value = check_limit(name, value)
        values = self._values | {name: value}
        has_momentum = callable(values["momentum"]) or values["momentum"] > 0
        if has_momentum != self.has_momentum:
            raise ValueError(
                f"momentum: expected {'a callable or more than 0' if self.has_momentum else '0'}, since the optimizer "
                f"was made {'with' if self.has_momentum else 'without'} momentum, got {given!r}; make a new optimizer"
            )
        _refuse_both(values)
        self._values = values
        self._note_values()

    def _note_values(self) -> None:
        """Take note of new values: whether norms are clipped, and that the numbers of a step are others."""
        self.has_variable_options = bool(
            self._values["learning_rate_factors"]
            or self._values["excluded_from_weight_decay"]
            or isinstance(self.row_norm, Mapping)
        )
        self._variable_options: dict[str, VariableOptions] = {}
        self._numbers_with: dict[VariableOptions, tuple[StepNumbers, StepNumbers]] = {}
        self.has_average = bool(self.use_ema)
        self.clips_norms = self._values["clipnorm"] is not None or self._values["global_clipnorm"] is not None
        self._constant_numbers: StepNumbers | None = None

    def variable_options(self, name: str) -> VariableOptions:
        """Return what is different for a variable of this name."""
        if not self.has_variable_options:
            return USUAL_OPTIONS
        found = self._variable_options.get(name)
        if found is None:
            values = self._values
            factors, excluded = values["learning_rate_factors"], values["excluded_from_weight_decay"]
            found = options_of(name, factors or {}, excluded or ())
            self._variable_options[name] = found
        return found

    def unmatched_options(self, names: Iterable[str]) -> str:
        """Return words for options that name none of these variables; no words where there are none."""
        factors, excluded = (
            self._values["learning_rate_factors"] or {},
            self._values["excluded_from_weight_decay"] or (),
        )
        norms = self.row_norm if isinstance(self.row_norm, Mapping) else {}
        return unmatched(names, {"learning_rate_factors": factors, "row_norm": norms}, excluded)

    def row_bounds(self, name: str) -> Bounds | None:
        """Return between what the norms of the rows of a variable of this name are kept."""
        return bounds_of(self.row_norm, name)

    def numbers_with(self, options: VariableOptions, numbers: StepNumbers) -> StepNumbers:
        """Return the numbers of a step for a variable with options of its own."""
        if options == USUAL_OPTIONS:
            return numbers
        known = self._numbers_with.get(options)
        if known is not None and known[0] is numbers:
            return known[1]
        rate = numbers.of_rule.learning_rate * options.rate_factor
        shrink = 1.0 - rate * self.weight_decay if options.decays else 1.0
        made = numbers.replaced(self.rule, learning_rate=rate, shrink=shrink)
        self._numbers_with[options] = numbers, made
        return made

    def numbers_at(self, step: int) -> StepNumbers:
        """Return the hyperparameters of step ``step``."""
        is_unusual = self.has_average and has_own_numbers(step, self.ema_overwrite_frequency)
        if self._constant_numbers is not None and not is_unusual:
            return self._constant_numbers
        values = self._values
        decay = evaluate("decay", values["decay"])
        learning_rate = evaluate_learning_rate(values["learning_rate"], decay, step)
        epsilon = evaluate("epsilon", values["epsilon"])
        rho, momentum = evaluate("rho", values["rho"]), evaluate("momentum", values["momentum"])
        inside = self.has_momentum if values["epsilon_in_sqrt"] is None else values["epsilon_in_sqrt"]
        of_rule: Any = Numbers(
            learning_rate=learning_rate,
            rho=rho,
            one_minus_rho=1.0 - rho,
            momentum=momentum,
            epsilon_inside=epsilon if inside else 0.0,
            epsilon_outside=0.0 if inside else epsilon,
            shrink=1.0 - learning_rate * self.weight_decay,
            outer_rate=momentum if self.nesterov else 1.0,
            coupled_decay=0.0,
            step_rate=1.0 if self.nesterov else 0.0,
            mean_share=1.0,
        )
        if self.has_average:
            overwrites = overwrites_after(step, self.ema_overwrite_frequency)
            of_rule = with_average(of_rule, self.ema_momentum if step else 0.0, overwrites=overwrites)
        numbers = StepNumbers(
            self.rule,
            of_rule,
            clipvalue=math.inf if values["clipvalue"] is None else values["clipvalue"],
            corrected=corrected if self.bias_correction else None,
        )
        if values["decay"] == 0 and not is_unusual and not any(map(callable, values.values())):
            self._constant_numbers = numbers
        return numbers


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def check_form(state: Any, state_dtype: Any, rounding: Any, seed: Any, *, centered: bool) -> None:
    """Raise ValueError or TypeError for a form of the state that is not to be had."""
    _check_choice("state", state, STATES)
    _check_choice("state_dtype", state_dtype, STATE_DTYPES)
    _check_choice("rounding", rounding, ROUNDINGS)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected a whole number, got {seed!r:.100}")
    if not 0 <= seed < 2**63:
        raise ValueError("seed: expected 0 <= seed < 2**63, got one that is outside")
    if state == "rowwise" and centered:
        raise ValueError(
            "state: expected 'elementwise' with centered=True, got 'rowwise': a row's gradients have no common mean to "
            "subtract; leave centered out"
        )
    if state_dtype is not None and centered:
        raise ValueError(
            f"state_dtype: expected None with centered=True, got {state_dtype!r}: the variance is a difference of two "
            "numbers that are nearly the same, of which 8 bits leave nothing"
        )
    if state_dtype is not None and rounding != "stochastic":
        raise ValueError(
            f"rounding: expected 'stochastic' with state_dtype={state_dtype!r}, got {rounding!r}: rounded to the "
            "nearest, a mean square that decays by rho=0.999 would stay what it is for ever"
        )


def _refuse_both(values: dict[str, Any]) -> None:
    clipnorm, global_clipnorm = values["clipnorm"], values["global_clipnorm"]
    if clipnorm is not None and global_clipnorm is not None:
        raise ValueError(f"expected clipnorm or global_clipnorm, got both: {clipnorm} and {global_clipnorm}")
