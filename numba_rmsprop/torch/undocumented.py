"""Names of PyTorch that it does not document. Where one is missing, calls take longer, or a warning is not given."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.optim.optimizer as base
from torch import Tensor

Step = TypeVar("Step", bound=Callable[..., Any])

PROFILER = "_is_profiler_enabled"
HOOKS_OF_ALL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
OWN_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
VERSION = "_version"
WILL_RUN = "_will_engine_execute_node"
TRANSFORMS = "_are_functorch_transforms_active"
HOOKS = "_backward_hooks", "_post_accumulate_grad_hooks"


def without_idle_hooks(step: Step) -> Step:
    """Wrap a step so that it takes the time for hooks and the profiler only where there is a hook or a profiler.

    PyTorch itself wraps each step that has no attribute ``hooked``. That costs 30 us at each call, as much as the rest
    of a step on few rows.
    """
    wrap = getattr(torch.optim.Optimizer, "profile_hook_step", None)
    if wrap is None:
        return step
    with_hooks = wrap(step)

    @wraps(step)
    def hooked_step(self: Any, *arguments: Any, **named: Any) -> Any:
        return (with_hooks if is_watched(self) else step)(self, *arguments, **named)

    hooked_step.hooked = True  # type: ignore[attr-defined]
    return cast(Step, hooked_step)


def is_watched(optimizer: Any) -> bool:
    """Return whether an optimizer's steps have hooks, or PyTorch's profiler may be on."""
    own = optimizer.__dict__
    return bool(
        getattr(torch.autograd.profiler, PROFILER, True)
        or getattr(base, HOOKS_OF_ALL[0], True)
        or getattr(base, HOOKS_OF_ALL[1], True)
        or own.get(OWN_HOOKS[0], True)
        or own.get(OWN_HOOKS[1], True)
    )


def version_of(parameter: Tensor) -> int | None:
    """Return how many writes to a tensor autograd has counted, or None if it does not count them.

    A count that grows between two steps shows that somebody else has written to the parameter.
    """
    return None if parameter.is_inference() else getattr(parameter, VERSION, None)


def tells_captures() -> bool:
    """Return whether :func:`is_captured` can tell; if not, no gradient may wait."""
    return hasattr(torch._C, WILL_RUN)


def is_transformed() -> bool:
    """Return whether torch.func or torch.vmap transforms what runs, or may."""
    return bool(getattr(torch._C, TRANSFORMS, lambda: True)())


def has_hooks(parameter: Tensor) -> bool:
    """Return whether somebody wants to be handed the gradients of a parameter, or may."""
    return any(getattr(parameter, name, True) for name in HOOKS)


def is_captured(node: Any) -> bool:
    """Return whether the backward pass that runs returns a parameter's gradient, as torch.autograd.grad does.

    Otherwise it adds it to ``grad`` of the parameter, whose node of the graph this is.
    """
    try:
        return not getattr(torch._C, WILL_RUN)(node)
    except RuntimeError:  # it refuses to answer within torch.autograd.grad for the parameter
        return True
