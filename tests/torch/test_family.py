"""Nesterov's momentum, bias correction, where square_avg starts, and decoupled weight decay, in PyTorch."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch_twins import sparse

import numba_rmsprop
from numba_rmsprop.torch import RMSprop

OPTAX = json.loads((Path(__file__).parents[1] / "support/optax_trajectories.json").read_text("utf-8"))
GRADIENTS = np.array(OPTAX["gradients"])
CASES = [case for case in OPTAX["cases"] if not case["options"]["eps_in_sqrt"]]
FAMILY = {"momentum": 0.9, "nesterov": True, "bias_correction": True, "initial_scale": 0.5}
START = np.arange(8.0).reshape(4, 2) / 4


def name_of(case):
    return ", ".join(f"{name}={value}" for name, value in case["options"].items() if value)


def made(parameters, options):
    options = {name: value or 0.0 for name, value in options.items() if name != "eps_in_sqrt"}
    return RMSprop(parameters, OPTAX["learning_rate"], OPTAX["rho"], OPTAX["epsilon"], **options)


def as_gradient(grad, *, is_sparse):
    grad = torch.from_numpy(np.array(grad))
    if not is_sparse:
        return grad
    rows = torch.nonzero(grad.any(dim=1)).flatten()
    return sparse(rows, grad[rows], grad.shape)


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_as_optax(case, dtype, is_sparse):
    options = case["options"]
    parameter = torch.nn.Parameter(torch.from_numpy(START.astype(dtype)))
    tolerance = {"float64": 1e-9, "float32": 3e-5}[dtype]
    if options["centered"] and options["bias_correction"] and not options["initial_scale"]:  # rounding alone
        tolerance = {"float64": 1e-4, "float32": 0.1}[dtype]
    opt = made([parameter], options)
    for grad, expected in zip(GRADIENTS.astype(dtype), case[dtype], strict=True):
        parameter.grad = as_gradient(grad, is_sparse=is_sparse)
        opt.step()
        opt.flush()
        found = parameter.detach().numpy()
        assert np.isfinite(found).all()
        if not np.isnan(expected).any():  # optax takes the root of a variance below 0
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("state", ["elementwise", "rowwise"])
def test_decoupled_decay_of_sparse_rows_is_that_of_dense_ones(momentum, state):
    options = {"momentum": momentum, "weight_decay": 0.3, "decoupled_weight_decay": True, "state": state}
    parameters = [torch.nn.Parameter(torch.from_numpy(START.copy())) for _ in range(2)]
    opts = [RMSprop([parameter], 0.1, **options) for parameter in parameters]
    for grad in GRADIENTS:
        for k, parameter in enumerate(parameters):
            parameter.grad = as_gradient(grad, is_sparse=k == 1)
            if k == 1:
                opts[k].catch_up(parameter, torch.arange(4))
            opts[k].step()
    opts[1].flush()
    torch.testing.assert_close(*parameters, rtol=1e-12, atol=1e-12)
    if not momentum and state == "elementwise":
        var = START.copy()
        opt = numba_rmsprop.RMSprop(0.1, 0.99, epsilon=1e-8, weight_decay=0.3)
        for grad in GRADIENTS:
            opt.apply_gradients([(grad, var)])
        np.testing.assert_allclose(parameters[0].detach(), var, rtol=1e-12)


def test_parameters_that_miss_steps_count_their_own():
    together = [torch.nn.Parameter(torch.ones(3)) for _ in range(6)]
    alone = [torch.nn.Parameter(torch.ones(3)) for _ in range(6)]
    opt, others = RMSprop(together, 0.1, **FAMILY), [RMSprop([one], 0.1, **FAMILY) for one in alone]
    for step in range(6):
        for k, (one, other) in enumerate(zip(together, alone, strict=True)):
            missing = step % 3 == k % 3
            one.grad = other.grad = None if missing else torch.full((3,), step + 1.0 - k)
        opt.step()
        for other in others:
            other.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_goes_on_with_its_product(dtype):
    parameter = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    opt = RMSprop([parameter], 0.1, **FAMILY)
    for alpha in (0.9, 0.5):
        opt.param_groups[0]["alpha"] = alpha
        parameter.grad = torch.ones(3, dtype=dtype)
        opt.step()
    assert opt.state_dict()["state"][0]["alpha_product"].tolist() == pytest.approx([0.45, 2])
    other = torch.nn.Parameter(parameter.detach().clone())
    loaded = RMSprop([other], 0.1, **FAMILY)
    loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    both = (opt, parameter), (loaded, other)
    for one, its in both:
        its.grad = torch.ones(3, dtype=dtype)
        one.step()
    torch.testing.assert_close(parameter, other, rtol=0, atol=0)


def test_a_state_without_a_product_is_as_if_alpha_had_not_changed():
    parameter = torch.nn.Parameter(torch.ones(3))
    peer = torch.optim.RMSprop([parameter], 0.1, 0.9)
    for _ in range(3):
        parameter.grad = torch.ones(3)
        peer.step()
    opt = RMSprop([parameter], 0.1, 0.9, bias_correction=True)
    opt.load_state_dict(peer.state_dict())
    parameter.grad = torch.ones(3)
    opt.step()
    assert opt.state[parameter]["alpha_product"].tolist() == pytest.approx([0.9**4, 4])
    found = opt.state_dict()
    double = torch.float64
    for wrong in (
        torch.tensor(0.5),
        torch.tensor([2.0, 1.0], dtype=double),
        torch.tensor([0.5, -1.0], dtype=double),
        0.5,
    ):
        found["state"][0]["alpha_product"] = wrong
        with pytest.raises(ValueError, match="expected the product of alpha over the steps, from 0 to 1"):
            opt.load_state_dict(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_torch", [False, True])
def test_steps_without_correction_count_in_a_product(by_torch, dtype):
    parameter = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    opt = RMSprop([parameter], 0.1, 0.9, bias_correction=True)
    other = torch.optim.RMSprop([parameter], 0.1, 0.9) if by_torch else opt
    parameter.grad = torch.ones(3, dtype=dtype)
    opt.step()
    if by_torch:
        other.load_state_dict(opt.state_dict())
    opt.param_groups[0]["bias_correction"] = False
    for _ in range(3):
        other.step()
    opt.load_state_dict(other.state_dict())
    opt.param_groups[0]["bias_correction"] = True
    opt.step()
    assert opt.state[parameter]["alpha_product"].tolist() == pytest.approx([0.9**5, 5])


def test_a_run_whose_momentum_is_0_for_a_time_can_be_loaded():
    parameter = torch.nn.Parameter(torch.ones(3))
    opt = RMSprop([parameter], momentum=0.9, nesterov=True)
    parameter.grad = torch.ones(3)
    opt.step()
    opt.param_groups[0]["momentum"] = 0.0
    opt.step()
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.step()


def test_alpha_may_not_become_1_with_correction():
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = RMSprop([first, first, second], bias_correction=True)
    first.grad = second.grad = torch.ones(3)
    opt.param_groups[0]["alpha"] = 1.0
    with pytest.raises(ValueError, match=r"alpha: expected less than 1 with bias_correction=True, got 1\.0"):
        opt.step()
    assert first.eq(1).all()
    assert not opt.state


def test_without_decay_nothing_falls_behind(recwarn):
    table = torch.nn.Embedding(5, 2, sparse=True)
    opt = RMSprop(table.parameters(), decoupled_weight_decay=True)
    for decay in (0.0, 0.0, 0.1, 0.0):
        opt.param_groups[0]["weight_decay"] = decay
        table(torch.tensor([1])).sum().backward()
        opt.step()
        assert not recwarn.list


def test_an_optimizer_that_a_former_version_pickled_takes_steps():
    parameter = torch.nn.Parameter(torch.ones(3))
    opt = RMSprop([parameter])
    for options in (opt.defaults, *opt.param_groups):
        for name in ("nesterov", "bias_correction", "initial_scale", "decoupled_weight_decay", "clipnorm"):
            del options[name]
    state, opt = opt.__getstate__(), RMSprop.__new__(RMSprop)
    opt.__setstate__(state)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    parameter.grad = torch.ones(3)
    opt.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True}, "nesterov: expected momentum above 0 with it, got 0"),
        ({"bias_correction": True, "alpha": 1.0}, "alpha: expected less than 1 with bias_correction=True, got 1.0"),
        ({"initial_scale": -1.0}, "initial_scale: expected 0 <= initial_scale"),
        ({"initial_scale": float("inf")}, "initial_scale: expected 0 <= initial_scale"),
        ({"inital_scale": 1.0}, "unexpected keyword|unknown option"),
    ],
)
def test_options_that_there_are_not(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RMSprop([torch.nn.Parameter(torch.ones(3))], **options)


def test_complex_parameters_start_from_the_same_scale():
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    opt = RMSprop([parameter], initial_scale=0.5)
    parameter.grad = torch.zeros(3, dtype=torch.complex64)
    opt.step()
    assert torch.view_as_real(opt.state[parameter]["square_avg"]).eq(0.5 * 0.99).all()
