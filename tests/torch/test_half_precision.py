"""Parameters of bfloat16 and float16: state and arithmetic are of float32, and each step rounds the parameter."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import Twins, randn, random_rows, twin_of

from numba_rmsprop.torch import Embedding, RMSprop

FULL = {"momentum": 0.9, "centered": True}
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
# Kernels are compiled for each dtype; they differ in reading and writing, and not in the rule.
variants = pytest.mark.parametrize(
    ("dtype", "options"), [(torch.bfloat16, {}), (torch.bfloat16, FULL), (torch.float16, FULL)]
)


class Rounded:
    """Half-precision parameter, and beside it a float32 one that PyTorch steps and the test then rounds."""

    def __init__(self, tensor, **options):
        self.ours = twin_of(tensor)
        self.theirs = twin_of(tensor.float())
        self.opt, self.peer = RMSprop([self.ours], **options), torch.optim.RMSprop([self.theirs], **options)
        self.largest = self.theirs.detach().abs()

    def step(self, grad):
        if grad.is_sparse:
            self.opt.catch_up(self.ours, grad._indices()[0])
            # Duplicates are added up in float32.
            wide = torch.sparse_coo_tensor(grad._indices(), grad._values().float(), grad.shape)
        self.ours.grad = grad
        self.theirs.grad = wide.to_dense() if grad.is_sparse else grad.float()
        self.opt.step()
        self.peer.step()
        with torch.no_grad():
            self.theirs.copy_(self.theirs.to(self.ours.dtype))
            self.largest = torch.maximum(self.largest, self.theirs.abs())

    def check(self, ulps=1, share=0.01, tolerance=1e-5):
        """Compare. A few elements may differ by one rounding, where float32 falls on the other side of a tie.

        ``ulps`` are those of the largest number that an element ever was.
        """
        self.opt.flush()
        off = (self.ours.detach().float() - self.theirs).abs()
        ulp = torch.finfo(self.ours.dtype).eps * self.largest.clamp_min(torch.finfo(self.ours.dtype).tiny)
        assert (off <= 1.01 * ulps * ulp).all()
        assert (off > 0).float().mean() <= share
        state, other = self.opt.state[self.ours], self.peer.state[self.theirs]
        assert state.keys() == other.keys()
        for name, tensor in other.items():
            assert state[name].dtype is torch.float32
            size = tensor.abs().max().item()
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0.0 if name == "step" else tolerance * size)


@variants
@pytest.mark.parametrize("more", [{}, {"maximize": True}, {"weight_decay": 0.1}], ids=["", "maximize", "weight_decay"])
def test_dense_steps(more, dtype, options):
    # one shape for a batch and one for all threads; with decay, the parameters may differ by a rounding
    tolerance = 1e-3 if more.get("weight_decay") else 1e-6
    for shape in ((30, 20), (170, 100)):
        run = Rounded(randn(*shape).to(dtype), **options, **more)
        for t in range(6):
            run.step(randn(*shape, seed=t).to(dtype))
        run.check(ulps=2, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("layout", ["0-d", "channels_last", "transposed", "every second column", "empty"])
def test_layouts(layout, dtype):
    start = {
        "0-d": randn(),
        "channels_last": randn(6, 5, 4, 3).to(memory_format=torch.channels_last),
        "transposed": randn(20, 30).t(),
        "every second column": randn(20, 12)[:, ::2],
        "empty": torch.empty(0, 3),
    }[layout]
    start = torch.empty_strided(start.shape, start.stride(), dtype=dtype).copy_(start)
    run = Rounded(start, momentum=0.9, centered=True)
    for t in range(4):
        run.step(randn(*start.shape, seed=t).to(dtype))
    if layout == "empty":
        assert run.opt.state[run.ours]["square_avg"].shape == (0, 3)
    else:
        run.check(share=0.05)


@variants
def test_sparse_steps(dtype, options):
    # a row that only its momentum moves is rounded when it is caught up, and not at each step
    moves = "momentum" in options
    for shape, n in (((40, 6), 8), ((3000, 8), 1200), ((50,), 9)):
        run = Rounded(randn(*shape).to(dtype), **options)
        for t in range(8):
            run.step(random_rows(shape, n, seed=t).to(dtype))
        if moves:
            run.opt.flush()
            off = (run.ours.detach().float() - run.theirs).abs().max().item()
            assert off <= 8 * torch.finfo(dtype).eps * run.theirs.abs().max().item()
        else:
            run.check()


@halves
def test_rounding_is_to_the_nearest_and_ties_to_even(dtype):
    # with alpha 0 and eps 0 a step is lr times the sign of the gradient
    eps = torch.finfo(dtype).eps
    starts = torch.tensor([1.0, 1.0 + eps, 1.0 + 2 * eps, 1.0, 1.0 + eps, -1.0, -1.0 - eps], dtype=dtype)
    for share in (0.25, 0.5, 0.5078125, 0.75, 1.0, 1.5):
        parameter = nn.Parameter(starts.clone())
        opt = RMSprop([parameter], lr=share * eps, alpha=0.0, eps=0.0)
        parameter.grad = -torch.sign(starts)
        opt.step()
        expected = (starts.float() + share * eps * torch.sign(starts.float())).to(dtype)
        assert torch.equal(parameter, expected)


@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")  # where the kernels run as plain Python
@halves
def test_infinity_nan_and_what_is_too_large(dtype):
    largest = torch.finfo(dtype).max
    parameter = nn.Parameter(torch.tensor([largest, -largest, 1.0, 1.0, 0.0], dtype=dtype))
    opt = RMSprop([parameter], lr=largest / 2, alpha=0.0, eps=0.0)
    parameter.grad = torch.tensor([-1.0, 1.0, float("nan"), 1.0, -0.0], dtype=dtype)
    opt.step()
    expected = [float("inf"), -float("inf"), float("nan"), 1.0 - largest / 2, float("nan")]
    torch.testing.assert_close(
        parameter.detach().float(), torch.tensor(expected).to(dtype).float(), rtol=0, atol=0, equal_nan=True
    )


@halves
def test_squares_that_a_half_could_not_hold(dtype):
    parameter = nn.Parameter(torch.zeros(8, dtype=dtype))
    opt = RMSprop([parameter], lr=0.01)
    for size in (1e-7, 6e4):
        parameter.grad = torch.full((8,), size, dtype=dtype)
        opt.step()
    assert torch.isfinite(parameter).all()
    assert (parameter != 0).all()
    assert torch.isfinite(opt.state[parameter]["square_avg"]).all()


def trained(dtype):
    parameter = nn.Parameter(randn(20, 3).to(dtype))
    opt = RMSprop([parameter], **FULL)
    for t in range(4):
        parameter.grad = random_rows((20, 3), 3, seed=t).to(dtype)
        opt.catch_up(parameter, torch.tensor([0]))
        opt.step()
    return parameter, opt


def same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is torch.float32
        assert torch.equal(found[name], tensor)


@halves
def test_the_state_keeps_its_float32(dtype):
    parameter, opt = trained(dtype)
    opt.flush()
    expected = {name: tensor.clone() for name, tensor in opt.state[parameter].items()}
    other = RMSprop([twin_of(parameter)])
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for copied in (other, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        (p,) = copied.param_groups[0]["params"]
        same_state(copied.state[p], expected)
        p.grad = torch.ones_like(p)
        copied.step()
    same_state(opt.state[parameter], expected)


@halves
def test_going_on_with_pytorchs(dtype):
    # PyTorch's state has the dtype of the parameter
    parameter, opt = trained(dtype)
    peer = torch.optim.RMSprop([twin_of(parameter)])
    peer.load_state_dict(copy.deepcopy(opt.state_dict()))
    (p,) = peer.param_groups[0]["params"]
    assert peer.state[p]["square_avg"].dtype is dtype
    p.grad = torch.ones_like(p)
    peer.step()
    opt.load_state_dict(copy.deepcopy(peer.state_dict()))
    parameter.grad = torch.ones_like(parameter)
    opt.step()
    for tensor in opt.state[parameter].values():
        assert tensor.dtype is torch.float32
        assert torch.isfinite(tensor).all()
    assert opt.state[parameter]["step"] == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_dense_and_sparse_in_turn(dtype):
    run = Rounded(randn(30, 4).to(dtype))
    for t in range(9):
        grad = randn(30, 4, seed=t) if t % 3 == 0 else random_rows((30, 4), 5, seed=t)
        run.step(grad.to(dtype))
    run.check(ulps=2, share=0.03)


@halves
def test_lazy_steps(dtype):
    start = randn(20, 3).to(dtype)
    parameter = twin_of(start)
    opt = RMSprop([parameter], **FULL, weight_decay=0.1, sparse_update="lazy")
    for _ in range(3):
        parameter.grad = torch.sparse_coo_tensor(torch.tensor([[2, 5, 2]]), torch.ones(3, 3, dtype=dtype), (20, 3))
        opt.step()
    moved = (parameter != start).any(1).nonzero()[:, 0].tolist()
    assert moved == [2, 5]


@halves
def test_embeddings(dtype):
    table = Embedding(20, 3, dtype=dtype)
    opt = RMSprop(table.parameters(), **FULL, lr=0.05)
    theirs = nn.Embedding(20, 3, _weight=table.weight.detach().float())
    peer = torch.optim.RMSprop(theirs.parameters(), **FULL, lr=0.05)
    for t in range(10):
        rows = torch.tensor([t % 7, 3 * t % 20])
        for module, optimizer in ((table, opt), (theirs, peer)):
            optimizer.zero_grad()
            module(rows).sum().backward()
            optimizer.step()
    found = table(torch.arange(20)).float()
    expected = theirs(torch.arange(20))
    torch.testing.assert_close(found, expected, rtol=0, atol=10 * torch.finfo(dtype).eps * expected.abs().max().item())


def test_beside_other_dtypes():
    tensors = [randn(6), randn(6).double(), randn(6, dtype=torch.complex64)]
    twins = Twins(*tensors, **FULL)
    run = Rounded(randn(6).bfloat16(), **FULL)
    every = RMSprop([*twins.ours, run.ours], **FULL)
    for t in range(3):
        twins.give(randn(6, seed=t), randn(6, seed=t).double(), randn(6, dtype=torch.complex64, seed=t))
        run.ours.grad, run.theirs.grad = randn(6, seed=t).bfloat16(), randn(6, seed=t).bfloat16().float()
        every.step()
        for peer in (twins.peer, run.peer):
            peer.step()
        with torch.no_grad():
            run.theirs.copy_(run.theirs.bfloat16())
    for ours, theirs in (*twins.pairs, (run.ours.float(), run.theirs)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
