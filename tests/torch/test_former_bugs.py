"""Calls that once crashed, or went wrong without an error."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from optimizer_internals import remembered_group, slots_of_parameter
from processes import run
from torch import nn
from torch_twins import Twins, assert_close, randn, random_rows

from numba_rmsprop.torch import Embedding, RMSprop
from numba_rmsprop.torch.gradients import as_gradient
from numba_rmsprop.torch.parameter_state import ParameterState


def behind(**options):
    """Return a table with rows that are behind, a dense twin, and the optimizers of both."""
    table = Embedding(30, 4, dtype=torch.float64)
    twin = nn.Parameter(table.weight.detach().clone())
    opt = RMSprop(table.parameters(), momentum=0.9, **options)
    peer = torch.optim.RMSprop([twin], momentum=0.9)
    for t in range(4):
        step(table, twin, opt, peer, t)
    return table, twin, opt, peer


def step(table, twin, opt, peer, t):
    twin.grad = random_rows((30, 4), 5, torch.float64, seed=t).to_dense()
    table.weight.grad = twin.grad.to_sparse(1)
    table(torch.arange(3))
    opt.step()
    peer.step()


@pytest.mark.parametrize("moved", ["parameter", "state"])
def test_memory_that_moves_to_be_shared(moved):
    """In a process of its own, since a step that used the old memory would crash."""
    done = run("move_to_shared_memory.py", moved)
    assert done.returncode == 0, done.stderr


def test_a_shared_table_keeps_what_is_behind():
    table, twin, opt, _ = behind()
    table.weight.data.share_memory_()
    opt.flush()
    assert_close(table.weight, twin, 1e-12)


def test_values_without_indices():
    """Another thread may add to the gradient while it is read."""

    class Torn:
        layout, dtype, device, shape = torch.sparse_coo, torch.float32, torch.device("cpu"), torch.Size((6, 2))
        is_cpu = True

        def detach(self):
            return self

        def sparse_dim(self):
            return 1

        def _indices(self):
            return torch.tensor([[1, 2, 3]])

        def _values(self):
            return torch.ones(2, 2)

    group = RMSprop([nn.Parameter(randn(1))]).param_groups[0]
    own = ParameterState(nn.Parameter(randn(6, 2)), {}, group, "parameter")
    with pytest.raises(ValueError, match=r"expected as many values as indices.*got 2 and 3"):
        as_gradient(Torn(), own)


@pytest.mark.parametrize("size", [0, 3])
def test_a_count_of_steps_that_is_not_one_number(size):
    twins = Twins(randn(5))
    twins.step(randn(5))
    before = twins.ours[0].detach().clone()
    twins.opt.state[twins.ours[0]]["step"] = torch.zeros(size)
    with pytest.raises(ValueError, match=r"\['step'\]: expected one number"):
        twins.opt.step()
    assert torch.equal(before, twins.ours[0])


@pytest.mark.parametrize("step", [torch.tensor(1.0, requires_grad=True), torch.tensor(1), torch.tensor([1.0]), 1])
def test_other_counts_of_steps(step):
    twins = Twins(randn(5))
    twins.step(randn(5))
    twins.opt.state[twins.ours[0]]["step"] = step
    twins.step(randn(5))
    assert float(twins.opt.state[twins.ours[0]]["step"]) == 2


@pytest.mark.parametrize("parameter", [randn(5).to(torch.cfloat).conj(), randn(5).to(torch.cfloat).conj().imag])
def test_lazy_conjugates_are_refused(parameter):
    with pytest.raises(TypeError, match="lazy conjugate or negative"):
        RMSprop([nn.Parameter(parameter)])


def test_other_dtypes_while_rows_are_behind():
    table, twin, opt, peer = behind()
    table.float()
    assert_close(table.weight, twin.float(), 1e-6)
    table.double()
    step(table, twin, opt, peer, 9)
    opt.flush()
    assert_close(table.weight, twin, 1e-5)


def test_a_table_that_is_drawn_anew():
    table, _, opt, _ = behind()
    torch.manual_seed(3)
    table.reset_parameters()
    torch.manual_seed(3)
    drawn = torch.empty_like(table.weight).normal_()
    opt.flush()
    assert torch.equal(table.weight, drawn)


def test_a_small_parameter_that_became_smaller():
    parameters = [nn.Parameter(randn(8, seed=k)) for k in range(5)]
    opt = RMSprop(parameters)
    for p in parameters:
        p.grad = randn(8)
    for _ in range(3):
        opt.step()
    whole, before = parameters[0].detach(), parameters[0].detach().clone()
    parameters[0].data = parameters[0].data[:4]
    with pytest.raises((TypeError, ValueError), match="shape"):
        opt.step()
    assert torch.equal(whole, before)


def test_calls_without_effect_are_refused():
    table, twin, opt, _ = behind()
    weight = table.weight
    with pytest.raises(TypeError, match=r"expected a parameter, got list; pass several as flush\(\*parameters\)"):
        opt.flush([weight])
    with pytest.raises(ValueError, match="expected one of this optimizer's groups"):
        opt.flush(nn.Parameter(randn(3)))
    with pytest.raises(ValueError, match="expected one of this optimizer's groups"):
        opt.catch_up(nn.Parameter(randn(3)), torch.tensor([0]))
    with pytest.raises(TypeError, match=r"expected integers, got torch\.bool"):
        opt.catch_up(weight, torch.ones(30, dtype=torch.bool))
    for wrong in (-5, 30):
        with pytest.raises(IndexError, match="expected 0 <= index < 30"):
            opt.catch_up(weight, torch.tensor([1, wrong]))
    opt.catch_up(weight, torch.tensor([[1, 2], [2, 7]]))
    assert_close(weight[[1, 2, 7]], twin[[1, 2, 7]], 1e-12)


def test_a_mode_that_is_set_to_a_wrong_value_later():
    table, _, opt, _ = behind()
    opt.param_groups[0]["sparse_update"] = "Exact"
    with pytest.raises(ValueError, match="sparse_update: expected one of"):
        opt.step()
    opt.param_groups[0]["sparse_update"] = "lazy"
    table(torch.arange(3))
    opt.step()


def test_halves_are_added_up_as_float32():
    parameter = nn.Parameter(torch.zeros(3, 2, dtype=torch.float16))
    entries = torch.tensor([60000.0, 60000.0, -60000.0], dtype=torch.float16)
    parameter.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1, 1], [0, 0, 0]]), entries, (3, 2))
    RMSprop([parameter], lr=0.1).step()
    assert_close(parameter, torch.tensor([[0, 0], [-1.0, 0], [0, 0]], dtype=torch.float16), 1e-3)


def test_no_momentum_for_a_while_sweeps_no_table():
    """Only the first step without momentum needs every row."""
    twins = Twins(randn(40, 2, dtype=torch.float64), momentum=0.9)
    for t in range(30):
        twins.set(momentum=0.9 if t % 15 < 5 else 0.0)
        twins.step(random_rows((40, 2), 3, torch.float64, seed=t))
        own = slots_of_parameter(twins.opt, twins.ours[0])
        if t % 15 > 5:
            assert own.floor < own.steps - 1, t
    twins.check()


def test_two_kinds_of_small_parameters_need_one_plan():
    parameters = [nn.Parameter(randn(4, dtype=dtype)) for dtype in (torch.float32, torch.float64) for _ in range(6)]
    opt = RMSprop(parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    opt.step()
    plan = remembered_group(opt, 0)
    for _ in range(3):
        opt.step()
    assert remembered_group(opt, 0) is plan
