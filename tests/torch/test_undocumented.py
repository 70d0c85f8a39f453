"""Undocumented names of PyTorch: they are there, and all goes on without them. Hooks and the profiler see each step."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

import torch.optim.optimizer as base
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from numba_rmsprop.torch import Embedding, RMSprop, undocumented
from numba_rmsprop.torch.undocumented import is_watched, without_idle_hooks


def stepped(kind=RMSprop):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer


def test_the_names_are_there():
    optimizer = stepped()
    assert not is_watched(optimizer)
    assert hasattr(torch.autograd.profiler, undocumented.PROFILER)
    assert all(hasattr(base, name) for name in undocumented.HOOKS_OF_ALL)
    assert all(name in vars(optimizer) for name in undocumented.OWN_HOOKS)
    assert hasattr(torch.ones(3), undocumented.VERSION)


@pytest.mark.parametrize(
    ("name", "gone"), [("PROFILER", "gone"), ("HOOKS_OF_ALL", ("gone",) * 2), ("OWN_HOOKS", ("gone",) * 2)]
)
def test_without_a_name_every_step_counts_as_watched(monkeypatch, name, gone):
    monkeypatch.setattr(undocumented, name, gone)
    optimizer = stepped()
    assert is_watched(optimizer)
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 1


def test_without_the_wrapper_pytorch_wraps_the_step_itself(monkeypatch):
    step = RMSprop.step.__wrapped__
    with monkeypatch.context() as patch:
        patch.delattr(torch.optim.Optimizer, "profile_hook_step")
        assert without_idle_hooks(step) is step

    class Plain(RMSprop):
        pass

    Plain.step = step
    optimizer, seen = stepped(Plain), []
    optimizer.register_step_post_hook(lambda *arguments: seen.append(arguments[0]))
    optimizer.step()
    assert seen == [optimizer]


def test_without_counts_of_writes_steps_are_the_same(monkeypatch):
    def trained():
        table = Embedding(20, 3, _weight=torch.ones(20, 3))
        optimizer = RMSprop(table.parameters(), momentum=0.9)
        for row in range(6):
            optimizer.zero_grad()
            table(torch.tensor([row, 7])).square().sum().backward()
            optimizer.step()
        return table, optimizer

    expected = trained()[0].weight
    monkeypatch.setattr(undocumented, "VERSION", "gone")
    table, optimizer = trained()
    assert torch.equal(table.weight, expected)
    optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(table.weight, expected)


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
