"""Parameters and states that are loaded or replaced while rows are behind."""

import copy
import gc

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import VARIANTS, Twins, assert_close, name_of, randn

from numba_rmsprop.torch import Embedding, RMSprop

SHAPE, DTYPE = (20, 3), torch.float64


def behind(**options):
    """Return twins; the rows of ours are behind."""
    twins = Twins(randn(*SHAPE, dtype=DTYPE), momentum=0.9, **options)
    twins.step_rows(range(6))
    assert (twins.ours[0] - twins.theirs[0]).abs().max() > 1e-3
    return twins


def other_state(seed=9):
    """Return a parameter and a state dict of PyTorch's optimizer from another run."""
    parameter = nn.Parameter(randn(*SHAPE, dtype=DTYPE, seed=seed))
    peer = torch.optim.RMSprop([parameter], momentum=0.9)
    for t in range(3):
        parameter.grad = randn(*SHAPE, dtype=DTYPE, seed=t)
        peer.step()
    return parameter.detach(), peer.state_dict()


def test_a_state_loaded_without_its_parameter():
    # the rows keep the values that a dense run would have by now
    twins, (_, saved) = behind(), other_state()
    for optimizer in twins.optimizers:
        optimizer.load_state_dict(copy.deepcopy(saved))  # a copy, since load_state_dict keeps the tensors
    twins.check()
    twins.step_rows(range(6, 12))
    twins.check()


@pytest.mark.parametrize("parameter_first", [True, False])
@pytest.mark.parametrize("how", ["copy_", "data"])
@pytest.mark.parametrize("then", ["step", "dense", "flush", "state_dict", "catch_up"])
def test_a_parameter_loaded_with_its_state(parameter_first, how, then):
    twins, (values, saved) = behind(), other_state()
    for optimizer, (p,) in ((twins.opt, twins.ours), (twins.peer, twins.theirs)):
        if not parameter_first:
            optimizer.load_state_dict(copy.deepcopy(saved))
        if how == "copy_":
            with torch.no_grad():
                p.copy_(values)
        else:
            p.data = values.clone()
        if parameter_first:
            optimizer.load_state_dict(copy.deepcopy(saved))
    (p,) = twins.ours
    if then == "flush":
        twins.opt.flush()
    elif then == "state_dict":
        twins.opt.state_dict()
    elif then == "catch_up":
        twins.opt.catch_up(p, torch.arange(20))
    elif then == "dense":
        twins.step(randn(*SHAPE, dtype=DTYPE))
    else:
        twins.step_rows([6])
    if then in ("flush", "state_dict", "catch_up"):
        assert torch.equal(p, values)
    twins.step_rows(range(7, 12))
    twins.check()


def test_a_model_with_plain_embedding_and_its_state():
    twins, (values, saved) = behind(), other_state()
    modules = [nn.Embedding(20, 3, dtype=DTYPE), nn.Embedding(20, 3, dtype=DTYPE)]
    modules[0].weight, modules[1].weight = twins.ours[0], twins.theirs[0]
    for module, optimizer in zip(modules, twins.optimizers, strict=True):
        module.load_state_dict({"weight": values})
        optimizer.load_state_dict(copy.deepcopy(saved))
    twins.step_rows(range(6, 9))
    twins.check()


@pytest.mark.parametrize("with_state", [True, False])
def test_a_model_with_our_embedding(with_state):
    # loaded rows are current: what they had missed before must not move them
    twins, (values, saved) = behind(), other_state()
    module, other = Embedding(20, 3, dtype=DTYPE), nn.Embedding(20, 3, dtype=DTYPE)
    module.weight, other.weight = twins.ours[0], twins.theirs[0]
    for each, optimizer in ((module, twins.opt), (other, twins.peer)):
        each.load_state_dict({"weight": values})
        assert torch.equal(each.weight, values)
        if with_state:
            optimizer.load_state_dict(copy.deepcopy(saved))
    assert torch.equal(module(torch.arange(20)), values)
    twins.step_rows(range(6, 12))
    twins.check()


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_replaced_tensors_of_the_state(options):
    twins = Twins(randn(*SHAPE, dtype=DTYPE), **options)
    twins.step(randn(*SHAPE, dtype=DTYPE))
    for k, name in enumerate([name for name in twins.peer.state[twins.theirs[0]] if name != "step"]):
        twins.opt.flush()
        for (p,), optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
            value = randn(*SHAPE, dtype=DTYPE, seed=20 + k)
            optimizer.state[p][name] = value.abs() + 2 if name == "square_avg" else value * 0.1
        mine = twins.opt.state[twins.ours[0]][name]
        twins.step_rows(range(3 * k, 3 * k + 3))
        twins.check()
        assert twins.opt.state[twins.ours[0]][name] is mine
    for (p,), optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        optimizer.state[p]["step"] = torch.tensor(40.0)
    twins.step_rows(range(3))
    twins.check()
    assert twins.opt.state[twins.ours[0]]["step"] == 43


def test_a_state_that_is_cleared():
    twins = behind()
    twins.opt.flush()
    for optimizer in twins.optimizers:
        optimizer.state.clear()
    twins.largest = {}
    twins.step_rows(range(6, 10))
    twins.check()
    assert twins.opt.state[twins.ours[0]]["step"] == 4


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_replaced_data(options, large):
    shape = (170, 100) if large else (6, 5)
    twins = Twins(randn(*shape), randn(3), **options)
    twins.step(randn(*shape), randn(3))
    for p in (twins.ours[0], twins.theirs[0]):
        p.data = randn(*shape, seed=3)
    twins.step(randn(*shape, seed=1), randn(3, seed=1))
    twins.check()
    for p in (twins.ours[0], twins.theirs[0]):
        p.data = randn(*reversed(shape), seed=4).t()
    twins.step(randn(*shape, seed=2), randn(3, seed=2))
    twins.check()


def test_a_second_optimizer_takes_over():
    twins = behind()
    first, old = twins.opt, twins.peer
    twins.opt = RMSprop(twins.ours, momentum=0.5, lr=0.1)
    twins.peer = torch.optim.RMSprop(twins.theirs, momentum=0.5, lr=0.1)
    twins.largest = {}
    twins.step_rows(range(6, 12))
    twins.check()
    # the first again; in the dense algorithm too, its rows move only when it takes a step
    twins.opt, twins.peer = first, old
    twins.step_rows(range(12, 18))
    twins.check()


def test_two_optimizers_in_turn():
    twins = behind()
    others = RMSprop(twins.ours, momentum=0.5), torch.optim.RMSprop(twins.theirs, momentum=0.5)
    for t in range(20):
        twins.step_rows([100 + t])
        twins.opt, twins.peer, others = *others, (twins.opt, twins.peer)
    twins.opt.flush()
    others[0].flush()
    assert_close(twins.ours[0], twins.theirs[0], 1e-12)


def test_the_rows_outlive_the_optimizer():
    twins = behind()
    module = Embedding(20, 3, dtype=DTYPE)
    module.weight = twins.ours[0]
    twins.opt = None
    gc.collect()
    assert_close(module(torch.tensor([3, 4])), twins.theirs[0][3:5], 1e-12)
    assert_close(module.state_dict()["weight"], twins.theirs[0].detach(), 1e-12)
    twins.opt = RMSprop(twins.ours, momentum=0.9)
    twins.peer = torch.optim.RMSprop(twins.theirs, momentum=0.9)
    twins.step_rows(range(4))
    twins.check()
