"""Whether anybody wants to know of a step."""

from __future__ import annotations

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
