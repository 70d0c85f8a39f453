"""Dense steps beside torch.optim.RMSprop, which they must equal to rounding: every option, shape and layout."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch_twins import COMBINATIONS, TOLERANCE, VARIANTS, Twins, assert_close, name_of, randn

DTYPES = [torch.float32, torch.float64]

# The matrix is too large for a batch, the other two are stepped in one.
SHAPES = [(), (7,), (30, 20), (150, 120)]


def strided(dtype):
    """Parameters of every layout: memory in another order, with gaps, without elements."""
    images = randn(6, 5, 4, 3, dtype=dtype)
    return {
        "channels_last": images.to(memory_format=torch.channels_last),
        "large channels_last": randn(9, 20, 10, 10, dtype=dtype).to(memory_format=torch.channels_last),
        "transposed": randn(12, 30, dtype=dtype).t(),
        "large transposed": randn(170, 110, dtype=dtype).t(),
        "permuted": images.permute(2, 0, 3, 1),
        "every second row": randn(20, 6, dtype=dtype)[::2],
        "every second column": randn(20, 6, dtype=dtype)[:, ::2],
        "every second element": randn(20, dtype=dtype)[::2],
        "no rows": randn(0, 3, dtype=dtype),
        "no columns": randn(3, 0, dtype=dtype),
        "one element": randn(1, 1, 1, 1, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_combinations(options, dtype):
    twins = Twins(*(randn(*shape, dtype=dtype) for shape in SHAPES), **options)
    for t in range(20):
        twins.step(*(randn(*shape, dtype=dtype, seed=100 * t + k) for k, shape in enumerate(SHAPES)))
        twins.check()


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_hundred_steps_in_float64(options):
    twins = Twins(randn(40, 5, dtype=torch.float64), **options)
    for t in range(100):
        twins.step(randn(40, 5, dtype=torch.float64, seed=t))
    twins.check(1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [COMBINATIONS[0], COMBINATIONS[-1]], ids=name_of)
@pytest.mark.parametrize("layout", strided(torch.float32))
@pytest.mark.parametrize("many", [1, 5])  # several small ones are looked at together
def test_layouts(layout, many, options, dtype):
    start = strided(dtype)[layout]
    twins = Twins(*[start] * many, **options)
    assert twins.ours[0].stride() == start.stride()
    for t in range(8):
        grads = [randn(*start.shape, dtype=dtype, seed=10 * t + k) for k in range(many)]
        # Autograd may return a gradient that is contiguous, or in the order of the parameter.
        twins.step(*(grad if t % 4 < 2 else torch.empty_like(twins.ours[0]).copy_(grad) for grad in grads))
    # Weight decay may nearly cancel a gradient, and the rounding that is left is then divided by its own size.
    twins.check(5e-6 if dtype is torch.float32 else None)
    for name, tensor in twins.opt.state[twins.ours[0]].items():
        assert name == "step" or tensor.stride() == twins.peer.state[twins.theirs[0]][name].stride()


@pytest.mark.parametrize("shape", [(6,), (4, 6), (130, 130)])
@pytest.mark.parametrize("options", [COMBINATIONS[0], COMBINATIONS[-1]], ids=name_of)
def test_gradients_of_any_stride(shape, options):
    twins = Twins(randn(*shape), **options)
    twins.step(randn(*shape))
    twins.step(torch.tensor(0.5).expand(shape))  # the gradient of sum(): one element with strides of 0
    twins.step(randn(*shape[::-1]).permute(*reversed(range(len(shape)))))
    twins.step(randn(*shape, 2)[..., 0])
    twins.step(randn(*shape).flip(0))
    twins.step(torch._neg_view(randn(*shape)))  # a flag of the tensor says that its elements are to be negated
    twins.check()


@pytest.mark.parametrize("shape", [(5,), (140, 130)])
def test_backward_of_a_sum(shape):
    twins = Twins(randn(*shape), momentum=0.9)
    for _ in range(3):
        for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
            optimizer.zero_grad()
            parameters[0].sum().backward()
            optimizer.step()
    assert twins.ours[0].grad.stride() == twins.theirs[0].grad.stride()
    twins.check()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_in_another_order_of_memory(layout):
    start = randn(6, 5, 4, 3)
    twins = Twins(start.to(memory_format=layout), centered=True)
    for other in (torch.contiguous_format, torch.channels_last):
        twins.step(randn(6, 5, 4, 3, seed=1).to(memory_format=other))
    twins.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": 0.5},
        {"lr": 0.0, "momentum": 0.9},
        {"lr": torch.tensor(0.02)},
        {"lr": torch.tensor([0.02])},
        {"lr": torch.tensor(0.02, dtype=torch.float64), "momentum": 0.5},
        {"alpha": 0.0},
        {"alpha": 0.5, "centered": True},
        {"alpha": 1.0},
        {"alpha": 0.9, "eps": 0.0},
        {"eps": 1e-3, "momentum": 0.9},
        {"eps": 1.0, "centered": True},
        {"momentum": 1.0},
        {"momentum": 1.5},
        {"weight_decay": 2.5},
    ],
    ids=name_of,
)
def test_numbers(options, dtype):
    twins = Twins(randn(9, dtype=dtype), randn(20, 4, dtype=dtype), **options)
    for t in range(8):
        twins.step(randn(9, dtype=dtype, seed=t), randn(20, 4, dtype=dtype, seed=50 + t))
        twins.check()


def test_a_tensor_learning_rate_is_read_anew_at_each_step():
    rate = torch.tensor(0.1)
    twins = Twins(randn(9), lr=rate, momentum=0.9)
    for t in range(5):
        twins.step(randn(9, seed=t))
        rate.mul_(0.5)
    twins.check()
    assert twins.opt.param_groups[0]["lr"] is rate


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("options", COMBINATIONS[:8] + COMBINATIONS[-1:], ids=name_of)
def test_complex(options, dtype):
    shapes = [(), (5,), (8, 3), (120, 80)]
    twins = Twins(*(randn(*shape, dtype=dtype) for shape in shapes), **options)
    for t in range(6):
        grads = [randn(*shape, dtype=dtype, seed=10 * t + k) for k, shape in enumerate(shapes)]
        twins.step(*(grad.conj() if t % 2 else grad for grad in grads))
    twins.check()


def test_parameters_without_a_gradient_take_no_step():
    twins = Twins(randn(4), randn(3, 2), randn(5), momentum=0.9)
    twins.step(None, randn(3, 2), None)
    assert list(twins.opt.state) == [twins.ours[1]]
    twins.step(randn(4), None, None)
    twins.step(randn(4, seed=1), randn(3, 2, seed=2), None)
    twins.check()
    assert [twins.opt.state[p]["step"].item() for p in twins.ours[:2]] == [2, 2]
    assert twins.ours[2] not in twins.opt.state
    before = [p.detach().clone() for p in twins.ours]
    twins.step(None, None, None)
    assert all(torch.equal(p, was) for p, was in zip(twins.ours, before, strict=True))


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_changing_which_parameters_have_a_gradient(options):
    # other parameters are stepped together at each step
    shapes = [(3,), (4, 2), (), (130, 130), (6,)]
    twins = Twins(*(randn(*shape) for shape in shapes), **options)
    for t in range(12):
        twins.step(*(None if (t + k) % (k + 2) else randn(*shape, seed=t) for k, shape in enumerate(shapes)))
        twins.check()


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_float32_is_no_further_from_float64_than_pytorchs(options):
    twins, exact = Twins(randn(60, 7), **options), Twins(randn(60, 7).double(), **options)
    for t in range(100):
        grad = randn(60, 7, seed=t)
        twins.step(grad)
        exact.step(grad.double())
    error = {}
    for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        found = {"parameter": parameters[0].detach(), **optimizer.state[parameters[0]]}
        truth = {"parameter": exact.theirs[0].detach(), **exact.peer.state[exact.theirs[0]]}
        error[optimizer] = max(((found[k] - truth[k]).abs().max() / exact.largest[0, k]).item() for k in truth)
    assert error[twins.opt] < 2 * error[twins.peer] < 1e-5
    assert_close(twins.ours[0], twins.theirs[0], TOLERANCE[torch.float32], "parameter", exact.largest[0, "parameter"])
