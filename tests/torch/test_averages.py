"""Moving averages of parameters, against those of torch.optim.swa_utils on dense gradients."""

import contextlib
import copy
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_twins import sparse

from numba_rmsprop.torch import Embedding, RMSprop, averages

VARIANTS = [
    {},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "decoupled_weight_decay": True, "weight_decay": 0.1, "bias_correction": True},
    {"state": "rowwise", "momentum": 0.5},
    {"centered": True},
]


def gradient(step):
    rng = np.random.default_rng(step)
    rows = torch.from_numpy(rng.permutation(12)[: 1 + step % 3])
    return sparse(rows, torch.from_numpy(rng.standard_normal((len(rows), 4))), (12, 4))


def averaged(options):
    """Return a table trained with sparse gradients, its optimizer, a dense twin, and the twin's averaged model."""
    start = torch.from_numpy(np.random.default_rng(9).standard_normal((12, 4)))
    table, twin = (torch.nn.Embedding(12, 4, sparse=True, _weight=start.clone()) for _ in range(2))
    opt = RMSprop(table.parameters(), 0.1, 0.9, 1e-3, use_ema=True, ema_momentum=0.8, **options)
    dense = RMSprop(twin.parameters(), 0.1, 0.9, 1e-3, **options)
    return table, opt, twin, dense, AveragedModel(twin, multi_avg_fn=get_ema_multi_avg_fn(0.8))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_as_averaged_models_of_dense_gradients(options):
    table, opt, twin, dense, expected = averaged(options)
    for step in range(30):
        grad = gradient(step)
        opt.catch_up(table.weight, grad.coalesce().indices())
        table.weight.grad, twin.weight.grad = grad, grad.to_dense()
        opt.step()
        dense.step()
        expected.update_parameters(twin)
        if step in (0, 1, 17, 29):
            average = opt.state[table.weight]["average"]
            np.testing.assert_allclose(average, expected.module.weight.detach(), rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(table.weight.detach(), twin.weight.detach(), rtol=1e-11, atol=1e-12)


def test_parameters_hold_their_averages_for_a_while():
    layer = torch.nn.Sequential(Embedding(200_000, 2), torch.nn.Linear(2, 1), torch.nn.Linear(1, 1).bfloat16())
    scalar = torch.nn.Parameter(torch.tensor(1.0))
    opt = RMSprop([*layer.parameters(), scalar], 0.1, momentum=0.9, use_ema=True, ema_momentum=0.5)
    for step in range(3):
        loss = layer[:2](torch.tensor([step, 199_999])).sum() * scalar
        (loss + layer[2](torch.ones(1, dtype=torch.bfloat16)).sum()).backward()
        opt.step()
        opt.zero_grad()
    opt.flush()
    parameters = [parameter for group in opt.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    averages = [opt.state[parameter]["average"].clone() for parameter in parameters]
    with contextlib.suppress(ZeroDivisionError), opt.averages():
        for parameter, average in zip(parameters, averages, strict=True):
            assert torch.equal(parameter, average.to(parameter.dtype))
        for call in (opt.step, opt.state_dict, lambda: opt.load_state_dict({}), opt.averages().__enter__):
            with pytest.raises(RuntimeError, match=r"expected parameters, got their averages; leave `with"):
                call()
        raise ZeroDivisionError
    for parameter, values, average in zip(parameters, before, averages, strict=True):
        assert torch.equal(parameter, values)
        assert torch.equal(opt.state[parameter]["average"], average)
        assert average.dtype == (torch.float32 if parameter.dtype is torch.bfloat16 else parameter.dtype)
    opt.step()


def test_state_dicts_and_copies_go_on_with_the_average():
    table, opt, *_ = averaged({"momentum": 0.9})

    def step(weight, one, number):
        one.catch_up(weight, gradient(number).coalesce().indices())
        weight.grad = gradient(number)
        one.step()

    for number in range(5):
        step(table.weight, opt, number)
    saved = copy.deepcopy(opt.state_dict())
    again = torch.nn.Embedding(12, 4, sparse=True, _weight=table.weight.detach().clone())
    loaded = RMSprop(again.parameters(), 0.5, use_ema=True)
    with pytest.raises(ValueError, match="averages: expected parameters with one, got none; set use_ema"):
        loaded.averages().__enter__()
    loaded.load_state_dict(saved)
    with loaded.averages():
        assert torch.equal(again.weight, opt.state[table.weight]["average"])
    plain = torch.nn.Embedding(12, 4, sparse=True, _weight=table.weight.detach().clone())
    torch.optim.RMSprop(plain.parameters()).load_state_dict(saved)
    for number in range(5, 9):
        step(table.weight, opt, number)
        step(again.weight, loaded, number)
    assert torch.equal(again.weight, table.weight)
    assert torch.equal(loaded.state[again.weight]["average"], opt.state[table.weight]["average"])


@pytest.mark.parametrize("count", [1, 6])  # six small ones are looked at together
def test_an_average_may_begin_later_and_pause(count):
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(count)]
    twin = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt, plain = RMSprop(parameters, 0.1, ema_momentum=0.5), RMSprop([twin], 0.1)

    def step(*, use_ema):
        opt.param_groups[0]["use_ema"] = use_ema
        for parameter in (*parameters, twin):
            parameter.grad = torch.ones(3, dtype=torch.float64)
        opt.step()
        plain.step()
        assert all(torch.equal(parameter, twin) for parameter in parameters)
        return [opt.state[parameter].get("average") for parameter in parameters]

    for _ in range(3):
        assert step(use_ema=False) == [None] * count
    assert all(torch.equal(average, twin) for average in step(use_ema=True))
    expected = twin.detach().clone()
    for use_ema in (True, True, False, False, False, True, True):
        found = step(use_ema=use_ema)
        expected = (expected + twin.detach()) / 2 if use_ema else expected
        for average in found:
            torch.testing.assert_close(average, expected)


def trained(*parameters, **options):
    opt = RMSprop(parameters, 0.1, use_ema=True, ema_momentum=0.5, **options)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        opt.step()
    return opt


def test_an_interrupt_amid_the_exchange_undoes_it(monkeypatch):
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    opt = trained(*parameters)
    before = [(p.detach().clone(), opt.state[p]["average"].clone()) for p in parameters]
    show = averages.Pair.show

    def interrupted(pair):
        show(pair)
        if pair.parameter is parameters[1]:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(averages.Pair, "show", interrupted)
    with pytest.raises(KeyboardInterrupt), opt.averages():
        pass
    monkeypatch.setattr(averages.Pair, "put_back", lambda pair: interrupted(pair))
    monkeypatch.setattr(averages.Pair, "show", show)
    with pytest.raises(KeyboardInterrupt), opt.averages():
        pass
    for parameter, (values, average) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, values)
        assert torch.equal(opt.state[parameter]["average"], average)
    opt.step()


def test_what_is_written_meanwhile_is_told():
    parameter = torch.nn.Parameter(torch.ones(3))
    opt = trained(parameter)
    told = pytest.warns(UserWarning, match=r"a parameter .* was written to within `with optimizer.averages\(\):`")
    with told, opt.averages(), torch.no_grad():
        parameter.zero_()
    assert (parameter < 0).all()
    assert torch.equal(opt.state[parameter]["average"], torch.zeros(3))


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_parameters_that_share_memory_or_come_twice():
    base = torch.arange(4.0, dtype=torch.float64)
    first, second = torch.nn.Parameter(base), torch.nn.Parameter(base.view(2, 2))
    opt = trained(first, second)
    before = first.detach().clone()
    with opt.averages():
        assert not torch.equal(first, before)
    assert torch.equal(first, before)
    twice = torch.nn.Parameter(torch.ones(2))
    opt = trained(twice, twice)
    average = opt.state[twice]["average"].clone()
    with opt.averages():
        assert torch.equal(twice, average)


def test_rows_are_caught_up_before_they_are_written_to():
    table, twin = (Embedding(4, 2, dtype=torch.float64, max_norm=1.0, _weight=torch.ones(4, 2).double()) for _ in "ab")
    opt, dense = (RMSprop(each.parameters(), 0.1, use_ema=True, ema_momentum=0.5) for each in (table, twin))
    weights = [next(each.parameters()) for each in (table, twin)]  # module.weight would bring all rows up to date
    for rows in ([0, 1], [1], [1], [0], [1]):
        for each, one, weight in ((table, opt, weights[0]), (twin, dense, weights[1])):
            each(torch.tensor(rows))  # max_norm scales them down
            with torch.no_grad():
                one.catch_up(weight, torch.tensor([2]))
                weight[2] += 1
            grad = torch.zeros(4, 2).double()
            grad[rows] = 1.0
            weight.grad = grad if one is dense else sparse(torch.tensor(rows), grad[rows], (4, 2))
            one.step()
    torch.testing.assert_close(opt.state[table.weight]["average"], dense.state[twin.weight]["average"])


def test_lazy_rows_begin_with_their_values():
    table = torch.nn.Parameter(torch.full((3, 2), 5.0))
    opt = RMSprop([table], 0.1, use_ema=True, ema_momentum=0.5, sparse_update="lazy")
    for row in (0, 1):
        table.grad = sparse(torch.tensor([row]), torch.ones(1, 2), (3, 2))
        opt.step()
    average = opt.state[table]["average"]
    torch.testing.assert_close(average, torch.stack([table[0], (5.0 + table[1]) / 2, table[2]]).detach())


def test_small_parameters_of_which_some_begin():
    first, second = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    opt = RMSprop([first, second], 0.1, use_ema=True, ema_momentum=0.5)
    first.grad = torch.ones(3, dtype=torch.float64)
    opt.step()
    kept = first.detach().clone()
    second.grad = torch.ones(3, dtype=torch.float64)
    opt.step()
    assert torch.equal(opt.state[second]["average"], second)
    torch.testing.assert_close(opt.state[first]["average"], (kept + first.detach()) / 2)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momenta_that_there_are_not(momentum):
    with pytest.raises(ValueError, match="ema_momentum: expected 0 <= ema_momentum <= 1"):
        RMSprop([torch.nn.Parameter(torch.ones(3))], use_ema=True, ema_momentum=momentum)
