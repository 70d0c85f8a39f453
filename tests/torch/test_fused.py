"""Embeddings whose gradients wait for the optimizer: the numbers of those that are made, and nothing silently wrong."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import randn

from numba_rmsprop.torch import Embedding, EmbeddingBag, EmbeddingBagCollection, RMSprop
from numba_rmsprop.torch.fused import FusedWeight

ROWS, COLUMNS = 30, 4
KINDS = {
    "rows": (Embedding, {}),
    "rows, padded": (Embedding, {"padding_idx": -3}),
    "sums": (EmbeddingBag, {"mode": "sum"}),
    "means": (EmbeddingBag, {"mode": "mean"}),
    "means, padded": (EmbeddingBag, {"mode": "mean", "padding_idx": 2}),
    "sums with the last offset": (EmbeddingBag, {"mode": "sum", "include_last_offset": True}),
}


def made(kind, *, fused, dtype=torch.float64, **options):
    own, arguments = KINDS[kind]
    module = own(ROWS, COLUMNS, **arguments, dtype=dtype, _weight=randn(ROWS, COLUMNS, dtype=dtype), fused=fused)
    return module, RMSprop(module.parameters(), **{"lr": 0.05, **options})


def batch(kind, t, *, n=20):
    """Return a module's arguments: indices that repeat, in bags of which some are empty."""
    generator = torch.Generator().manual_seed(t)
    indices = torch.randint(ROWS, (n,), generator=generator)
    if kind.startswith("rows"):
        return (indices.reshape(4, -1),)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(n, (6,), generator=generator).sort().values])
    return indices, torch.cat([offsets, torch.tensor([n])]) if "last" in kind else offsets


def train(module, optimizer, batches, *, passes=1):
    for t in batches:
        optimizer.zero_grad()
        for k in range(passes):
            backward(module, t, k)
        optimizer.step()


def backward(module, t, k=0):
    kind = "rows" if isinstance(module, Embedding) else "sums"
    kind += " with the last offset" if getattr(module, "include_last_offset", False) else ""
    found = module(*batch(kind, 10 * t + k))
    (found * randn(*found.shape, dtype=found.dtype, seed=t)).sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "centered": True}])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_numbers_of_gradients_that_are_made(kind, options, passes):
    fused, plain = (made(kind, fused=flag, **options) for flag in (True, False))
    for module, optimizer in (fused, plain):
        train(module, optimizer, range(5), passes=passes)
    assert type(fused[0].weight) is FusedWeight
    assert fused[0]._parameters["weight"].waiting
    torch.testing.assert_close(fused[0].weight, plain[0].weight.detach(), rtol=1e-10, atol=1e-12)
    for name, slot in plain[1].state[plain[0].weight].items():
        torch.testing.assert_close(fused[1].state[fused[0].weight][name], slot, rtol=1e-10, atol=1e-12)


def test_weights_of_samples():
    fused, plain = (made("sums", fused=flag, momentum=0.9) for flag in (True, False))
    for t in range(4):
        for module, optimizer in (fused, plain):
            optimizer.zero_grad()
            for factors in (randn(20, dtype=torch.float64, seed=t), None):
                module(*batch("sums", t), factors).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(fused[0].weight, plain[0].weight.detach(), rtol=1e-10, atol=1e-12)


def test_weights_of_samples_that_want_a_gradient_get_it():
    module, _ = made("sums", fused=True)
    factors = torch.ones(20, dtype=torch.float64, requires_grad=True)
    module(*batch("sums", 0), factors).sum().backward()
    assert factors.grad is not None
    assert module.weight.grad is not None


def test_a_gradient_that_is_asked_for_is_made_once():
    module, optimizer = made("means", fused=True)
    plain, peer = made("means", fused=False)
    for each in (module, plain):
        backward(each, 0)
        backward(each, 1)
    table = module._parameters["weight"]
    assert len(table.waiting) == 2
    assert nn.Parameter.grad.__get__(table) is None
    torch.testing.assert_close(table.grad.to_dense(), plain.weight.grad.to_dense())
    assert not table.waiting
    backward(module, 2)  # on top of the one that was made
    backward(plain, 2)
    optimizer.step()
    peer.step()
    torch.testing.assert_close(module.weight, plain.weight.detach(), rtol=1e-10, atol=1e-12)


def test_what_backward_was_given_may_not_change_before_the_step():
    module, optimizer = made("sums", fused=True)
    for change in (lambda g: g.zero_(), lambda g: g.resize_(1, COLUMNS), lambda g: torch.add(g, 1, out=g)):
        optimizer.zero_grad()
        grad = torch.ones(7, COLUMNS, dtype=torch.float64)
        module(*batch("sums", 0)).backward(grad)
        change(grad)
        for read in (optimizer.step, lambda: module.weight.grad):
            with pytest.raises(RuntimeError, match=r"pass a copy: output.backward\(gradient.clone\(\)\)"):
                read()


def test_offsets_that_numpy_has_written_to_are_found_out():
    module, _ = made("sums with the last offset", fused=True)
    indices, offsets = batch("sums with the last offset", 0)
    found = module(indices, offsets)
    offsets.numpy()[-1] = 10**6
    with pytest.raises(ValueError, match=r"offsets\[7\] is 1000000"):
        found.sum().backward()
    assert not module._parameters["weight"].waiting


def test_input_beyond_the_last_offset_is_ignored():
    fused, plain = (made("sums with the last offset", fused=flag) for flag in (True, False))
    for (module, optimizer), n in ((fused, 9), (plain, 5)):
        module(torch.arange(n), torch.tensor([0, 2, 5])).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(fused[0].weight, plain[0].weight.detach())


def test_a_table_that_was_frozen_after_the_forward_pass_stays():
    module, _ = made("sums", fused=True)
    found = module(*batch("sums", 0)).sum()
    module.requires_grad_(False)
    found.backward()
    assert not module._parameters["weight"].waiting


def test_options_and_hooks_of_later_take_the_usual_way():
    module, _ = made("rows", fused=True)
    module.scale_grad_by_freq, module.sparse = True, False
    backward(module, 0)
    assert not module._parameters["weight"].waiting
    module, _ = made("sums", fused=True)
    module.weight, seen = nn.Parameter(torch.ones(ROWS, COLUMNS, dtype=torch.float64)), []
    module.weight.register_hook(lambda grad: seen.append(grad))
    module.load_state_dict(module.state_dict())
    backward(module, 0)
    assert len(seen) == 1


def test_transforms_take_the_usual_way():
    module, _ = made("rows", fused=True, dtype=torch.float32)
    indices = torch.tensor([[1, 2], [3, 4]])
    torch.testing.assert_close(torch.vmap(module)(indices), module.weight[indices])
    scale = torch.func.grad(lambda x: (module(indices) * x).sum())(torch.tensor(2.0))
    torch.testing.assert_close(scale, module.weight[indices].sum())


def test_gradients_that_are_set_to_zero_are_a_step():
    fused, plain = (made("sums", fused=flag, momentum=0.9) for flag in (True, False))
    for module, optimizer in (fused, plain):
        train(module, optimizer, range(2))
        optimizer.zero_grad(set_to_none=False)
        module(*batch("sums", 0))
        optimizer.step()
    torch.testing.assert_close(fused[0].weight, plain[0].weight.detach())


def test_a_gradient_of_another_shape_is_refused_and_the_waiting_one_stays():
    module, _ = made("sums", fused=True)
    backward(module, 0)
    with pytest.raises(RuntimeError):
        module.weight.grad = torch.ones(3)
    assert len(module._parameters["weight"].waiting) == 1
    module.weight.data = module.weight.data[:1]
    with pytest.raises(RuntimeError, match="size"):
        module.weight.grad  # noqa: B018
    assert len(module._parameters["weight"].waiting) == 1


@pytest.mark.parametrize("clear", ["optimizer", "module", "None", "del"])
def test_cleared_gradients_are_not_stepped(clear):
    module, optimizer = made("sums", fused=True)
    backward(module, 0)
    if clear == "None":
        module.weight.grad = None
    elif clear == "del":
        del module.weight.grad
    else:
        {"optimizer": optimizer, "module": module}[clear].zero_grad()
    before = module.weight.detach().clone()
    optimizer.step()
    assert torch.equal(module.weight, before)


def test_a_second_step_takes_the_same_gradient_again():
    fused, plain = (made("sums", fused=flag) for flag in (True, False))
    for module, optimizer in (fused, plain):
        backward(module, 0)
        optimizer.step()
        optimizer.step()
    torch.testing.assert_close(fused[0].weight, plain[0].weight.detach(), rtol=1e-10, atol=1e-12)


def test_other_optimizers_get_the_tensor():
    fused, plain = (made("sums", fused=flag)[0] for flag in (True, False))
    for module in (fused, plain):
        backward(module, 0)
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    torch.testing.assert_close(fused.weight, plain.weight.detach())


def test_what_needs_a_gradient_is_refused_and_nothing_waits():
    module, _ = made("sums", fused=True)
    table = module._parameters["weight"]
    for register in (table.register_hook, table.register_post_accumulate_grad_hook):
        with pytest.raises(RuntimeError, match="fused=False"):
            register(print)
    output = module(*batch("sums", 0)).square().sum()
    with pytest.raises(RuntimeError, match=r"torch.autograd.grad: .*fused=False"):
        torch.autograd.grad(output, table, retain_graph=True)
    with pytest.raises(RuntimeError, match="create_graph"):
        output.backward(create_graph=True)
    factor = torch.ones((), requires_grad=True, dtype=torch.float64)
    (module(*batch("sums", 0)) * factor).sum().backward(inputs=[factor])
    assert not table.waiting
    (module(*batch("sums", 0)) * factor).sum().backward(inputs=[table])
    assert len(table.waiting) == 1
    with pytest.raises(NotImplementedError):  # as PyTorch's own for sparse gradients, and not silently without it
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Embedding(5, 2, max_norm=1.0, fused=True), "max_norm"),
        (
            lambda: Embedding.from_pretrained(torch.ones(5, 2), scale_grad_by_freq=True, fused=True),
            "scale_grad_by_freq",
        ),
        (lambda: EmbeddingBag(5, 2, mode="max", fused=True), "mode"),
        (lambda: Embedding(5, 2, sparse=False, fused=True), "sparse"),
        (lambda: EmbeddingBag.from_pretrained(torch.ones(5, 2), max_norm=1.0, fused=True), "max_norm"),
    ],
)
def test_options_that_cannot_be(make, name):
    with pytest.raises(ValueError, match=f"{name}: expected .* with fused=True"):
        make()


def test_bad_input_is_named_and_nothing_waits():
    module, _ = made("sums", fused=True)
    for arguments, message in (
        ((torch.tensor([1, ROWS]), torch.tensor([0])), "found idx to be 30"),
        ((torch.tensor([1, 2]), torch.tensor([0, 2, 1])), r"offsets\[2\] is 1"),
        ((torch.tensor([1, 2]), torch.tensor([1])), r"offsets\[0\] is 1"),
        ((torch.tensor([1.0, 2.0]), torch.tensor([0])), "scalar types"),
        ((torch.tensor([1, 2]), torch.tensor([0]), torch.ones(3, dtype=torch.float64)), "per_sample_weights"),
        ((torch.tensor([[1, 2]]), None, torch.ones(2, 1, dtype=torch.float64)), r"per_sample_weights: .* \(1, 2\)"),
        ((torch.tensor([1, 2]), torch.tensor([0.0])), "offsets: expected int32 or int64"),
    ):
        with pytest.raises((ValueError, RuntimeError, TypeError), match=message):  # some of them are PyTorch's own
            module(*arguments)
    assert not module._parameters["weight"].waiting


def test_input_that_is_written_to_before_the_step():
    fused, plain = (made("sums", fused=flag) for flag in (True, False))
    indices, offsets = batch("sums", 0)
    plain[0](indices.clone(), offsets).sum().backward()
    fused[0](indices, offsets).sum().backward()
    indices.zero_()
    found = fused[0](indices, offsets)
    indices.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as of PyTorch's own
        found.sum().backward()
    for _, optimizer in (fused, plain):
        optimizer.step()
    torch.testing.assert_close(fused[0].weight, plain[0].weight.detach())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_go_on_fused_with_gradients_of_their_own(copied):
    module, optimizer = made("sums", fused=True, momentum=0.9)
    train(module, optimizer, range(3))
    twin = copied(module)
    table = twin._parameters["weight"]
    assert type(table) is FusedWeight
    assert not table.waiting
    torch.testing.assert_close(table.detach(), module.weight.detach())
    backward(twin, 0)
    assert len(table.waiting) == 1


def test_a_table_of_another_dtype_or_one_that_was_put_in_place():
    module, _ = made("sums", fused=True)
    module.bfloat16()
    backward(module, 0)
    assert nn.Parameter.grad.__get__(module._parameters["weight"]) is not None
    module, optimizer = made("sums", fused=True)
    module.weight = nn.Parameter(torch.ones(ROWS, COLUMNS))
    backward(module, 0)
    assert module.weight.grad is not None
    module.load_state_dict({"weight": torch.zeros(ROWS, COLUMNS)}, assign=True)
    assert type(module._parameters["weight"]) is FusedWeight
    module, optimizer = made("sums", fused=True)
    backward(module, 0)
    module.float()  # the gradient with it
    optimizer.step()
    module, optimizer = made("sums", fused=True)
    backward(module, 0)
    module.weight.data = torch.ones(5, COLUMNS, dtype=torch.float64)
    with pytest.raises(IndexError, match="expected 0 <= index < 5"):
        optimizer.step()
    for changed in (torch.ones(ROWS, 2, dtype=torch.float64), torch.ones(ROWS, COLUMNS)):
        module.weight.data = changed
        with pytest.raises(TypeError, match="call zero_grad after the parameter has changed"):
            optimizer.step()


def test_without_a_gradient_it_only_reads():
    module, optimizer = made("sums", fused=True, momentum=0.9)
    train(module, optimizer, range(3))
    optimizer.zero_grad()
    with torch.no_grad():
        assert not module(*batch("sums", 1)).requires_grad
    module.requires_grad_(False)
    assert not module(*batch("sums", 1)).requires_grad
    assert not module._parameters["weight"].waiting


def test_a_version_of_pytorch_that_does_not_tell(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.torch.undocumented.WILL_RUN", "_no_such_name")
    with pytest.warns(UserWarning, match="fused=True needs another version of PyTorch"):
        module, optimizer = made("sums", fused=True)
    train(module, optimizer, range(2))
    assert module.weight.grad is not None


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_tables_of_several_features_are_those_of_as_many_modules(mode):
    sizes = [3, ROWS, 7]
    together = EmbeddingBagCollection(sizes, COLUMNS, mode, dtype=torch.float64)
    apart = [
        EmbeddingBag(rows, COLUMNS, mode=mode, _weight=table.clone(), fused=True)
        for rows, table in zip(sizes, together.tables(), strict=True)
    ]
    ours = RMSprop(together.parameters(), momentum=0.9)
    theirs = RMSprop([module.weight for module in apart], momentum=0.9)
    for t in range(4):
        generator = torch.Generator().manual_seed(t)
        inputs = [torch.randint(rows, (n,), generator=generator) for rows, n in zip(sizes, (5, 9, 4), strict=True)]
        offsets = [torch.tensor([0, 2, 2]), torch.tensor([0, 0, 7]), torch.tensor([0, 1, 3])]
        begins = torch.tensor([0, 5, 14])
        stacked = torch.cat([begin + each for begin, each in zip(begins, offsets, strict=True)])
        ours.zero_grad()
        theirs.zero_grad()
        found = together(torch.cat(inputs), stacked)
        expected = torch.stack([module(*both) for module, *both in zip(apart, inputs, offsets, strict=True)])
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        ours.step()
        theirs.step()
    for table, module in zip(together.tables(), apart, strict=True):
        torch.testing.assert_close(table, module.weight.detach())


def test_bags_of_one_size_and_what_does_not_fit_several_features():
    tables = EmbeddingBagCollection([3, 5], 2, include_last_offset=True)
    same = torch.tensor([[[0, 2], [1, 1]], [[4, 4], [0, 3]]])
    found = tables(same)
    torch.testing.assert_close(found, tables(same.reshape(-1), torch.arange(0, 9, 2)))
    assert tables(same[:, :, :0]).eq(0).all()
    assert tables(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)).shape == (2, 0, 2)
    with pytest.raises(IndexError, match=r"input\[1\] is 3; expected 0 <= index < 3, the rows of feature 0"):
        tables(torch.tensor([0, 3, 4, 4]), torch.tensor([0, 2, 4]))
    with pytest.raises(IndexError, match=r"input\[3\] is 5; expected 0 <= index < 5, the rows of feature 1"):
        tables(torch.tensor([0, 2, 4, 5]), torch.tensor([0, 2, 4]))
    for offsets in ([0, 2], [0, 3, 2, 4, 4], [1, 2, 4], [0, 2, 3], []):
        with pytest.raises(ValueError, match=r"offsets(: expected|\[)"):
            tables(torch.tensor([0, 2, 4, 4]), torch.tensor(offsets, dtype=torch.int64))
    for wrong in (same[:1], same[:, :, 0]):
        with pytest.raises(ValueError, match="offsets: expected"):
            tables(wrong)
    with pytest.raises(ValueError, match="per_sample_weights: expected shape"):
        tables(same, None, torch.ones(8))
    with pytest.raises(TypeError, match="input: expected int32 or int64"):
        tables(same.float())
    for sizes in ([], [5, -2]):
        with pytest.raises(ValueError, match="num_embeddings"):
            EmbeddingBagCollection(sizes, 2)
