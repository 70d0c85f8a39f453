"""Many small parameters, which are checked and stepped together until one of them changes."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import VARIANTS, Twins, name_of, randn, random_rows, sparse

SHAPES = [(3,), (4, 2), (), (6,), (8, 3), (1, 1), (2, 5)]
FULL = {"momentum": 0.9, "centered": True}


def grads(t):
    return [randn(*shape, seed=20 * t + k) for k, shape in enumerate(SHAPES)]


def settled(**options):
    """Return twins that have taken enough steps to be stepped together."""
    twins = Twins(*(randn(*shape, seed=k) for k, shape in enumerate(SHAPES)), **options)
    for t in range(3):
        twins.step(*grads(t))
    return twins


def go_on(twins, when=range(3, 7)):
    for t in when:
        twins.step(*grads(t))
        twins.check()


def each(twins):
    """Return the fifth parameter and its optimizer, ours and PyTorch's."""
    return (twins.ours[4], twins.opt), (twins.theirs[4], twins.peer)


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_steps(options):
    go_on(settled(**options))


def other_data(twins):
    for p, _ in each(twins):
        p.data = randn(8, 3, seed=77)


def other_data_in_another_order(twins):
    for p, _ in each(twins):
        p.data = randn(3, 8, seed=77).t()


def other_state(twins):
    for p, optimizer in each(twins):
        optimizer.state[p]["square_avg"] = torch.full((8, 3), 3.0)
        optimizer.state[p]["momentum_buffer"] = torch.full((8, 3), 0.5)


def other_step(twins):
    for p, optimizer in each(twins):
        optimizer.state[p]["step"] = torch.tensor(40.0)


def no_state(twins):
    for p, optimizer in each(twins):
        del optimizer.state[p]


def data_of_the_state(twins):
    for p, optimizer in each(twins):
        optimizer.state[p]["momentum_buffer"].data = torch.full((8, 3), 0.5)


def set_state(twins):
    for p, optimizer in each(twins):
        optimizer.state[p]["square_avg"].set_(torch.full((8, 3), 3.0))


def another_parameter(twins):
    made = []
    for p, optimizer in each(twins):
        made.append(nn.Parameter(p.detach() + 1))
        optimizer.param_groups[0]["params"][4] = made[-1]
    twins.ours[4], twins.theirs[4] = made


def fewer_parameters(twins):
    for _, optimizer in each(twins):
        optimizer.param_groups[0]["params"].pop(4)


def another_order(twins):
    for _, optimizer in each(twins):
        optimizer.param_groups[0]["params"].reverse()


def loaded(twins):
    for _, optimizer in each(twins):
        optimizer.load_state_dict(optimizer.state_dict())


def written_state(twins):
    for p, optimizer in each(twins):
        optimizer.state[p]["momentum_buffer"].add_(0.5)


def other_numbers(twins):
    twins.set(lr=0.3, alpha=0.5, eps=0.1, weight_decay=0.2, maximize=True, momentum=0.4)


def no_momentum(twins):
    twins.set(momentum=0.0)


@pytest.mark.parametrize(
    "change",
    [
        other_data,
        other_data_in_another_order,
        other_state,
        other_step,
        no_state,
        data_of_the_state,
        set_state,
        another_parameter,
        fewer_parameters,
        another_order,
        loaded,
        written_state,
        other_numbers,
        no_momentum,
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_changes_between_steps(change, large):
    twins = settled(**FULL)
    if large:  # beside the small ones, one that is stepped alone
        twins.opt.param_groups[0]["params"].append(nn.Parameter(randn(170, 100)))
        twins.opt.param_groups[0]["params"][-1].grad = randn(170, 100)
        twins.opt.step()
        twins.peer.step()
    change(twins)
    go_on(twins)


@pytest.mark.parametrize(
    "grad",
    [
        lambda: None,
        lambda: torch.tensor(0.5).expand(8, 3),
        lambda: randn(3, 8).t(),
        lambda: randn(8, 6)[:, ::2],
        lambda: torch._neg_view(randn(8, 3)),
        lambda: random_rows((8, 3), 4),
        lambda: sparse([], torch.zeros(0, 3), (8, 3)),
    ],
)
def test_other_gradients(grad):
    twins = settled(**FULL)
    for t in range(3, 7):
        twins.step(*(grad() if k == 4 and t % 2 else each for k, each in enumerate(grads(t))))
        twins.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16])
def test_other_dtypes_between(dtype):
    twins = Twins(*(randn(*shape).to(dtype if k % 3 == 1 else torch.float32) for k, shape in enumerate(SHAPES)), **FULL)
    for t in range(5):
        twins.step(*(g.to(p.dtype) for g, p in zip(grads(t), twins.ours, strict=True)))
    twins.opt.flush()
    for ours, theirs in twins.pairs:
        tolerance = 1e-6 if ours.dtype is not torch.bfloat16 else 0.1  # PyTorch has a state of bfloat16
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_conjugated_gradients():
    twins = Twins(*(randn(*shape, dtype=torch.complex64) for shape in SHAPES), **FULL)
    for t in range(6):
        made = [randn(*shape, dtype=torch.complex64, seed=20 * t + k) for k, shape in enumerate(SHAPES)]
        twins.step(*(g.conj() if t > 2 and k == 4 else g for k, g in enumerate(made)))
        twins.check()


def test_group_by_group():
    twins = settled(**FULL)
    for k in range(5):
        twins.add_group(randn(5, seed=k), lr=0.1 / (1 + k), momentum=0.1 * k)
    for t in range(3, 9):
        twins.step(*grads(t), *(None if t % 3 == k else randn(5, seed=t + k) for k in range(5)))
        twins.check()
