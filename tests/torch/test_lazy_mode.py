"""Lazy mode, and sparse gradients that are refused or warned of."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import COMBINATIONS, Twins, name_of, randn, random_rows, sparse, twin_of

from numba_rmsprop.torch import RMSprop
from numba_rmsprop.torch.gradients import as_gradient
from numba_rmsprop.torch.parameter_state import ParameterState


def snapshot(opt):
    """Return all that a refused step must leave unchanged."""
    parameters = [p for group in opt.param_groups for p in group["params"]]
    # opt.state[p] itself would bring it up to date
    entries = [dict.items(opt.state[p]) if p in opt.state else None for p in parameters]
    states = [None if entry is None else {name: t.clone() for name, t in entry} for entry in entries]
    return [p.detach().clone() for p in parameters], states, [p._version for p in parameters]


def assert_unchanged(opt, before):
    now = snapshot(opt)
    assert now[2] == before[2]
    for was, new in zip(before[0], now[0], strict=True):
        assert torch.equal(was, new)
    for was, new in zip(before[1], now[1], strict=True):
        assert (was is None) == (new is None)
        assert was is None or all(torch.equal(was[name], new[name]) for name in {**was, **new})


def refused(opt, error, match):
    before = snapshot(opt)
    with pytest.raises(error, match=match):
        opt.step()
    assert_unchanged(opt, before)


@pytest.fixture(params=[False, True], ids=["at the first step", "later"])
def three(request):
    """Return three parameters; the gradient of the last will be refused after the others were checked."""
    parameters = [nn.Parameter(randn(*shape)) for shape in ((4,), (6, 2), (6, 2))]
    opt = RMSprop(parameters, momentum=0.9)
    for k, p in enumerate(parameters):
        p.grad = random_rows(p.shape, 3, seed=k) if k else randn(4)
    if request.param:
        opt.step()
        opt.flush()
        opt.catch_up(parameters[1], torch.arange(6))
        parameters[0].grad = randn(4, seed=5)
    return opt, parameters


def test_weight_decay_is_refused(three):
    opt, _ = three
    opt.param_groups[0]["weight_decay"] = 0.1
    refused(opt, ValueError, r"parameter 1 of group 0 .*weight_decay.*sparse_update='lazy'.*sparse=False")
    opt.param_groups[0]["weight_decay"] = 0.0
    opt.step()
    opt.param_groups[0]["weight_decay"] = 0.1
    opt.param_groups[0]["sparse_update"] = "lazy"
    opt.step()


@pytest.mark.parametrize(
    ("indices", "named"), [([0, 6], 6), ([-1, 0], -1), ([2, 2**40], 2**40), ([-(2**62)], -(2**62))]
)
def test_indices_out_of_bounds(three, indices, named):
    opt, parameters = three
    values = randn(len(indices), 2)
    parameters[2].grad = torch.sparse_coo_tensor(
        torch.tensor([indices]), values, (6, 2), check_invariants=False, is_coalesced=True
    )
    refused(opt, IndexError, rf"gradient of parameter 2 of group 0: indices\[\d\] is {named}; expected 0 <= index < 6")


@pytest.mark.parametrize("indices", [[[0, 6], [0, 1]], [[0, 1], [0, 2]], [[0, 1], [0, -1]], [[-1, 0], [0, 1]]])
def test_indices_out_of_bounds_along_any_axis(three, indices):
    opt, parameters = three
    parameters[2].grad = torch.sparse_coo_tensor(
        torch.tensor(indices), randn(2), (6, 2), check_invariants=False, is_coalesced=True
    )
    refused(opt, IndexError, r"[iI]nd(ex|ices)")


@pytest.mark.parametrize("form", [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc, torch.Tensor.to_mkldnn])
@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC) tensor support")
def test_other_layouts(form):
    """PyTorch does not accept them as ``grad`` yet, so the test calls our check alone."""
    own = ParameterState(nn.Parameter(randn(6, 2)), {}, RMSprop([nn.Parameter(randn(1))]).param_groups[0], "parameter")
    with pytest.raises(TypeError, match=r"gradient of parameter .*expected a strided or sparse COO tensor"):
        as_gradient(form(randn(6, 2)), own)


def test_unknown_modes():
    with pytest.raises(ValueError, match=r"sparse_update: expected one of \('exact', 'lazy'\), got 'eager'"):
        RMSprop([nn.Parameter(torch.ones(2))], sparse_update="eager")
    opt = RMSprop([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=r"got 'eager'"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "sparse_update": "eager"})
    assert len(opt.param_groups) == 1


def take(opt, parameter, t, read=None):
    parameter.grad = random_rows(parameter.shape, 2, seed=t)
    if read is not None:
        read()
    opt.step()


def test_rows_stepped_without_being_read_warn_once():
    parameter = nn.Parameter(randn(20, 2))
    opt = RMSprop([parameter], momentum=0.9)
    take(opt, parameter, 0)  # nothing was behind
    with pytest.warns(UserWarning, match=r"parameter 0 of group 0 .*Embedding.*catch_up.*flush") as told:
        take(opt, parameter, 1)
    assert told[0].filename == __file__  # the line that called step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(opt, parameter, 2)  # it comes only once


@pytest.mark.parametrize("reading", ["catch_up", "flush", "state_dict", "dense", "no momentum", "lazy"])
def test_ways_of_stepping_that_do_not_warn(reading):
    parameter = nn.Parameter(randn(20, 2))
    lazy = "lazy" if reading == "lazy" else "exact"
    opt = RMSprop([parameter], momentum=0.0 if reading == "no momentum" else 0.9, sparse_update=lazy)
    read = {
        "catch_up": lambda: opt.catch_up(parameter, torch.tensor([3])),
        "flush": opt.flush,
        "state_dict": opt.state_dict,
    }.get(reading)
    for t in range(4):
        if reading == "dense" and t % 2:
            parameter.grad = randn(20, 2)
            opt.step()
        else:
            take(opt, parameter, t, read)


def test_a_refused_step_comes_before_the_warning():
    # a warning that is an error must not leave half a step
    parameters = [nn.Parameter(randn(4)), nn.Parameter(randn(20, 2))]
    opt = RMSprop(parameters, momentum=0.9)
    parameters[0].grad = randn(4)
    take(opt, parameters[1], 0)
    parameters[1].grad = random_rows((20, 2), 2, seed=1)
    before = snapshot(opt)
    with pytest.raises(UserWarning, match="fall behind"):  # the suite makes warnings errors
        opt.step()
    assert_unchanged(opt, before)


class Lazy:
    """Rows that torch.optim.RMSprop steps as separate parameters, only when they are touched."""

    def __init__(self, table, **options):
        self.rows = [twin_of(row) for row in table]
        self.opts = [torch.optim.RMSprop([row], **options) for row in self.rows]

    def step(self, grad):
        grad = grad.coalesce()
        for row, value in zip(grad.indices()[0].tolist(), grad.values(), strict=True):
            self.rows[row].grad = value.clone()
            self.opts[row].step()

    def states(self, name):
        never = torch.zeros_like(self.rows[0])
        return torch.stack([o.state[r].get(name, never) for o, r in zip(self.opts, self.rows, strict=True)]).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_lazy_steps(options, dtype):
    start = randn(30, 4, dtype=dtype)
    parameter = twin_of(start)
    opt, lazy = RMSprop([parameter], **options, sparse_update="lazy"), Lazy(start, **options)
    for t in range(12):
        rows = [(t * t + k * k) % 25 for k in range(7)]  # some twice
        parameter.grad = sparse(rows, randn(7, 4, dtype=dtype, seed=t), (30, 4))
        opt.step()
        lazy.step(parameter.grad)
    tolerance = {"rtol": 1e-6 if dtype is torch.float32 else 1e-12, "atol": 2e-6 if dtype is torch.float32 else 1e-13}
    torch.testing.assert_close(parameter.detach(), torch.stack(lazy.rows).detach(), **tolerance)
    state = opt.state[parameter]
    assert state["step"] == 12
    for name in state.keys() - {"step"}:
        torch.testing.assert_close(state[name], lazy.states(name), **tolerance)
    assert torch.equal(parameter[25:], start[25:])
    assert not any(state[name][25:].any() for name in state.keys() - {"step"})


def test_lazy_groups_beside_exact_ones():
    twins = Twins(randn(20, 3), momentum=0.9)
    twins.add_group(randn(20, 3), own={"sparse_update": "lazy"}, momentum=0.9)
    for t in range(8):
        twins.opt.catch_up(twins.ours[0], torch.arange(20))
        twins.step(*[random_rows((20, 3), 3, seed=t)] * 2)
    twins.opt.flush()
    torch.testing.assert_close(twins.ours[0], twins.theirs[0], rtol=0, atol=1e-6)
    assert (twins.ours[1] - twins.theirs[1]).abs().max() > 1e-3  # other rows move with their momentum


def test_the_mode_may_change():
    # rows are first brought up to date
    twins = Twins(randn(20, 3, dtype=torch.float64), momentum=0.9)
    for t in range(5):
        twins.step(random_rows((20, 3), 3, torch.float64, seed=t))
    twins.opt.param_groups[0]["sparse_update"] = "lazy"
    every_row = sparse(range(20), randn(20, 3, dtype=torch.float64), (20, 3))
    twins.step(every_row)  # lazy and exact are the same where every row is touched
    twins.check()
    twins.opt.param_groups[0]["sparse_update"] = "exact"
    for t in range(5):
        twins.step(random_rows((20, 3), 3, torch.float64, seed=t))
    twins.check()
