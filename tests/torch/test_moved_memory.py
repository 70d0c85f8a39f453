"""Tensors whose memory has moved, and indices in memory that a step writes: right numbers, or an error."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from optimizer_internals import slots_of_parameter
from torch import nn
from torch_twins import Twins, assert_close, randn, random_rows, sparse

from numba_rmsprop.torch import Embedding, RMSprop
from numba_rmsprop.torch.parameter_state import ParameterState

MOMENTUM = {"momentum": 0.9}


def permutation(n):
    """Return a table whose elements, read as int64, are its row numbers in reverse order."""
    return torch.arange(n - 1, -1, -1).view(torch.float64)[:, None]


@pytest.mark.parametrize("n", [6, 20_000])
@pytest.mark.parametrize("at_the_first_step", [True, False])
def test_indices_in_the_memory_of_their_parameter(n, at_the_first_step):
    twins = Twins(torch.zeros(n, 1, dtype=torch.float64), lr=0.1)
    for _ in range(0 if at_the_first_step else 2):
        twins.step(sparse([1, 2], torch.ones(2, 1, dtype=torch.float64), (n, 1)))
    for (p,) in (twins.ours, twins.theirs):
        p.data.copy_(permutation(n))
    indices = twins.ours[0].data.view(torch.int64).T
    twins.reads = False
    twins.step(torch.sparse_coo_tensor(indices, torch.ones(n, 1, dtype=torch.float64), (n, 1), is_coalesced=False))
    twins.check()


@pytest.mark.parametrize("n", [6, 20_000])  # small parameters are stepped last
@pytest.mark.parametrize("steps_before", [0, 2])
def test_indices_in_the_memory_of_another_parameter_and_of_a_state(steps_before, n):
    first, table, third = (nn.Parameter(torch.zeros(n, 1, dtype=torch.float64)) for _ in range(3))
    values = torch.ones(n, 1, dtype=torch.float64)
    for where in ("parameter", "state"):
        opt = RMSprop([first, table, third])
        for p in (first, third):
            p.grad = values.clone()
        table.grad = sparse(range(n), values, (n, 1))
        for _ in range(steps_before + (where == "state")):
            opt.step()
        held = first.data if where == "parameter" else opt.state[first]["square_avg"]
        held.copy_(permutation(n))
        first.grad.fill_(1e-3)
        table.grad = torch.sparse_coo_tensor(held.view(torch.int64).T, values, (n, 1), is_coalesced=False)
        before = table.detach().clone()
        opt.step()
        assert (table < before).all()
        assert (table == table[0]).all()


def test_indices_to_catch_up_in_the_memory_that_catching_up_writes():
    n = 6
    twins = Twins(torch.zeros(n, 1, dtype=torch.float64), **MOMENTUM)
    twins.step(sparse(range(n), torch.ones(n, 1, dtype=torch.float64), (n, 1)))
    twins.step(sparse([0], torch.ones(1, 1, dtype=torch.float64), (n, 1)))
    buffer = dict.__getitem__(twins.opt.state[twins.ours[0]], "momentum_buffer")
    buffer.copy_(permutation(n))
    twins.opt.catch_up(twins.ours[0], buffer.view(torch.int64))
    own = slots_of_parameter(twins.opt, twins.ours[0])
    assert (own.clocks == own.steps).all()


@pytest.fixture(params=["small", "many", "large", "table"])
def run(request):
    """Return twins of small parameters, many of them, a large one, or a table, and their gradients."""
    kinds = {"small": ((6, 3), 1), "many": ((6, 3), 6), "large": ((170, 100), 1), "table": ((40, 3), 1)}
    shape, count = kinds[request.param]
    twins = Twins(*(randn(*shape, seed=k) for k in range(count)), **MOMENTUM)
    make = (lambda k: random_rows(shape, 5, seed=k)) if request.param == "table" else (lambda k: randn(*shape, seed=k))
    for t in range(3):
        twins.step(*(make(10 * t + k) for k in range(count)))
    return twins, [make(50 + k) for k in range(count)]


def refused(twins, grads, match):
    twins.opt.flush()
    twins.give(*grads)
    before = [p.detach().clone() for p in twins.ours[:-1]]
    with pytest.raises((TypeError, ValueError), match=match):
        twins.opt.step()
    assert all(torch.equal(p, was) for p, was in zip(twins.ours[:-1], before, strict=True))


def every(twins):
    return (twins.ours, twins.opt), (twins.theirs, twins.peer)


@pytest.mark.parametrize("whose", ["parameter", "square_avg", "momentum_buffer"])
def test_a_storage_that_moves(run, whose):
    twins, grads = run
    tensor = twins.ours[-1].data if whose == "parameter" else twins.opt.state[twins.ours[-1]][whose]
    before = tensor.data_ptr()
    tensor.share_memory_()
    assert tensor.data_ptr() != before
    twins.step(*grads)
    twins.check()


def cut(tensor, size=0):
    """Return a copy of a tensor whose storage then was resized, as sharded models do. PyTorch itself crashes there."""
    copied = tensor.detach().clone()
    copied.untyped_storage().resize_(size)
    return copied


@pytest.mark.parametrize("whose", ["parameter", "square_avg", "momentum_buffer", "step"])
@pytest.mark.parametrize("size", [0, 2])
def test_a_storage_that_is_too_small(run, whose, size):
    twins, grads = run
    twins.opt.flush()
    twins.give(*grads)
    last = twins.ours[-1]
    if whose == "parameter":
        last.data = cut(last, size)
    else:
        twins.opt.state[last][whose] = cut(twins.opt.state[last][whose], size)
    before = [p.detach().clone() for p in twins.ours[:-1]]
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a storage of at least"):
            twins.opt.step()
    assert all(torch.equal(p, was) for p, was in zip(twins.ours[:-1], before, strict=True))
    if whose == "parameter":
        with pytest.raises(ValueError, match="expected a storage of at least"):
            RMSprop([last])


def test_the_gradient_of_a_storage_that_was_freed(run):
    twins, grads = run
    twins.opt.flush()
    twins.give(*grads)
    grad = twins.ours[-1].grad
    if grad.is_sparse:
        made = torch.sparse_coo_tensor(grad._indices(), grad._values().clone(), grad.shape)
        made._values().untyped_storage().resize_(0)
        twins.ours[-1].grad = made
    else:
        twins.ours[-1].grad = cut(grad)
    before = [p.detach().clone() for p in twins.ours]
    with pytest.raises(ValueError, match="expected a storage of at least"):
        twins.opt.step()
    assert all(torch.equal(p, was) for p, was in zip(twins.ours, before, strict=True))


IN_PLACE = {
    "transposed": lambda tensor: tensor.t_(),
    "shorter": lambda tensor: tensor.resize_(2, 3),
    "flat": lambda tensor: tensor.resize_(tensor.numel()),
    "turned by data": lambda tensor: setattr(tensor, "data", tensor.data.t()),
}


@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("name", ["square_avg", "momentum_buffer"])
@pytest.mark.parametrize("taken", ["before", "now"])
def test_a_state_whose_shape_changes_in_place(run, change, name, taken):
    # PyTorch refuses such shapes too
    twins, grads = run
    tensor = twins.opt.state[twins.ours[-1]][name]
    if taken == "before":
        twins.step(*grads)
    change(tensor)
    refused(twins, grads, rf"\['{name}'\]: expected shape")


def test_a_square_state_that_is_transposed_in_place():
    twins = Twins(*(randn(5, 5, seed=k) for k in range(6)), **MOMENTUM)
    for t in range(4):
        twins.step(*(randn(5, 5, seed=10 * t + k) for k in range(6)))
        for parameters, optimizer in every(twins):
            optimizer.state[parameters[2]]["momentum_buffer"].t_()
    twins.check()


def test_a_parameter_of_another_dtype_at_the_same_place():
    table = torch.randn(40, 3)
    opt = RMSprop([table])
    table.grad = torch.randn(40, 3)
    opt.step()
    table.data = table.data.view(torch.int32)
    before = table.clone()
    with pytest.raises(TypeError, match="expected one of"):
        opt.step()
    assert torch.equal(table, before)


@pytest.mark.parametrize("how", ["data", "set_"])
def test_a_parameter_that_gets_other_memory(run, how):
    twins, grads = run
    twins.opt.flush()
    for p in (twins.ours[-1], twins.theirs[-1]):
        other = p.detach().clone().mul_(0.5)
        if how == "data":
            p.data = other
        else:
            with torch.no_grad():
                p.set_(other)
    twins.step(*grads)
    twins.check()


def test_a_state_that_is_the_parameter_itself_is_refused():
    parameter = nn.Parameter(randn(6, 2))
    opt = RMSprop([parameter], **MOMENTUM)
    parameter.grad = randn(6, 2)
    opt.step()
    opt.state[parameter]["momentum_buffer"] = parameter.data
    before = parameter.detach().clone()
    with pytest.raises(ValueError, match="overlaps"):
        opt.step()
    assert torch.equal(parameter, before)
    shared = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"momentum of parameter .*overlaps rms of parameter"):
        ParameterState(parameter, {"square_avg": shared, "momentum_buffer": shared}, opt.param_groups[0], "parameter")


def test_a_shared_table_is_read_where_it_is_now():
    twins = Twins(randn(20, 3, dtype=torch.float64), **MOMENTUM)
    for t in range(4):
        twins.step(random_rows((20, 3), 2, torch.float64, seed=t))
    twins.ours[0].data.share_memory_()
    module = Embedding(20, 3)
    module.weight = twins.ours[0]
    assert_close(module(torch.arange(20)), twins.theirs[0], 1e-12)
    assert_close(twins.opt.state[twins.ours[0]]["square_avg"], twins.peer.state[twins.theirs[0]]["square_avg"], 1e-12)
