"""Checks of the options of parameter groups, and of state dicts."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from ..settings.hyperparameters import check_limit, check_number
from ..settings.settings import MODES, STATES
from .parameter_state import check_entry

NUMBERS = {
    "lr": "learning rate",
    "eps": "epsilon value",
    "momentum": "momentum value",
    "weight_decay": "weight_decay value",
    "alpha": "alpha value",
}
OWN_OPTIONS: dict[str, Any] = {
    "sparse_update": MODES[0],
    "state": STATES[0],
    "nesterov": False,
    "bias_correction": False,
    "initial_scale": 0.0,
    "decoupled_weight_decay": False,
    "use_ema": False,
    "ema_momentum": 0.99,
    "clipnorm": None,
    "group_clipnorm": None,
    "global_clipnorm": None,
}
"""Options that torch.optim.RMSprop does not have, with their defaults."""

CLIPS = ("clipnorm", "group_clipnorm", "global_clipnorm")

OPTIONS = tuple(dict.fromkeys([*NUMBERS, "centered", "maximize", *OWN_OPTIONS]))
REQUIRED = ("lr", "eps", "weight_decay", "alpha")
"""Options that every state dict of torch.optim.RMSprop has, also those of old versions."""

ALIASES = {
    "learning_rate": "lr",
    "rho": "alpha",
    "epsilon": "eps",
    "decay": "weight_decay",
    "use_nesterov": "nesterov",
    "max_norm": "global_clipnorm",
    "max_grad_norm": "global_clipnorm",
}
"""Names of options in other libraries."""

UNSUPPORTED = {
    "capturable": "steps run on the CPU, where no graph is captured",
    "differentiable": "autograd does not go through a step",
    "fused": "there is one way to step, which takes small parameters together by itself",
}
"""Options of PyTorch's optimizers that this one does not have. ``foreach`` only changes the speed, and is ignored."""

ELSEWHERE = {
    "ema_overwrite_frequency": "use averages() to evaluate, or copy state[parameter]['average'] into the parameter",
    "gradient_accumulation_steps": "call backward() for several batches before each step()",
}
"""Options of numba_rmsprop.RMSprop that this one does not have."""

OF_SCHEDULERS = ("max_momentum", "base_momentum")
"""What schedulers of PyTorch note in a group, which is no misspelt "momentum" or "ema_momentum"."""

SIMILARITY = 0.85
"""How similar a misspelt option is, from 0 to 1."""


def check_options(group: dict[str, Any], where: str = "", *, is_saved: bool = False) -> None:
    """Raise TypeError or ValueError for a wrong option of a group, which ``where`` names at the beginning of messages.

    Options that the group does not have are not checked. A saved group may have any momentum: schedulers change it.
    """
    for key, reason in (UNSUPPORTED | ELSEWHERE).items():
        if group.get(key):
            expected = "None" if key in ELSEWHERE else "False"
            raise ValueError(f"{where}{key}: expected {expected}, got {group[key]!r}: {reason}")
    for key, name in NUMBERS.items():
        value = group.get(key, 0.0)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{where}Tensor {key} must be 1-element")
        if not hasattr(type(value), "__float__"):
            raise TypeError(f"{where}Invalid {name}: expected a number, got {value!r}")
        if not value >= 0.0:
            raise ValueError(f"{where}Invalid {name}: {value}")
    if group.get("nesterov") and not is_saved and not group.get("momentum", 1.0) > 0:
        raise ValueError(f"{where}nesterov: expected momentum above 0 with it, got {group['momentum']}")
    if group.get("bias_correction") and group.get("alpha", 0.0) >= 1:
        raise ValueError(f"{where}alpha: expected less than 1 with bias_correction=True, got {group['alpha']}")
    for key in ("initial_scale", "ema_momentum"):
        try:
            check_number(key, group.get(key, 0.0))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}{error}") from error
    limits = {key: check_limit(f"{where}{key}", group[key]) for key in CLIPS if group.get(key) is not None}
    if len(limits) > 1:
        raise ValueError(f"{where}expected one of {', '.join(CLIPS)} at most, got {limits}")
    if group.get("sparse_update", MODES[0]) not in MODES:
        raise ValueError(f"{where}sparse_update: expected one of {MODES}, got {group['sparse_update']!r}")
    state = group.get("state", STATES[0])
    if state not in STATES:
        raise ValueError(f"{where}state: expected one of {STATES}, got {state!r}")
    if state == "rowwise" and group.get("centered"):
        raise ValueError(f"{where}state: expected 'elementwise' with centered=True, got 'rowwise'; leave centered out")


def check_names(options: Iterable[str]) -> None:
    """Raise ValueError for an option that is misspelt, or named as in another library; other names are allowed."""
    for key in options:
        near = [] if key in (*OPTIONS, *OF_SCHEDULERS) else get_close_matches(str(key), OPTIONS, 1, SIMILARITY)
        meant = ALIASES.get(key, near[0] if near else None)
        if meant is not None:
            raise ValueError(f"parameter group: unknown option {key!r}; did you mean {meant!r}?")


def check_state_dict(found: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Raise TypeError or ValueError unless a state dict fits the groups of the optimizer that is about to load it.

    PyTorch itself checks the number of groups, and of parameters in each.
    """
    for key, kind in (("param_groups", list), ("state", dict)):
        if not isinstance(found.get(key), kind):
            came = type(found[key]).__name__ if key in found else f"a dict without it, of {list(found)}"
            raise TypeError(f"state_dict[{key!r}]: expected a {kind.__name__}, got {came}")
    known = _check_groups(found["param_groups"], groups)
    if [len(saved["params"]) for saved in found["param_groups"]] != [len(group["params"]) for group in groups]:
        return
    for key, entry in found["state"].items():
        name = f"state_dict['state'][{key!r}]"
        if key not in known:
            raise ValueError(f"{name}: expected the number of a parameter, one of {list(known)}")
        parameter, by_row = known[key]
        check_entry(entry, parameter, name, by_row=by_row)
        missing = [each for each in ("step", "square_avg") if each not in entry]
        if entry and missing:
            raise ValueError(f"{name}: expected {missing} in it, as RMSprop has them; got {list(entry)}")


def _check_groups(found: list[Any], groups: list[dict[str, Any]]) -> dict[int, tuple[Tensor, bool]]:
    """Return the parameters by their numbers in the saved groups, after checking these groups.

    With each comes whether its state is to be row-wise.
    """
    known: dict[int, tuple[Tensor, bool]] = {}
    for k, saved in enumerate(found):
        name = f"state_dict['param_groups'][{k}]"
        if not isinstance(saved, dict):
            raise TypeError(f"{name}: expected a dict, got {type(saved).__name__}")
        missing = [key for key in ("params", *REQUIRED) if key not in saved]
        if missing:
            raise ValueError(f"{name}: expected {missing} in it, as RMSprop has them; got {list(saved)}")
        check_options(saved, f"{name}: ", is_saved=True)
        numbers = saved["params"]
        if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"{name}['params']: expected a list of numbers, got {numbers!r}")
        parameters, state = (groups[k]["params"], groups[k]["state"]) if k < len(groups) else ([], STATES[0])
        if saved.get("state", state) != state:
            raise ValueError(
                f"{name}['state']: expected {state!r}, as this group has, got {saved['state']!r}; make the optimizer "
                f"with state={saved['state']!r}. To go on with row-wise state, set this to 'rowwise' and each "
                "square_avg to square_avg.flatten(1).mean(1)"
            )
        by_row = state == "rowwise"
        for number, parameter in zip(numbers, parameters, strict=False):
            if known.setdefault(number, (parameter, by_row))[0] is not parameter:
                raise ValueError(f"{name}['params']: {number} stands for two parameters")
    return known
