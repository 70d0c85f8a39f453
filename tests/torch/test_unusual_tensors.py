"""Extreme numbers, tensors that share memory, tensors of size 0, and modes of PyTorch."""

import threading

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import VARIANTS, Twins, name_of, randn, random_rows, sparse

from numba_rmsprop.torch import Embedding, RMSprop

FULL = {"momentum": 0.9, "centered": True}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["small", "large", "sparse"])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_nan_and_infinity_stay_in_their_elements(options, kind, bad):
    shape = (170, 100) if kind == "large" else (12, 5)
    twins = Twins(randn(*shape), **options)
    for t in range(5):
        grad = random_rows(shape, 4, seed=t) if kind == "sparse" else randn(*shape, seed=t)
        if t == 1:
            values = grad._values() if kind == "sparse" else grad
            values[1, 2] = bad
        twins.step(grad)
    twins.opt.flush()
    state, other = twins.opt.state[twins.ours[0]], twins.peer.state[twins.theirs[0]]
    names = other.keys() - {"grad_avg"}
    for found, expected in ((twins.ours[0], twins.theirs[0]), *((state[name], other[name]) for name in names)):
        # Terms as large as the largest element may cancel out, and PyTorch rounds them as the processor's vectors do.
        rounding = 4 * torch.finfo(expected.dtype).eps * expected[expected.isfinite()].abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=max(1e-6, rounding), equal_nan=True)
    # From an infinite mean, lerp gives NaN at the next step, and our formula gives infinity.
    for name in names & {"square_avg"} | other.keys() & {"grad_avg"}:
        assert (~torch.isfinite(state[name])).nonzero().tolist() == (~torch.isfinite(other[name])).nonzero().tolist()
        assert (~torch.isfinite(state[name])).sum() == 1


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-8, 1e8, 1e18, 1e30])
@pytest.mark.parametrize("options", VARIANTS[::2], ids=name_of)
def test_sizes_of_gradients(options, size):
    # squares vanish or overflow: as they do in PyTorch
    twins = Twins(randn(30, 2), randn(30, 2), **options)
    for t in range(5):
        twins.step(randn(30, 2, seed=t) * size, random_rows((30, 2), 8, seed=t) * size)
    twins.opt.flush()
    for ours, theirs in twins.pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for name, tensor in twins.peer.state[theirs].items():
            smallest = torch.finfo(torch.float32).tiny
            torch.testing.assert_close(twins.opt.state[ours][name], tensor, rtol=1e-5, atol=max(smallest, 1e-6 * size))


def test_a_variance_that_rounding_leaves_below_0():
    # PyTorch returns NaN there; ours takes 0
    ours = nn.Parameter(torch.zeros(2000))
    opt = RMSprop([ours], alpha=0.5, centered=True)
    ours.grad = torch.linspace(0.1, 3.0, 2000)
    for _ in range(60):
        opt.step()
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("shape", [(6,), (170, 100)])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_a_gradient_that_is_the_parameter_itself(options, shape):
    twins = Twins(randn(*shape), **options)
    for _ in range(4):
        for (p,) in (twins.ours, twins.theirs):
            p.grad = p.data
        twins.opt.step()
        # PyTorch reads the gradient once more after it has written the mean square, but not the parameter
        twins.peer.step()
        assert twins.ours[0].grad.data_ptr() == twins.ours[0].data_ptr()
    twins.largest = {}
    twins.check()


@pytest.mark.parametrize("parameters", [2, 6])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("when", [0, 2])
def test_a_gradient_in_the_memory_of_another_parameter(first, parameters, when):
    # the result depends on which parameter is stepped first, in PyTorch as here
    twins = Twins(*(randn(6, seed=k) for k in range(parameters)), momentum=0.9)
    for t in range(when + 1):
        twins.give(*(randn(6, seed=10 * t + k) for k in range(parameters)))
        if t == when:
            for mine in (twins.ours, twins.theirs):
                mine[first].grad = mine[1 - first].data
        twins.step()
    twins.check()


def test_sparse_values_in_the_memory_of_the_parameter():
    twins = Twins(randn(8, 2), momentum=0.9)
    p = twins.ours[0]
    p.grad = torch.sparse_coo_tensor(torch.tensor([[7, 0, 1, 2, 3, 4, 5, 6]]), p.data, (8, 2), is_coalesced=False)
    twins.theirs[0].grad = p.grad.to_dense().clone()
    twins.step()
    twins.check()


@pytest.mark.parametrize("shape", [(3, 2), (130, 130)])
def test_parameters_that_share_memory(shape):
    # PyTorch steps them one after the other
    ours, theirs = randn(*shape), randn(*shape)
    pairs = [[nn.Parameter(table), nn.Parameter(table.view(-1))] for table in (ours, theirs)]
    opt, peer = RMSprop(pairs[0], weight_decay=0.1), torch.optim.RMSprop(pairs[1], weight_decay=0.1)
    for t in range(4):
        for parameters in pairs:
            parameters[0].grad, parameters[1].grad = randn(*shape, seed=t), randn(ours.numel(), seed=50 + t)
        opt.step()
        peer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("first", [0, 2])
def test_steps_under_any_grad_mode(guard, first):
    twins = Twins(randn(5), randn(170, 100), randn(30, 2), **FULL)
    for t in range(4):
        grads = randn(5, seed=t), randn(170, 100, seed=t), random_rows((30, 2), 4, seed=t)
        if t < first:
            twins.step(*grads)
        else:
            with guard():
                twins.step(*grads)
    if guard is torch.inference_mode and first == 0:
        with guard():  # the state has inference tensors
            twins.check()
    else:
        twins.check()
    for p in twins.ours:
        assert p.requires_grad
        assert p.grad_fn is None


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        parameter = torch.ones(30, 2)
        opt = RMSprop([parameter], momentum=0.9)
        parameter.grad = torch.ones(30, 2)
        opt.step()
        parameter.grad = sparse([3], torch.ones(1, 2), (30, 2))
        opt.step()
        opt.flush()
        assert (parameter < 1).all()


@pytest.fixture
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_dtype_counts_the_steps(dtype):
    twins = Twins(randn(5, dtype=dtype), random_rows((9, 2), 3, dtype).to_dense(), **FULL)
    for t in range(3):
        twins.step(randn(5, dtype=dtype), random_rows((9, 2), 3, dtype, seed=t))
    twins.check()
    assert twins.opt.state[twins.ours[0]]["step"].dtype is torch.float64
    assert Embedding(3, 2).weight.dtype is torch.float64


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (lambda: torch.ones(3, 2, dtype=torch.float64), "float64"),
        (lambda: torch.ones(2, 3), r"\(2, 3\)"),
        (lambda: torch.ones(6), r"\(6,\)"),
        (lambda: sparse([1], torch.ones(1, 2, dtype=torch.float64), (3, 2)), "float64"),
        (lambda: sparse([1], torch.ones(1, 2), (4, 2)), r"\(4, 2\)"),
    ],
)
def test_gradients_that_do_not_fit(grad, message):
    # PyTorch checks gradients when they are set, but not after .data has changed
    parameter, other = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))
    opt = RMSprop([other, parameter])
    other.grad = torch.ones(4)
    made = grad()
    parameter.data = torch.empty(made.shape, dtype=made.dtype)
    parameter.grad = made
    parameter.data = torch.ones(3, 2)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.step()
    assert torch.equal(other, torch.ones(4))
    assert other not in opt.state
    assert torch.equal(parameter, torch.ones(3, 2))


def test_threads_with_an_optimizer_each():
    every = [Twins(randn(170, 100), randn(40, 3), momentum=0.9) for _ in range(4)]

    def run(twins):
        for t in range(6):
            twins.step(randn(170, 100, seed=t), random_rows((40, 3), 5, seed=t))

    threads = [threading.Thread(target=run, args=(twins,)) for twins in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for twins in every:
        twins.check()
