"""An optimizer in a training loop: schedulers, groups, closures, hooks, clipping, loss scaling."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch.optim import lr_scheduler
from torch_twins import VARIANTS, Twins, randn, random_rows

from numba_rmsprop.torch import RMSprop

SCHEDULERS = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3, 0.5),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=30),
    "OneCycleLR without momentum": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=30, cycle_momentum=False),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 4, base_momentum=0.5),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.7)], [5]
    ),
}


# Two of them change the momentum, so there must be one.
SCHEDULED = [
    (scheduler, options)
    for scheduler in SCHEDULERS
    for options in VARIANTS
    if options["momentum"] or scheduler not in ("OneCycleLR", "CyclicLR")
]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(("scheduler", "options"), SCHEDULED, ids=str)
def test_schedulers(scheduler, options, kind):
    twins = Twins(randn(30, 3, dtype=torch.float64), **options)
    schedulers = [SCHEDULERS[scheduler](optimizer) for optimizer in twins.optimizers]
    for t in range(20):
        dense = randn(30, 3, dtype=torch.float64, seed=t)
        twins.step(dense if kind == "dense" else random_rows((30, 3), 8, torch.float64, seed=t))
        for each in schedulers:
            each.step(*([1.0 + t % 3] if scheduler == "ReduceLROnPlateau" else []))
        for group, other in zip(twins.opt.param_groups, twins.peer.param_groups, strict=True):
            assert (group["lr"], group["momentum"]) == (other["lr"], other["momentum"])
    twins.check()


def test_the_momentum_may_start_at_0():
    # PyTorch makes the buffer with the first step, OneCycleLR sets the momentum before
    twins = Twins(randn(30, 3))
    schedulers = [lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30) for optimizer in twins.optimizers]
    for t in range(10):
        twins.step(randn(30, 3, seed=t))
        for each in schedulers:
            each.step()
    twins.check()


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_groups(kind):
    shape, dtype = (25, 4), torch.float64

    def grads(t, n):
        if kind == "dense":
            return [randn(*shape, dtype=dtype, seed=9 * t + k) for k in range(n)]
        return [random_rows(shape, 6, dtype, seed=9 * t + k) for k in range(n)]

    twins = Twins(randn(*shape, dtype=dtype), lr=0.02)
    twins.add_group(randn(*shape, dtype=dtype, seed=1), momentum=0.9, maximize=True)
    twins.step(*grads(0, 2))
    twins.add_group(randn(*shape, dtype=dtype, seed=2), centered=True, alpha=0.9, eps=1e-3, lr=torch.tensor(0.1))
    for t in range(1, 8):
        twins.step(*grads(t, 3))
    twins.check()
    for group, other in zip(twins.opt.param_groups, twins.peer.param_groups, strict=True):
        for name in ("lr", "momentum", "alpha", "eps", "centered", "weight_decay", "maximize"):
            assert group[name] == other[name]
    assert [group["sparse_update"] for group in twins.opt.param_groups] == ["exact"] * 3


def test_options_of_a_group_may_change():
    # not momentum and centered: PyTorch fails if their state appears later
    twins = Twins(randn(40, 3), momentum=0.9, centered=True)
    changes = [{"alpha": 0.9}, {"eps": 1e-2}, {"maximize": True}, {"weight_decay": 0.3}, {"momentum": 0.0}, {"lr": 0.5}]
    for t, change in enumerate([{}, *changes, {"momentum": 0.5}, {"maximize": False}]):
        twins.set(**change)
        twins.step(randn(40, 3, seed=t))
        twins.check()


def test_closures():
    parameter = nn.Parameter(torch.ones(3))
    opt, calls = RMSprop([parameter], lr=0.1), []

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        first = opt.step(closure)
    assert first is calls[0]
    assert first.item() == 3
    assert opt.step(closure).item() < 3
    assert len(calls) == 2
    assert opt.step() is None
    with pytest.raises(ZeroDivisionError):
        opt.step(lambda: 1 / 0)
    assert opt.state[parameter]["step"] == 3


def test_step_hooks():
    parameter, told = nn.Parameter(torch.ones(3)), []
    opt = RMSprop([parameter])
    parameter.grad = torch.ones(3)

    def before(optimizer, args, kwargs):
        told.append(("before", optimizer, args[1:], kwargs, parameter[0].item()))

    def after(optimizer, args, kwargs):
        told.append(("after", optimizer, args[1:], kwargs, parameter[0].item()))

    handles = opt.register_step_pre_hook(before), opt.register_step_post_hook(after)
    opt.step()
    now = parameter[0].item()
    assert told == [("before", opt, (), {}, 1.0), ("after", opt, (), {}, now)]
    assert now < 1
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(told) == 2


def test_hooks_of_the_state():
    parameter = nn.Parameter(torch.ones(3))
    opt, told = RMSprop([parameter]), []
    parameter.grad = torch.ones(3)
    opt.step()
    opt.register_state_dict_pre_hook(lambda optimizer: told.append("before saving"))
    opt.register_state_dict_post_hook(lambda optimizer, saved: {**saved, "more": 1})
    saved = opt.state_dict()
    assert saved["more"] == 1
    opt.register_load_state_dict_post_hook(lambda optimizer: told.append("after loading"))
    opt.load_state_dict(saved)
    assert told == ["before saving", "after loading"]


@pytest.mark.parametrize("make", [RMSprop, torch.optim.RMSprop])
def test_a_hook_may_translate_what_is_loaded(make):
    parameter = nn.Parameter(torch.ones(3))
    opt = make([parameter])
    parameter.grad = torch.ones(3)
    opt.step()
    wrapped = {"version": 2, "optimizer": opt.state_dict()}
    opt.register_load_state_dict_pre_hook(lambda optimizer, state_dict: state_dict["optimizer"])
    opt.load_state_dict(wrapped)
    assert opt.state[parameter]["step"] == 1


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_zero_grad(sparse, to_none):
    twins = Twins(randn(12, 2, dtype=torch.float64), momentum=0.9)
    for t in range(6):
        for optimizer in twins.optimizers:
            optimizer.zero_grad(set_to_none=to_none)
        if t % 3 == 2:  # without a backward pass, gradients are zero or None
            twins.opt.catch_up(twins.ours[0], torch.arange(12))
            twins.step()
            continue
        grad = random_rows((12, 2), 4, torch.float64, seed=t) if sparse else randn(12, 2, dtype=torch.float64, seed=t)
        twins.step(grad)
    twins.check()
    assert twins.opt.state[twins.ours[0]]["step"] == (4 if to_none else 6)


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_clipping(clip):
    twins = Twins(randn(12, 2), randn(5), centered=True)
    for t in range(5):
        twins.give(randn(12, 2, seed=t), randn(5, seed=t))
        for parameters in (twins.ours, twins.theirs):
            clip(parameters, 0.3)
        twins.step()
    twins.check()


@pytest.mark.parametrize("sparse", [True, False])
def test_scaled_losses(sparse):
    twins = Twins(randn(12, 2), momentum=0.9)
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3) for _ in twins.optimizers]
    for t in range(8):
        grad = random_rows((12, 2), 4, seed=t) if sparse else randn(12, 2, seed=t)
        if t == 4:
            grad = grad * torch.inf  # this step is left out
        for parameters, optimizer, scaler in zip((twins.ours, twins.theirs), twins.optimizers, scalers, strict=True):
            if optimizer is twins.opt:
                optimizer.catch_up(parameters[0], torch.arange(12))
            scaler.scale(torch.zeros(()))  # makes the scale
            parameters[0].grad = grad * 64.0 if optimizer is twins.opt else grad.to_dense() * 64.0
            scaler.step(optimizer)
            scaler.update(64.0)
    twins.largest = {}
    assert twins.opt.state[twins.ours[0]]["step"] == 7
    twins.check()
