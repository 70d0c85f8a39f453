"""Row-wise state in PyTorch: one mean square to a row, beside the formula written out."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import randn, random_rows

from numba_rmsprop.torch import Embedding, RMSprop


class Formula:
    """Dense row-wise RMSprop, in float64 of PyTorch's own operations."""

    def __init__(self, parameter, lr=0.02, alpha=0.9, eps=1e-8, momentum=0.0, weight_decay=0.0):
        self.values = parameter.detach().double().clone()
        self.square_avg = torch.zeros(len(parameter), dtype=torch.double)
        self.buffer = torch.zeros_like(self.values)
        self.lr, self.alpha, self.eps, self.momentum, self.weight_decay = lr, alpha, eps, momentum, weight_decay

    def step(self, grad):
        grad = grad.to_dense().double() if grad.is_sparse else grad.double()
        grad = grad + self.weight_decay * self.values
        square = grad.square().flatten(1).mean(1)
        self.square_avg = self.alpha * self.square_avg + (1 - self.alpha) * square
        move = grad / (self.square_avg.sqrt() + self.eps).reshape(-1, *[1] * (grad.ndim - 1))
        if self.momentum:
            self.buffer = self.momentum * self.buffer + move
            move = self.buffer
        self.values -= self.lr * move


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_and_dense_steps(momentum):
    ours = nn.Parameter(randn(30, 19))
    opt = RMSprop([ours], lr=0.02, alpha=0.9, momentum=momentum, state="rowwise")
    formula = Formula(ours, momentum=momentum)
    for step in range(12):
        grad = random_rows((30, 19), 8, seed=step) if step % 4 else randn(30, 19, seed=step)
        opt.catch_up(ours, torch.arange(30)[::2])
        ours.grad = grad
        opt.step()
        formula.step(grad)
    opt.flush()
    torch.testing.assert_close(ours.detach(), formula.values.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(opt.state[ours]["square_avg"], formula.square_avg.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("columns", [5, 19, 32])
def test_weight_decay_enters_the_mean_square(columns):
    ours = nn.Parameter(randn(6, columns))
    opt = RMSprop([ours], lr=0.02, alpha=0.9, weight_decay=0.3, state="rowwise")
    formula = Formula(ours, weight_decay=0.3)
    for step in range(5):
        ours.grad = randn(6, columns, seed=step)
        opt.step()
        formula.step(ours.grad)
    torch.testing.assert_close(ours.detach(), formula.values.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["bfloat16", "transposed", "channels_last"])
def test_other_parameters(layout):
    wide = randn(4, 6, 3, 2)
    ours = {
        "bfloat16": wide.bfloat16(),
        "transposed": wide.transpose(1, 2).contiguous().transpose(1, 2),
        "channels_last": wide.to(memory_format=torch.channels_last),
    }[layout]
    ours = nn.Parameter(ours)
    opt, formula = RMSprop([ours], lr=0.02, alpha=0.9, state="rowwise"), Formula(ours)
    for step in range(3):
        ours.grad = randn(4, 6, 3, 2, seed=step).to(ours.dtype)
        opt.step()
        formula.step(ours.grad)
        formula.values = formula.values.to(ours.dtype).double()
    state = opt.state[ours]["square_avg"]
    assert (state.shape, state.dtype) == ((4,), torch.float32)
    torch.testing.assert_close(
        ours.detach().double(), formula.values, rtol=1e-2 if layout == "bfloat16" else 1e-5, atol=1e-5
    )
    torch.testing.assert_close(state, formula.square_avg.float(), rtol=1e-5, atol=0)


def test_groups_may_differ_in_it():
    table, bias, layer = Embedding(9, 4, sparse=True), nn.Parameter(randn(4)), nn.Parameter(randn(4, 4))
    groups = [{"params": [*table.parameters(), bias], "state": "rowwise"}, {"params": [layer]}]
    opt = RMSprop(groups, lr=0.1)
    (table(torch.tensor([3, 3, 1])) @ layer + bias).square().sum().backward()
    opt.step()
    assert [tuple(opt.state[p]["square_avg"].shape) for p in (table.weight, bias, layer)] == [(9,), (4,), (4, 4)]


def test_fused_embeddings_take_the_same_steps():
    tables = [Embedding(9, 16, _weight=randn(9, 16), sparse=True, fused=fused) for fused in (False, True)]
    for table in tables:
        opt = RMSprop(table.parameters(), lr=0.1, state="rowwise")
        for _ in range(3):
            opt.zero_grad()
            table(torch.tensor([3, 3, 1])).square().sum().backward()
            opt.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=0, atol=0)


def test_a_saved_state_goes_on():
    ours = nn.Parameter(randn(9, 4))
    opt = RMSprop([ours], lr=0.1, momentum=0.9, state="rowwise")
    ours.grad = random_rows((9, 4), 5)
    opt.step()
    other = copy.deepcopy(ours)
    again = RMSprop([other], lr=0.1, momentum=0.9, state="rowwise")
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    with torch.no_grad():
        other.copy_(ours)
    for one, parameter in ((opt, ours), (again, other)):
        parameter.grad = random_rows((9, 4), 5, seed=2)
        one.step()
        one.flush()
    torch.testing.assert_close(ours, other, rtol=0, atol=0)


def test_the_other_form_is_refused_with_a_remedy():
    ours = nn.Parameter(randn(9, 4))
    found = {}
    for state in ("elementwise", "rowwise"):
        opt = RMSprop([ours], state=state)
        ours.grad = randn(9, 4)
        opt.step()
        found[state] = opt.state_dict()
    for state, other in (("elementwise", "rowwise"), ("rowwise", "elementwise")):
        opt = RMSprop([ours], state=state)
        with pytest.raises(ValueError, match=rf"\['state'\]: expected '{state}'.*square_avg.flatten"):
            opt.load_state_dict(found[other])
        assert opt.param_groups[0]["state"] == state
    theirs = torch.optim.RMSprop([ours])
    theirs.step()
    with pytest.raises(
        ValueError, match=r"square_avg.*: expected shape \(9,\), got \(9, 4\); one is elementwise state"
    ):
        RMSprop([ours], state="rowwise").load_state_dict(theirs.state_dict())
    converted = found["elementwise"]
    converted["param_groups"][0]["state"] = "rowwise"
    entry = converted["state"][0]
    entry["square_avg"] = entry["square_avg"].flatten(1).mean(1)
    opt = RMSprop([ours], state="rowwise")
    opt.load_state_dict(converted)
    ours.grad = randn(9, 4)
    opt.step()


def test_a_group_that_changes_its_form_is_refused_by_all_its_parameters():
    ours = [nn.Parameter(randn(3, 2)) for _ in range(6)]
    opt = RMSprop(ours)
    for _ in range(3):
        for parameter in ours:
            parameter.grad = randn(3, 2)
        opt.step()
    opt.param_groups[0]["state"] = "rowwise"
    with pytest.raises(ValueError, match="one is elementwise state and the other row-wise"):
        opt.step()


def test_refused_options():
    for options in ({"state": "columns"}, {"state": "rowwise", "centered": True}):
        with pytest.raises(ValueError, match="state: expected"):
            RMSprop([nn.Parameter(randn(3, 2))], **options)
        with pytest.raises(ValueError, match="state: expected"):
            RMSprop([{"params": [nn.Parameter(randn(3, 2))], **options}])
