"""State dicts go to torch.optim.RMSprop and back; copies, files, and states that are refused."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import (
    COMBINATIONS,
    VARIANTS,
    Twins,
    assert_close,
    name_of,
    randn,
    random_rows,
    through_a_file,
    twin_of,
)

from numba_rmsprop.torch import Embedding, RMSprop

SHAPES = [(), (12,), (30, 4)]
DTYPES = [torch.float32, torch.float64]


def gradient(shape, dtype, t, sparse):
    return random_rows(shape, 4, dtype, seed=t) if sparse and shape else randn(*shape, dtype=dtype, seed=t)


def give(twins, t, sparse, dtype):
    twins.give(*(gradient(shape, dtype, 10 * t + k, sparse) for k, shape in enumerate(SHAPES)))


# A sparse gradient with weight decay is refused.
CASES = [
    (options, sparse) for options in COMBINATIONS for sparse in (False, True) if not sparse * options["weight_decay"]
]
NAMES = [f"{name_of(options)}-{'sparse' if sparse else 'dense'}" for options, sparse in CASES]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("options", "sparse"), CASES, ids=NAMES)
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_going_on_with_the_other(options, sparse, first, dtype):
    start = [randn(*shape, dtype=dtype) for shape in SHAPES]
    twins, uninterrupted = Twins(*start, **options), Twins(*start, **options)
    own, others = (twins.ours, twins.opt), (twins.theirs, twins.peer)
    (before, opt), (after, peer) = (own, others) if first == "ours" else (others, own)
    for t in range(6):
        for each in (twins, uninterrupted):
            give(each, t, sparse, dtype)
        opt.step()
        uninterrupted.step()
    peer.load_state_dict(through_a_file(opt.state_dict(), weights_only=True))
    with torch.no_grad():
        for p, q in zip(after, before, strict=True):
            p.copy_(q)
    for t in range(6, 12):
        for each in (twins, uninterrupted):
            give(each, t, sparse, dtype)
        peer.step()
        uninterrupted.step()
    twins.opt.flush()
    for k, (p, q) in enumerate(zip(after, uninterrupted.theirs, strict=True)):
        expected = {"parameter": q, **uninterrupted.peer.state[q]}
        found = {"parameter": p, **peer.state[p]}
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            tolerance = 1e-6 if dtype is torch.float32 else 1e-12
            assert_close(found[name], tensor, tolerance, name, uninterrupted.largest[k, name])


def trained(options, steps=5, sparse=True, **own):
    """Return an optimizer and a table whose rows are behind."""
    table = nn.Parameter(randn(30, 4, dtype=torch.float64))
    opt = RMSprop([table], **options, **own)
    train(opt, table, range(steps), sparse)
    return opt, table


def train(opt, table, when, sparse=True):
    for t in when:
        table.grad = gradient((30, 4), torch.float64, t, sparse)
        opt.catch_up(table, torch.tensor([0]))
        opt.step()


def assert_same_run(opt, table, other, copied):
    """Check that both go on to the same bits."""
    assert copied is not table
    assert copied.data_ptr() != table.data_ptr()
    train(opt, table, range(5, 12))
    opt.flush()
    train(other, copied, range(5, 12))
    other.flush()
    assert torch.equal(table, copied)
    for name, tensor in opt.state[table].items():
        assert torch.equal(tensor, other.state[copied][name])


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies(options, how):
    opt, table = trained(options)
    other, copied = how((opt, table))
    assert other.param_groups[0]["params"][0] is copied
    assert repr(other) == repr(opt)
    assert other.defaults == opt.defaults
    assert_same_run(opt, table, other, copied)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_of_a_model_and_its_optimizer(how):
    model = nn.Sequential(Embedding(30, 4, dtype=torch.float64))
    opt = RMSprop(model.parameters(), momentum=0.9)
    train(opt, model[0].weight, range(5))
    other_model, other = how((model, opt))
    assert_same_run(opt, model[0].weight, other, other_model[0].weight)


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_files(options):
    opt, table = trained(options)
    saved = through_a_file({"opt": opt.state_dict(), "table": table.detach()}, weights_only=True)
    copied = nn.Parameter(torch.zeros(30, 4, dtype=torch.float64))
    with torch.no_grad():
        copied.copy_(saved["table"])
    other = RMSprop([copied])
    other.load_state_dict(saved["opt"])
    assert_same_run(opt, table, other, copied)


def test_loaded_tensors_are_copied():
    opt, table = trained({"momentum": 0.9})
    other = RMSprop([twin_of(table)])
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    before = copy.deepcopy(opt.state_dict())
    train(other, other.param_groups[0]["params"][0], range(3))
    for name, tensor in opt.state_dict()["state"][0].items():
        assert torch.equal(tensor, before["state"][0][name])


@pytest.mark.parametrize(("mode", "other"), [("exact", "lazy"), ("lazy", "exact")])
def test_the_mode_is_saved(mode, other):
    opt, table = trained({"momentum": 0.9}, sparse_update=mode)
    second = RMSprop([twin_of(table)], sparse_update=other)
    saved = opt.state_dict()
    second.load_state_dict(saved)
    assert second.param_groups[0]["sparse_update"] == mode
    # PyTorch's state has no mode, and the group keeps its own
    peer = torch.optim.RMSprop([twin_of(table)], momentum=0.5)
    third = RMSprop([{"params": [twin_of(table)], "sparse_update": mode}], sparse_update=other)
    third.load_state_dict(peer.state_dict())
    assert third.param_groups[0]["sparse_update"] == mode
    assert third.param_groups[0]["momentum"] == 0.5
    assert copy.deepcopy(third).param_groups[0]["sparse_update"] == mode


def test_pytorch_takes_a_saved_mode_as_it_takes_all_options():
    opt, table = trained({"momentum": 0.9})
    peer = torch.optim.RMSprop([twin_of(table)])
    peer.load_state_dict(opt.state_dict())
    peer.param_groups[0]["params"][0].grad = torch.ones(30, 4, dtype=torch.float64)
    peer.step()
    again = RMSprop([twin_of(table)], sparse_update="lazy")
    again.load_state_dict(peer.state_dict())
    assert again.param_groups[0]["sparse_update"] == "exact"
    assert again.state_dict()["state"][0]["step"] == 6


def refuse(opt, saved, match):
    before = copy.deepcopy((opt.state_dict(), opt.param_groups))
    with pytest.raises(ValueError, match=match):
        opt.load_state_dict(saved)
    now = opt.state_dict()
    assert now["param_groups"] == before[0]["param_groups"]
    for k, state in before[0]["state"].items():
        assert all(torch.equal(tensor, now["state"][k][name]) for name, tensor in state.items())


def test_refused_states():
    opt, table = trained({"momentum": 0.9})
    two = RMSprop([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]).state_dict()
    refuse(opt, two, "loaded state dict contains a parameter group that doesn't match the size of optimizer's group")
    groups = RMSprop([{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(2))]}])
    refuse(opt, groups.state_dict(), "loaded state dict has a different number of parameter groups")
    for name in ("differentiable", "capturable"):
        peer = torch.optim.RMSprop([twin_of(table)])
        saved = peer.state_dict()
        saved["param_groups"][0][name] = True
        refuse(opt, saved, name)


@pytest.mark.parametrize("step", [5, 5.0, torch.tensor(5.0), torch.tensor(5), torch.tensor(5.0, dtype=torch.float64)])
def test_steps_of_older_states(step):
    twins = Twins(randn(30, 4), momentum=0.9)
    twins.step(randn(30, 4))
    saved = copy.deepcopy(twins.peer.state_dict())
    saved["state"][0]["step"] = step
    for optimizer in twins.optimizers:
        optimizer.load_state_dict(copy.deepcopy(saved))
    twins.step(randn(30, 4, seed=1))
    twins.check()
    assert twins.opt.state[twins.ours[0]]["step"] == 6


@pytest.mark.parametrize("missing", ["momentum", "centered", "maximize", "sparse_update"])
def test_older_states_without_an_option(missing):
    opt, table = trained({}, sparse=False)
    saved = opt.state_dict()
    del saved["param_groups"][0][missing]
    other = RMSprop([twin_of(table)])
    other.load_state_dict(saved)
    train(other, other.param_groups[0]["params"][0], range(2), sparse=False)
    assert other.state_dict()["state"][0]["step"] == 7


def test_names_of_parameters():
    model = nn.Sequential(nn.Linear(3, 2))
    opt, plain = RMSprop(model.named_parameters()), RMSprop(model.parameters())
    assert opt.param_groups[0]["param_names"] == ["0.weight", "0.bias"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "0.bias"]
    plain.load_state_dict(opt.state_dict())
    opt.load_state_dict(plain.state_dict())
    assert opt.param_groups[0]["param_names"] == ["0.weight", "0.bias"]
    assert plain.state_dict()["state"].keys() == {0, 1}


def test_states_of_another_dtype_are_converted():
    # as PyTorch does, save for step
    opt, table = trained({"momentum": 0.9, "centered": True}, sparse=False)
    for parameter in (twin_of(table.detach().float()), twin_of(table.detach().float().t())):
        if parameter.shape != table.shape:
            continue
        other = RMSprop([parameter])
        other.load_state_dict(opt.state_dict())
        state = other.state[parameter]
        assert {tensor.dtype for name, tensor in state.items() if name != "step"} == {torch.float32}
        parameter.grad = torch.ones(30, 4)
        other.step()


def test_a_state_in_another_order_of_memory():
    start = randn(6, 5, 4, 3)
    twins = Twins(start, momentum=0.9)
    twins.step(randn(6, 5, 4, 3))
    parameter = twin_of(start.to(memory_format=torch.channels_last))
    with torch.no_grad():
        parameter.copy_(twins.ours[0])
    opt = RMSprop([parameter])
    opt.load_state_dict(twins.opt.state_dict())
    parameter.grad = randn(6, 5, 4, 3, seed=1)
    opt.step()
    twins.step(randn(6, 5, 4, 3, seed=1))
    assert torch.equal(parameter, twins.ours[0])
    assert torch.equal(opt.state[parameter]["momentum_buffer"], twins.opt.state[twins.ours[0]]["momentum_buffer"])
