"""Hooks and the profiler see every step, also those that begin without them."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

import torch.optim.optimizer as base
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from numba_rmsprop.torch import RMSprop
from numba_rmsprop.torch.hooks import OF_ALL, OWN, PROFILER, is_watched


def stepped():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer


def test_the_names_are_there():
    """Or else each step takes the longer way."""
    optimizer = stepped()
    assert not is_watched(optimizer)
    assert hasattr(torch.autograd.profiler, PROFILER)
    assert all(hasattr(base, name) for name in OF_ALL)
    assert all(name in vars(optimizer) for name in OWN)


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_all_optimizers(register):
    optimizer, seen = stepped(), []
    handle = register(lambda *arguments: seen.append(arguments[0]))
    try:
        optimizer.step()
    finally:
        handle.remove()
    optimizer.step()
    assert seen == [optimizer]
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 3


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_hooks_of_its_own(kind):
    optimizer, seen = stepped(), []
    handle = getattr(optimizer, f"register_step_{kind}_hook")(lambda *arguments: seen.append(arguments[0]))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == [optimizer]


def test_the_profiler():
    optimizer = stepped()
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#RMSprop.step" in [event.name for event in profile.function_events]


def test_a_step_of_a_subclass():
    class Louder(RMSprop):
        def step(self, closure=None):
            said.append("before")
            return super().step(closure)

    said = []
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = Louder([parameter])
    parameter.grad = torch.ones(3)
    optimizer.register_step_post_hook(lambda *_: said.append("hook"))
    optimizer.step()
    assert said[0] == "before"
    assert "hook" in said
    assert optimizer.state[parameter]["step"] == 1
