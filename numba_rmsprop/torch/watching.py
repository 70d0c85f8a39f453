"""Whether anybody wants to know of a step, and who made a call."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.optim.optimizer as base

# Names of PyTorch's that it does not document: where one is missing, every step counts as watched.
PROFILER = "_is_profiler_enabled"
OF_ALL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
OWN = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def is_watched(optimizer: Any) -> bool:
    """Return whether an optimizer's steps have hooks, or PyTorch's profiler may be on."""
    own = optimizer.__dict__
    return bool(
        getattr(torch.autograd.profiler, PROFILER, True)
        or getattr(base, OF_ALL[0], True)
        or getattr(base, OF_ALL[1], True)
        or own.get(OWN[0], True)
        or own.get(OWN[1], True)
    )


INSIDE = ("numba_rmsprop", "torch", "contextlib")


def level_of_caller() -> int:
    """Return the ``stacklevel`` at which a warning of the calling function names whoever called PyTorch, or us."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    return level
