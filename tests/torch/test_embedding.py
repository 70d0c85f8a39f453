"""Embedding and EmbeddingBag: forward passes and copies of the table have the rows of a dense run."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch_twins import TOLERANCE, VARIANTS, assert_close, name_of, randn, stored_table, through_a_file

from numba_rmsprop.torch import Embedding, EmbeddingBag, RMSprop

ROWS, COLUMNS = 30, 4
MOMENTUM = {"momentum": 0.9, "lr": 0.05}


class Models:
    """Our module and optimizer, and beside them PyTorch's module, dense, with PyTorch's optimizer."""

    def __init__(self, kind, *args, options=MOMENTUM, **kwargs):
        own = {"Embedding": Embedding, "EmbeddingBag": EmbeddingBag}[kind]
        table = randn(ROWS, COLUMNS, dtype=kwargs.setdefault("dtype", torch.float64))
        self.ours = own(ROWS, COLUMNS, *args, **kwargs, _weight=table.clone())
        self.theirs = getattr(nn, kind)(ROWS, COLUMNS, *args, **{**kwargs, "sparse": False}, _weight=table.clone())
        self.opt = RMSprop(self.ours.parameters(), **options)
        self.peer = torch.optim.RMSprop(self.theirs.parameters(), **options)
        self.tolerance = TOLERANCE[table.dtype]

    def __iter__(self):
        return iter(((self.ours, self.opt), (self.theirs, self.peer)))

    def outputs(self, *args, **kwargs):
        """Return the outputs of both modules for the same input, after comparing them."""
        found, expected = (module(*args, **kwargs) for module, _ in self)
        assert_close(found, expected, self.tolerance, "output", largest=1.0)
        return found, expected

    def step(self, *args, seed=0, **kwargs):
        for (_, optimizer), output in zip(self, self.outputs(*args, **kwargs), strict=True):
            optimizer.zero_grad()
            (output.square() * randn(*output.shape, dtype=output.dtype, seed=seed)).sum().backward()
            optimizer.step()

    def check(self):
        self.opt.flush()
        assert_close(self.ours.weight, self.theirs.weight, self.tolerance, "weight")
        found, expected = (optimizer.state[module.weight] for module, optimizer in self)
        for name, tensor in expected.items():
            assert_close(found[name], tensor, 3 * self.tolerance, name)


def indices(t, *shape, dtype=torch.int64, rows=ROWS):
    return torch.randint(rows, shape or (5,), generator=torch.Generator().manual_seed(t)).to(dtype)


def behind(kind="Embedding", **kwargs):
    """Return models; the rows of ours are behind."""
    models = Models(kind, **kwargs)
    for t in range(6):
        models.step(indices(t, *((5,) if kind == "Embedding" else (5, 2))), seed=t)
    assert (stored_table(models.ours) - models.theirs.weight).abs().max() > 1e-3
    return models


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_every_forward_pass(options, dtype):
    models = Models("Embedding", options=options, dtype=dtype)
    assert models.ours.weight.dtype == dtype
    for t in range(25):
        models.step(indices(t), seed=t)
        assert models.ours.weight.grad.is_sparse
    models.check()


def test_one_cycle():
    models = Models("Embedding")
    schedulers = [lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40) for _, optimizer in models]
    for t in range(35):
        models.step(indices(t, 3), seed=t)
        for scheduler in schedulers:
            scheduler.step()
    models.check()


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor(3),
        torch.tensor([3]),
        torch.tensor([[3, 3], [4, 5], [0, 29]]),
        torch.tensor([7, 8, 7], dtype=torch.int32),
        torch.tensor([], dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int32),
        torch.arange(24).reshape(2, 3, 4).transpose(0, 2),
    ],
    ids=lambda given: f"{list(given.shape)}-{given.dtype}",
)
def test_inputs(given):
    models = Models("Embedding")
    for t in range(4):
        models.step(indices(t), seed=t)
        models.step(given, seed=t)
    models.check()


@pytest.mark.parametrize("padding", [0, 5, -1])
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_padding(kind, padding):
    # the row gets no gradient; the momentum of an earlier state moves it
    models = Models(kind, padding_idx=padding)
    for module, optimizer in models:
        module.weight.grad = torch.ones(ROWS, COLUMNS, dtype=torch.float64)
        optimizer.step()
    before = models.ours.weight[padding].clone()
    for t in range(8):
        given = indices(t, 4, 2)
        given[0] = padding % ROWS
        models.step(given, seed=t)
        assert padding % ROWS not in models.ours.weight.grad.coalesce().indices()
    models.check()
    assert not torch.equal(models.ours.weight[padding], before)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_max_norm(kind, norm_type):
    # the norm of the row as it is now decides
    models = Models(kind, max_norm=1.0, norm_type=norm_type)
    for t in range(20):
        models.step(indices(t, 4, 2), seed=t)
    models.check()


def test_scaling_by_frequency():
    with pytest.raises(RuntimeError, match="scale_grad_by_freq not supported with sparse gradients"):  # by PyTorch
        Embedding(3, 2, scale_grad_by_freq=True)(torch.tensor([1, 1])).sum().backward()
    models = Models("Embedding", scale_grad_by_freq=True, sparse=False)
    for t in range(10):
        models.step(indices(t, 6, rows=4), seed=t)
    models.check()


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [False, True])
def test_bags_with_offsets(mode, last):
    models = Models("EmbeddingBag", mode=mode, include_last_offset=last)
    offsets = [0, 2, 2, 7, *[9] * last]
    for t in range(12):
        dtype = torch.int32 if t % 2 else torch.int64
        models.step(indices(t, 9, dtype=dtype), torch.tensor(offsets, dtype=dtype), seed=t)
    models.check()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_in_rows(mode):
    models = Models("EmbeddingBag", mode=mode)
    for t in range(12):
        models.step(indices(t, 4, 3), seed=t)
    models.check()


def test_weights_in_bags():
    models = Models("EmbeddingBag", mode="sum")
    for t in range(12):
        weights = randn(4, 3, dtype=torch.float64, seed=t).requires_grad_(t % 2 == 1)
        models.step(indices(t, 4, 3), per_sample_weights=weights, seed=t)
    models.check()


@pytest.mark.parametrize("make", [Embedding, EmbeddingBag])
def test_pretrained_rows(make):
    rows = randn(ROWS, COLUMNS)
    frozen = make.from_pretrained(rows)
    assert type(frozen) is make
    assert frozen.sparse
    assert not frozen.weight.requires_grad
    assert frozen.weight.data_ptr() == rows.data_ptr()
    module = make.from_pretrained(rows, freeze=False, max_norm=3.0)
    assert (module.weight.requires_grad, module.max_norm) == (True, 3.0)
    module(torch.tensor([[1, 2]])).sum().backward()
    assert module.weight.grad.is_sparse
    assert not make.from_pretrained(rows, sparse=False).sparse


@pytest.mark.parametrize(("make", "parent"), [(Embedding, nn.Embedding), (EmbeddingBag, nn.EmbeddingBag)])
def test_arguments_are_pytorchs(make, parent):
    ours, theirs = make(5, 3, None, 2.0), parent(5, 3, None, 2.0)
    names = {*parent.__constants__, "weight"} - {"sparse"}
    same = [name for name in names if name != "weight" and getattr(ours, name) != getattr(theirs, name)]
    assert same == []
    assert ours.sparse
    assert not make(5, 3, sparse=False).sparse
    assert isinstance(ours, parent)
    assert repr(ours) == repr(parent(5, 3, None, 2.0, sparse=True))


@pytest.mark.parametrize("bad", [[30], [-1], [2, 400]])
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_indices_out_of_bounds(kind, bad):
    models = behind(kind)
    before = models.ours.weight.detach().clone()
    messages = []
    for module, _ in models:
        with pytest.raises((IndexError, RuntimeError)) as told:
            module(torch.tensor([bad]))
        messages.append((told.type, str(told.value)))
    assert messages[0] == messages[1]
    assert torch.equal(models.ours.weight, before)
    with pytest.raises((RuntimeError, TypeError)):
        models.ours(torch.tensor([[0.5]]))


def test_a_dense_embedding_and_other_optimizers():
    models = Models("Embedding", sparse=False)
    for t in range(5):
        models.step(indices(t), seed=t)
        assert not models.ours.weight.grad.is_sparse
    models.check()
    module = Embedding(5, 2)
    other = torch.optim.SparseAdam(module.parameters())
    module(torch.tensor([1, 1])).sum().backward()
    other.step()
    assert module.state_dict().keys() == {"weight"}


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    return through_a_file(module, weights_only=False)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("how", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("inside", [False, True])
def test_copies_have_current_rows(kind, how, inside):
    models = behind(kind)
    copied = how(nn.Sequential(models.ours))[0] if inside else how(models.ours)
    assert type(copied) is type(models.ours)
    assert_close(copied.weight, models.theirs.weight, 1e-12)
    copied(torch.tensor([[3, 4]]))  # and are no longer behind
    assert_close(copied.weight, models.theirs.weight, 1e-12)
    models.step(indices(9, 4, 2))
    models.check()


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_states_of_modules_have_current_rows(kind):
    models = behind(kind)
    model = nn.Sequential(nn.Linear(2, 2), models.ours)
    assert_close(model.state_dict()["1.weight"], models.theirs.weight.detach(), 1e-12)
    models.step(indices(9, 4, 2))
    assert_close(models.ours.state_dict()["weight"], models.theirs.weight.detach(), 1e-12)
    models.check()


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_rows(assign):
    models, loaded = behind(), randn(ROWS, COLUMNS, dtype=torch.float64, seed=7)
    for module, _ in models:
        module.load_state_dict({"weight": loaded.clone()}, assign=assign)
    assert torch.equal(models.ours.weight, loaded)
    assert torch.equal(models.ours(torch.arange(ROWS)), loaded)
    if not assign:  # a new parameter, which no optimizer knows
        for t in range(6):
            models.step(indices(t), seed=t)
        models.check()


def test_two_tables_and_two_passes_in_one_graph():
    # the second pass catches up other rows, after the first has saved what it needs
    models, other = behind(), behind(options={"momentum": 0.9, "centered": True})
    for t in range(6):
        for pair in (models, other):
            for module, optimizer in pair:
                optimizer.zero_grad()
                first, second = module(indices(t)), module(indices(50 + t))
                (first * second.square()).sum().backward()
                optimizer.step()
    models.check()
    other.check()


def test_one_table_in_two_modules():
    models = behind()
    twins = Embedding(ROWS, COLUMNS, dtype=torch.float64), nn.Embedding(ROWS, COLUMNS, dtype=torch.float64)
    for twin, (module, _) in zip(twins, models, strict=True):
        twin.weight = module.weight
    found, expected = (twin(torch.arange(ROWS)) for twin in twins)
    assert_close(found, expected, 1e-12)


def test_gradients_gathered_over_several_passes():
    models = Models("Embedding")
    for t in range(6):
        for module, optimizer in models:
            optimizer.zero_grad()
            for part in range(3):
                module(indices(10 * t + part)).square().sum().backward()
            optimizer.step()
    models.check()


def fall_behind(models):
    for t in range(3):
        models.opt.zero_grad()
        models.ours(indices(t)).sum().backward()
        models.opt.step()


def stale(models, change):
    """Return whether autograd refuses a graph that has saved the table before ``change``."""
    x = randn(2, COLUMNS, dtype=torch.float64).requires_grad_()
    loss = functional.linear(x, stored_table(models.ours)).sum()  # saves the table for the gradient of x
    change()
    try:
        loss.backward()
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)
    return False


def test_autograd_notices_rows_that_were_caught_up():
    every = torch.arange(ROWS)
    models = behind()
    models.ours(torch.tensor([0]))
    assert stale(models, models.opt.step)
    assert stale(models, lambda: models.ours(every[3:]))
    assert not stale(models, lambda: models.ours(every[3:]))  # nothing was left to catch up
    assert stale(models, models.opt.flush)
    assert not stale(models, models.opt.flush)
    assert not stale(models, models.ours.state_dict)
    fall_behind(models)
    assert stale(models, models.ours.state_dict)
    fall_behind(models)
    assert stale(models, lambda: models.opt.catch_up(stored_table(models.ours), every))
    version = models.ours.weight._version
    models.ours.weight.grad = torch.ones(ROWS, COLUMNS, dtype=torch.float64)
    models.opt.step()
    assert models.ours.weight._version > version


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_reading_without_gradients(guard):
    models = behind()
    with guard():
        found, expected = (module(torch.arange(ROWS)).clone() for module, _ in models)
    assert_close(found, expected, 1e-12)
    models.step(indices(9))
    models.check()
