"""The cases with which PyTorch tests its RMSprop and its SparseAdam."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch.optim import lr_scheduler
from torch_twins import VARIANTS, Twins, name_of, randn, random_rows, sparse

from numba_rmsprop.torch import RMSprop
from numba_rmsprop.torch.options import OWN_OPTIONS

OPTIONS = [
    {},
    {"lr": 1e-3},
    {"lr": torch.tensor(0.001)},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"weight_decay": 0.1, "centered": True},
    {"weight_decay": 0.1, "maximize": True},
    {"weight_decay": 0.1, "centered": True, "momentum": 0.1},
    {"weight_decay": 0.1, "centered": True, "momentum": 0.1, "maximize": True},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=name_of)


def regression(seed=0, shape=(10, 5)):
    """Return the parameters of a linear model, and a function that computes its loss."""
    weight, bias = nn.Parameter(randn(*shape, seed=seed)), nn.Parameter(randn(shape[0], seed=seed + 1))
    x = randn(shape[1], seed=seed + 2)
    return [weight, bias], lambda: (weight.mv(x) + bias).pow(2).sum()


@options
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_loss_falls(options, contiguous):
    (weight, bias), _ = regression()
    if not contiguous:
        weight = nn.Parameter(randn(10, 5, 2)[..., 0])
        bias = nn.Parameter(randn(10, 2)[..., 0])
        assert not weight.is_contiguous()
    opt, x = RMSprop([weight, bias], **options), randn(5, seed=2)

    def closure():
        opt.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(20)]
    assert (losses[-1] > losses[0]) == options.get("maximize", False)


@options
@pytest.mark.parametrize(
    "makers",
    [
        [lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10)],
        [lambda opt: lr_scheduler.ReduceLROnPlateau(opt)],
        [
            lambda opt: lr_scheduler.StepLR(opt, gamma=0.99, step_size=10),
            lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.99),
            lambda opt: lr_scheduler.ReduceLROnPlateau(opt),
        ],
    ],
)
def test_the_loss_falls_with_groups_and_schedulers(options, makers):
    (weight, bias), loss_of = regression()
    rate = options.get("lr", 0.01)
    opt = RMSprop([{"params": [weight]}, {"params": [bias], "lr": rate * 10}], **options)
    schedulers, losses = [make(opt) for make in makers], []
    for _ in range(20):
        opt.zero_grad()
        loss = loss_of()
        loss.backward()
        opt.step()
        losses.append(loss.item())
        for scheduler in schedulers:
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([loss.item()] if plateau else []))
    assert (losses[-1] > losses[0]) == options.get("maximize", False)


@options
def test_a_model_with_a_parameter_of_size_0(options):
    # its gradient is of size 0 too
    twins = Twins(randn(1), randn(5, 0), randn(0), randn(3, 4), **options)
    for t in range(6):
        twins.step(randn(1, seed=t), torch.empty(5, 0), torch.empty(0), randn(3, 4, seed=t))
    twins.check()


@options
def test_gradients_of_0_move_nothing_without_weight_decay(options):
    parameter = nn.Parameter(randn(5, 1))
    before = parameter.detach().clone()
    opt = RMSprop([parameter], **{**options, "weight_decay": 0.0})
    for grad in (torch.zeros(5, 1), sparse([], torch.zeros(0, 1), (5, 1)), sparse([2, 2], torch.zeros(2, 1), (5, 1))):
        parameter.grad = grad
        opt.flush()
        opt.step()
    assert torch.equal(parameter, before)
    assert opt.state[parameter]["step"] == 3


@options
def test_no_gradients_move_nothing(options):
    parameter = nn.Parameter(randn(5, 1))
    before = parameter.detach().clone()
    opt = RMSprop([parameter], **options)
    opt.step()
    assert torch.equal(parameter, before)
    assert not opt.state


@options
def test_saving_changes_nothing(options):
    (first, loss_of), (second, other_loss) = regression(), regression()
    opt, other = RMSprop(first, **options), RMSprop(second, **options)
    for t in range(10):
        for optimizer, loss in ((opt, loss_of), (other, other_loss)):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        if t % 3 == 0:
            saved = copy.deepcopy(opt.state_dict())
            opt.load_state_dict(saved)
            assert opt.state_dict()["param_groups"] == saved["param_groups"]
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


ONE, TWO = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1, 1))


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        (ONE, {}, TypeError, "params argument given to the optimizer should be an iterable of Tensors or dicts"),
        ([], {}, ValueError, "optimizer got an empty parameter list"),
        (["x"], {}, TypeError, "optimizer can only optimize Tensors, but one of the params is str"),
        ([{"params": {ONE, TWO}}], {}, TypeError, "optimizer parameters need to be organized in ordered collections"),
        ([ONE, ONE], {}, UserWarning, "a parameter group with duplicate parameters"),
        ([{"params": ONE}, {"params": ONE}], {}, ValueError, "some parameters appear in more than one parameter group"),
        ([torch.ones(2, requires_grad=True) * 2], {}, ValueError, "can't optimize a non-leaf Tensor"),
        ([("weight", ONE), TWO], {}, ValueError, "all optimizer params should be with/without names"),
        (
            [{"params": [ONE], "lr": 1e-2}, {"params": [("weight", TWO)]}],
            {},
            ValueError,
            "all optimizer param groups should be with/without names",
        ),
        ([ONE], {"lr": torch.tensor([0.001, 0.001])}, ValueError, "Tensor lr must be 1-element"),
        ([ONE], {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ([ONE], {"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
        ([ONE], {"lr": torch.tensor(-0.5)}, ValueError, "Invalid learning rate: -0.5"),
        ([ONE], {"eps": -1e-3}, ValueError, "Invalid epsilon value: -0.001"),
        ([ONE], {"momentum": -1.0}, ValueError, "Invalid momentum value: -1.0"),
        ([ONE], {"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
        ([ONE], {"alpha": -0.9}, ValueError, "Invalid alpha value: -0.9"),
        ([torch.ones(2, dtype=torch.int64)], {}, TypeError, "parameter 0 of group 0 .torch.int64"),
        ([torch.zeros(3).to_sparse()], {}, TypeError, "parameter 0 of group 0 .*expected a strided parameter"),
        ([{"params": [torch.zeros(3).to_sparse()]}], {}, TypeError, "expected a strided parameter"),
        ([torch.empty(2, device="meta")], {}, TypeError, "expected a parameter on the CPU"),
    ],
)
def test_refused_construction(params, options, error, message):
    with pytest.raises(error, match=message):  # the suite makes warnings errors
        RMSprop(params, **options)


@pytest.mark.parametrize("make", [RMSprop, torch.optim.RMSprop])
def test_refused_groups(make):
    opt = make([ONE])
    for group, error in (
        ({"params": ONE}, ValueError),
        ({"params": [torch.ones(2, requires_grad=True) * 2]}, ValueError),
        ([TWO], TypeError),
    ):
        with pytest.raises(error):
            opt.add_param_group(group)
        assert len(opt.param_groups) == 1
    opt.add_param_group({"params": TWO})
    assert opt.param_groups[1]["params"] == [TWO]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("shape", [(4,), (170, 100)])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_a_parameter_twice_in_a_group_is_stepped_twice(options, shape):
    ours, theirs = nn.Parameter(randn(*shape)), nn.Parameter(randn(*shape))
    opt, peer = RMSprop([ours, ours], **options), torch.optim.RMSprop([theirs, theirs], **options)
    for t in range(4):
        ours.grad, theirs.grad = randn(*shape, seed=t), randn(*shape, seed=t)
        opt.step()
        peer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert opt.state[ours]["step"] == peer.state[theirs]["step"] == 8


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_twice_in_a_group_takes_two_sparse_steps():
    ours, theirs = nn.Parameter(randn(20, 3)), nn.Parameter(randn(20, 3))
    opt, peer = (kind([p, p], momentum=0.9) for kind, p in ((RMSprop, ours), (torch.optim.RMSprop, theirs)))
    for t in range(4):
        ours.grad = random_rows((20, 3), 4, seed=t)
        theirs.grad = ours.grad.to_dense()
        opt.step()
        peer.step()
        opt.flush()  # moves the rows that were left out by two steps
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_repr_and_defaults():
    opt, peer = RMSprop([ONE], lr=0.5, momentum=0.9), torch.optim.RMSprop([ONE], lr=0.5, momentum=0.9)
    assert isinstance(opt, torch.optim.Optimizer)
    lines = repr(opt).splitlines()
    assert lines[:2] == ["RMSprop (", "Parameter Group 0"]
    own = {f"    {option}: {default}" for option, default in OWN_OPTIONS.items()}
    assert own <= {*lines}
    assert {*lines} - own <= {*repr(peer).splitlines()}
    defaults = torch.optim.RMSprop([ONE]).defaults
    missing = {"capturable", "foreach", "differentiable"}
    assert {**RMSprop([ONE]).defaults} == {k: v for k, v in defaults.items() if k not in missing} | OWN_OPTIONS
    assert opt.defaults["lr"] == 0.5


def test_other_public_attributes_are_copied():
    opt = RMSprop([nn.Parameter(torch.ones(2))])
    copied = copy.deepcopy(opt)
    public = {name for name in vars(opt) if not name.startswith("_")}
    assert public == {name for name in vars(copied) if not name.startswith("_")}
    assert copied.defaults == opt.defaults


def coordinate(w, x, y, kind):
    """Return one coordinate of the gradient of Rosenbrock's function: in two parts, in one, or dense."""
    derivative = [-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)][w]
    grad = sparse([w, w], torch.tensor([derivative / 4, derivative - derivative / 4], dtype=torch.float64), (2,))
    return {"dense": grad.to_dense, "coalesced": grad.coalesce, "uncoalesced": grad.clone}[kind]()


@pytest.mark.parametrize("kind", ["coalesced", "uncoalesced"])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("scheduled", [False, True])
def test_coordinates_of_rosenbrock_in_turn(kind, maximize, variant, scheduled):
    start = torch.tensor([1.5, 1.5], dtype=torch.float64)
    twins = Twins(start, lr=0.01, eps=1e-3, alpha=0.9, maximize=maximize, **variant)
    makers = [
        lambda opt: lr_scheduler.ExponentialLR(opt, 0.999),
        lambda opt: lr_scheduler.ReduceLROnPlateau(opt, threshold=1e-4),
    ]
    schedulers = [make(opt) for make in makers for opt in twins.optimizers] if scheduled else []

    def closure(optimizer, p, w, form):
        optimizer.zero_grad()
        x, y = at
        if optimizer is twins.opt:
            optimizer.catch_up(p, torch.tensor([0, 1]))
            torch.testing.assert_close(p.detach(), torch.tensor(at, dtype=torch.float64), rtol=0, atol=1e-12)
        # Each step starts both where the dense run is; on their own, they would amplify the differences of rounding.
        p.grad = coordinate(w, x, y, form)
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    losses = []
    for t in range(60 if maximize else 600):
        at = twins.theirs[0].tolist()
        losses.append(twins.opt.step(lambda w=t % 2: closure(twins.opt, twins.ours[0], w, kind)))
        twins.peer.step(lambda w=t % 2: closure(twins.peer, twins.theirs[0], w, "dense"))
        for scheduler in schedulers:
            scheduler.step(*([losses[-1]] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    twins.check()
    assert (losses[-1] > losses[0]) == maximize
