"""Parameters and state are updated in place, and autograd knows."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import VARIANTS, Twins, name_of, randn, random_rows

from numba_rmsprop.torch import RMSprop

FULL = {"momentum": 0.9, "centered": True}


def places(twins):
    return [
        (p.data_ptr(), {name: (id(tensor), tensor.data_ptr()) for name, tensor in twins.opt.state[p].items()})
        for p in twins.ours
    ]


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_parameters_and_state_stay_in_their_memory(options):
    shapes = [(), (7,), (170, 100), (6, 5, 4, 3), (40, 3)]
    tensors = [randn(*shape) for shape in shapes]
    tensors[3] = tensors[3].to(memory_format=torch.channels_last)
    twins = Twins(*tensors, **options)
    grads = [torch.empty_like(p).normal_() for p in twins.ours]
    twins.step(*grads)
    before, ids = places(twins), [id(p) for p in twins.ours]
    for t in range(4):
        twins.step(*grads[:4], random_rows((40, 3), 5, seed=t) if t % 2 else grads[4])
    twins.opt.flush()
    twins.opt.state_dict()
    assert places(twins) == before
    assert [id(p) for p in twins.ours] == ids


def test_gradients_are_left_as_they_are():
    twins = Twins(randn(5), randn(170, 100), randn(30, 2), **FULL, maximize=True)
    grads = [randn(5), randn(170, 100), random_rows((30, 2), 6)]
    before = [grad.clone() for grad in grads]
    twins.step(*grads)
    for p, grad, was in zip(twins.ours, grads, before, strict=True):
        assert p.grad is grad
        assert torch.equal(grad.to_dense(), was.to_dense())


@pytest.mark.parametrize("shape", [(5,), (170, 100)])
def test_values_written_into_the_state_are_used(shape):
    twins = Twins(randn(*shape), **FULL)
    twins.step(randn(*shape))
    for t, name in enumerate(("square_avg", "momentum_buffer", "grad_avg")):
        for (p,), optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
            tensor = optimizer.state[p][name]
            tensor.mul_(0.5).add_(2.0 if name == "square_avg" else 0.1)
            optimizer.state[p]["step"].add_(10)
        twins.step(randn(*shape, seed=t))
        twins.check()
    assert twins.opt.state[twins.ours[0]]["step"] == 34


def test_values_written_into_a_parameter_are_used():
    twins = Twins(randn(30, 2), momentum=0.9)
    for t in range(6):
        twins.step(random_rows((30, 2), 4, seed=t))
        twins.opt.flush()  # rows that are behind would overwrite the values later
        for (p,) in (twins.ours, twins.theirs):
            with torch.no_grad():
                p.clamp_(-0.5, 0.5)
    twins.check()


def test_versions_grow_with_each_step():
    parameters = [nn.Parameter(randn(*shape)) for shape in ((), (5,), (170, 100), (30, 2), (4,))]
    opt = RMSprop(parameters, momentum=0.9)
    for p in parameters[:4]:
        p.grad = torch.ones_like(p)
    for sparse in (False, True):
        if sparse:
            parameters[3].grad = random_rows((30, 2), 4)
        before = [p._version for p in parameters]
        opt.step()
        grown = [p._version > was for p, was in zip(parameters, before, strict=True)]
        assert grown == [True, True, True, True, False]


@pytest.mark.parametrize("shape", [(5,), (170, 100)])
def test_autograd_notices_a_step(shape):
    parameter = nn.Parameter(randn(*shape))
    opt = RMSprop([parameter])
    loss = parameter.square().sum()  # saves the parameter
    parameter.grad = randn(*shape)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_state_is_made_at_the_first_step():
    parameter = nn.Parameter(randn(5))
    opt = RMSprop([parameter], **FULL)
    assert not opt.state
    assert opt.state_dict()["state"] == {}
    parameter.grad = randn(5)
    opt.step()
    assert list(opt.state[parameter]) == ["step", "square_avg", "momentum_buffer", "grad_avg"]
    assert not any(tensor.requires_grad for tensor in opt.state[parameter].values())
    peer = torch.optim.RMSprop([parameter], **FULL)
    peer.step()
    assert list(opt.state[parameter]) == list(peer.state[parameter])


def test_parameters_and_state_outlive_the_optimizer():
    parameter = nn.Parameter(randn(170, 100))
    opt = RMSprop([parameter], **FULL)
    parameter.grad = torch.ones(170, 100)
    opt.step()
    state = dict(opt.state[parameter])
    expected = {name: tensor.clone() for name, tensor in state.items()}
    del opt
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_optimizers_are_freed_with_their_parameters():
    parameter = nn.Parameter(randn(30, 2))
    opt = RMSprop([parameter], momentum=0.9)
    parameter.grad = random_rows((30, 2), 3)
    opt.step()
    told = []
    weakref.finalize(parameter, told.append, "parameter")
    del parameter, opt
    gc.collect()
    assert told == ["parameter"]
