"""Ctrl-C at any moment of a call with PyTorch's parameters: it is complete or has done nothing."""

import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from interrupting import interrupted_at, lock_is_free
from optimizer_internals import slots_of_parameter
from torch_twins import stored_table

from numba_rmsprop.torch import Embedding, RMSprop


def trained(**options):
    """Return a run whose next step touches small parameters, a large one, a table, and one not seen before."""
    torch.manual_seed(0)
    table = Embedding(6, 4)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in [(3,), (2, 2), (), (4,), (200, 100), (5,)]]
    optimizer = RMSprop([{"params": [table.weight]}, {"params": parameters}], lr=0.1, **options)
    for t in range(3):
        backward(table, parameters[: 5 + (t == 2)], t)
        if t < 2:
            optimizer.step()
    return optimizer, table, parameters


def backward(table, parameters, t):
    table.zero_grad()
    (table(torch.tensor([t, 5, t])) * torch.arange(4.0)).sum().backward()
    for k, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, t - k)


def state_of(optimizer, table, parameters):
    """Return every bit that later steps depend on."""
    held = [stored_table(table), *parameters]
    arrays = [parameter.detach().numpy() for parameter in held]
    for parameter in held:
        arrays += [tensor.numpy() for _, tensor in sorted(dict.items(optimizer.state.get(parameter, {})))]
    own = slots_of_parameter(optimizer, held[0])
    return [*(array.tobytes() for array in arrays), own.clocks.tobytes(), own.steps, own.floor]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "centered": True}])
@pytest.mark.parametrize("call", [lambda run: run[0].step(), lambda run: run[0].flush()], ids=["step", "flush"])
def test_a_call_is_whole_or_not_begun(call, options, moments):
    run = trained(**options)
    before = state_of(*run)
    call(run)
    after = state_of(*run)
    outcomes = []
    for moment in moments():
        run = trained(**options)
        if not interrupted_at(moment, call, run):
            break
        state = state_of(*run)
        assert state in (before, after), f"half done, when interrupted at moment {moment}"
        outcomes.append(state == after)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert lock_is_free()
    if moment == len(outcomes) + 1:  # at each of them
        assert set(outcomes) == {False, True}
    assert moment > 10


def test_a_run_goes_on_after_an_interrupt():
    whole, cut = trained(momentum=0.9), trained(momentum=0.9)
    whole[0].step()
    moment = 1
    while interrupted_at(moment, cut[0].step):
        if cut[0].state[stored_table(cut[1])]["step"] == 3:
            break
        moment += 1
    for k, run in enumerate((whole, cut)):
        backward(run[1], run[2], 3)
        run[0].step()
        run[0].flush()
        assert np.isfinite(run[1].weight.detach().numpy()).all(), k
    assert state_of(*cut) == state_of(*whole)
