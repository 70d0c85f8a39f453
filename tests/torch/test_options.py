"""Options of PyTorch's RMSprop, misspelt options, and malformed state dicts."""

import copy
import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import Twins, randn, random_rows

from numba_rmsprop.torch import RMSprop

NOTHING = {"foreach": None, "capturable": False, "differentiable": False}


def parameters():
    return [nn.Parameter(randn(3))]


@pytest.mark.parametrize("options", [NOTHING, {"foreach": True}, {"foreach": False}, {"fused": None}, {"fused": False}])
def test_options_of_pytorch_that_change_no_number_are_taken(options):
    for opt in (RMSprop(parameters(), **options), RMSprop([{"params": parameters(), **options}])):
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.step()
        RMSprop(parameters()).load_state_dict(opt.state_dict())
        torch.optim.RMSprop(parameters()).load_state_dict(opt.state_dict())


def test_a_state_of_pytorch_with_all_its_options():
    theirs = torch.optim.RMSprop(parameters(), foreach=True)
    RMSprop(parameters()).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("name", ["capturable", "differentiable", "fused"])
def test_options_of_pytorch_that_are_missing_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: expected False, got True: "):
        RMSprop(parameters(), **{name: True})
    opt = RMSprop(parameters())
    with pytest.raises(ValueError, match=f"^group 1: {name}: expected False, got True: "):
        opt.add_param_group({"params": parameters(), name: True})
    assert len(opt.param_groups) == 1


def test_the_order_of_arguments_is_pytorchs():
    ours, theirs = (list(inspect.signature(kind.__init__).parameters) for kind in (RMSprop, torch.optim.RMSprop))
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("momentun", "momentum"),
        ("weigth_decay", "weight_decay"),
        ("sparse_updates", "sparse_update"),
        ("learning_rate", "lr"),
        ("rho", "alpha"),
        ("epsilon", "eps"),
    ],
)
def test_misspelt_options_of_a_group(given, meant):
    with pytest.raises(ValueError, match=f"unknown option {given!r}; did you mean {meant!r}"):
        RMSprop([{"params": parameters(), given: 0.5}])


def test_options_of_others_stay_in_a_group():
    # as schedulers and users put them there
    others = {
        "initial_lr": 0.1,
        "max_momentum": 0.9,
        "base_momentum": 0.8,
        "name": "table",
        "lr_mult": 2.0,
        "max_lr": 1.0,
    }
    group = RMSprop([{"params": parameters(), **others}]).param_groups[0]
    assert group.items() >= others.items()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -0.1}, ValueError, "group 0: Invalid learning rate: -0.1"),
        ({"lr": torch.ones(2)}, ValueError, "group 0: Tensor lr must be 1-element"),
        ({"momentum": float("nan")}, ValueError, "group 0: Invalid momentum value: nan"),
        ({"eps": "small"}, TypeError, "group 0: Invalid epsilon value: expected a number, got 'small'"),
        ({"alpha": None}, TypeError, "group 0: Invalid alpha value: expected a number, got None"),
    ],
)
def test_options_of_a_group_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        RMSprop([{"params": parameters(), **options}])


@pytest.mark.parametrize("lr", [torch.tensor(0.02), torch.tensor([0.02]), torch.tensor(0.02, requires_grad=True)])
def test_a_tensor_as_learning_rate(lr):
    twins = Twins(randn(5), lr=lr)
    for t in range(3):
        twins.step(randn(5, seed=t))
        with torch.no_grad():
            lr.mul_(0.5)  # in place, as schedulers do
    twins.check()


@pytest.fixture(scope="module")
def trained():
    """Return the state of an optimizer of two parameters, one with rows that are behind."""
    tables = [nn.Parameter(randn(6, 2)), nn.Parameter(randn(4))]
    opt = RMSprop(tables, momentum=0.9)
    for t in range(3):
        opt.catch_up(tables[0], torch.arange(6))
        tables[0].grad, tables[1].grad = random_rows((6, 2), 2, seed=t), randn(4)
        opt.step()
    return opt, copy.deepcopy(opt.state_dict())


def entry(name, value):
    return lambda saved: saved["state"][0].__setitem__(name, value)


def option(name, value):
    return lambda saved: saved["param_groups"][0].__setitem__(name, value)


MALFORMED = {
    "no state": (lambda saved: saved.pop("state"), TypeError, r"\['state'\]: expected a dict, got a dict without it"),
    "no groups": (lambda saved: saved.pop("param_groups"), TypeError, r"\['param_groups'\]: expected a list"),
    "state is a list": (lambda saved: saved.update(state=[]), TypeError, r"\['state'\]: expected a dict, got list"),
    "groups are a dict": (lambda saved: saved.update(param_groups={}), TypeError, "expected a list, got dict"),
    "a group is None": (
        lambda saved: saved.update(param_groups=[None]),
        TypeError,
        r"\['param_groups'\]\[0\]: expected a dict, got NoneType",
    ),
    "no params": (lambda saved: saved["param_groups"][0].pop("params"), ValueError, r"expected \['params'\] in it"),
    "no alpha": (lambda saved: saved["param_groups"][0].pop("alpha"), ValueError, r"expected \['alpha'\] in it"),
    "params is a number": (option("params", 3), TypeError, r"\['params'\]: expected a list of numbers, got 3"),
    "params are lists": (option("params", [[0], [1]]), TypeError, r"\['params'\]: expected a list of numbers"),
    "a number that comes twice": (option("params", [0, 0]), ValueError, "0 stands for two parameters"),
    "one parameter too few": (option("params", [0]), ValueError, "doesn't match the size of optimizer's group"),
    "lr is a word": (option("lr", "fast"), TypeError, "Invalid learning rate: expected a number, got 'fast'"),
    "lr is NaN": (option("lr", float("nan")), ValueError, "Invalid learning rate: nan"),
    "momentum is negative": (option("momentum", -1), ValueError, "Invalid momentum value: -1"),
    "another mode": (option("sparse_update", "eager"), ValueError, "sparse_update: expected one of"),
    "fused": (option("fused", True), ValueError, "fused: expected False"),
    "a parameter too many": (
        lambda saved: saved["state"].update({7: {}}),
        ValueError,
        r"\['state'\]\[7\]: expected the ",
    ),
    "a parameter by name": (
        lambda saved: saved["state"].update(w={}),
        ValueError,
        r"\['state'\]\['w'\]: expected the ",
    ),
    "an entry is None": (
        lambda saved: saved["state"].update({0: None}),
        TypeError,
        "expected a dict of tensors, got Non",
    ),
    "another optimizer's": (
        lambda saved: saved["state"].update({0: {"step": 1.0, "exp_avg": torch.zeros(6, 2)}}),
        ValueError,
        r"expected \['square_avg'\] in it, as RMSprop has them; got \['step', 'exp_avg'\]",
    ),
    "no step": (lambda saved: saved["state"][0].pop("step"), ValueError, r"expected \['step'\] in it"),
    "step is NaN": (entry("step", torch.tensor(float("nan"))), ValueError, r"\['step'\]: expected .* got nan"),
    "step is negative": (entry("step", -1), ValueError, r"\['step'\]: expected the number of steps, 0 or more, got -1"),
    "step is a word": (entry("step", "three"), TypeError, r"\['step'\]: expected the number of steps, got str"),
    "step is None": (entry("step", None), TypeError, r"\['step'\]: expected the number of steps, got NoneType"),
    "many steps": (entry("step", torch.ones(2)), ValueError, r"\['step'\]: expected one number, got shape \(2,\)"),
    "a slot is None": (entry("square_avg", None), TypeError, r"\['square_avg'\]: expected a tensor of shape \(6, 2\)"),
    "a slot is an array": (entry("square_avg", np.zeros((6, 2))), TypeError, "expected a tensor .* got ndarray"),
    "a slot of another shape": (
        entry("momentum_buffer", torch.zeros(2, 6)),
        ValueError,
        r"\['momentum_buffer'\]: expected shape \(6, 2\), got \(2, 6\)",
    ),
    "a slot of integers": (
        entry("square_avg", torch.ones(6, 2, dtype=torch.int64)),
        TypeError,
        "expected torch.float32",
    ),
    "a complex slot": (entry("square_avg", torch.ones(6, 2, dtype=torch.cfloat)), TypeError, "expected torch.float32"),
    "a sparse slot": (entry("square_avg", torch.ones(6, 2).to_sparse()), TypeError, "got torch.sparse_coo"),
    "a slot without memory": (entry("square_avg", torch.ones(6, 2, device="meta")), TypeError, "on meta"),
}


@pytest.mark.parametrize(("spoil", "error", "match"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_states_are_refused_by_name(trained, spoil, error, match):
    opt, good = trained
    before = copy.deepcopy(opt.state_dict())
    saved = copy.deepcopy(good)
    spoil(saved)
    with pytest.raises(error, match=match):
        opt.load_state_dict(saved)
    now = opt.state_dict()
    assert now["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert state.keys() == now["state"][number].keys()
        assert all(torch.equal(tensor, now["state"][number][name]) for name, tensor in state.items())


@pytest.mark.parametrize("saved", [None, 3, [], "state.pt", RMSprop])
def test_things_that_are_no_state_dict_are_refused(trained, saved):
    with pytest.raises(TypeError, match=r"state_dict: expected what RMSprop\.state_dict returned, got"):
        trained[0].load_state_dict(saved)


def test_a_parameter_without_a_state_is_fine(trained):
    _, good = trained
    saved = copy.deepcopy(good)
    saved["state"] = {0: {}, 1: saved["state"][1]}
    other = RMSprop([nn.Parameter(randn(6, 2)), nn.Parameter(randn(4))])
    other.load_state_dict(saved)
    for p in other.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    other.step()
    assert [float(other.state[p]["step"]) for p in other.param_groups[0]["params"]] == [1, 4]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("square_avg", None, TypeError),
        ("square_avg", np.zeros(4), TypeError),
        ("square_avg", torch.ones(3), ValueError),
        ("momentum_buffer", torch.ones(4, dtype=torch.int32), TypeError),
        ("step", "three", TypeError),
        ("step", torch.tensor(float("inf")), ValueError),
    ],
)
@pytest.mark.parametrize("parameters", [1, 6])
def test_wrong_values_put_into_a_state_are_refused_by_name(parameters, name, value, error):
    twins = Twins(*(randn(4, seed=k) for k in range(parameters)), momentum=0.9)
    for t in range(2):
        twins.step(*(randn(4, seed=t) for _ in range(parameters)))
    before = [p.detach().clone() for p in twins.ours]
    twins.opt.state[twins.ours[-1]][name] = value
    with pytest.raises(error, match=rf"state\[parameter {parameters - 1} of group 0\]\['{name}'\]: expected|expected"):
        twins.opt.step()
    assert all(torch.equal(p, was) for p, was in zip(twins.ours, before, strict=True))


@pytest.mark.parametrize("entry", [5, [], "state"])
def test_an_entry_that_is_no_dict(entry):
    twins = Twins(randn(4))
    twins.step(randn(4))
    twins.opt.state[twins.ours[0]] = entry
    with pytest.raises(TypeError, match="expected a dict of tensors"):
        twins.opt.step()
