"""Embeddings that grow, shrink and are sorted, with their state."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from numba_rmsprop.torch import Embedding, EmbeddingBag, RMSprop

VARIANTS = [
    {},
    {"momentum": 0.9, "nesterov": True},
    {"state": "rowwise", "bias_correction": True},
    {"use_ema": True, "ema_momentum": 0.5, "momentum": 0.5},
]


def step(table, optimizer, rows, factor):
    optimizer.zero_grad()
    (table(torch.tensor(rows)) * factor).sum().backward()
    optimizer.step()


def entries(optimizer, parameter):
    optimizer.flush()
    return {"parameter": parameter.detach(), **optimizer.state[parameter]}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_longer_table_is_as_one_that_was_so_long_from_the_beginning(options, fused):
    start = torch.ones(9, 2)
    start[6:] = 0.0
    grown = Embedding(6, 2, fused=fused, _weight=start[:6].clone())
    whole = Embedding(9, 2, fused=fused, _weight=start.clone())
    layer = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([layer, *grown.parameters()], 0.1, **options)
    expected = RMSprop(whole.parameters(), 0.1, **options)
    for k in range(10):
        rows = [k % 5, 0] if k < 6 else [k % 5, 6 + k % 2]
        if k == 6:
            optimizer.zero_grad()
            made = optimizer.resize(grown, 9)
            assert made is grown.weight
            assert type(made) is type(whole.weight)
            assert [len(each) for each in optimizer.param_groups[0]["params"]] == [3, 9]
            assert grown.num_embeddings == 9
        step(grown, optimizer, rows, k + 1.0)
        step(whole, expected, rows, k + 1.0)
    ours, theirs = entries(optimizer, grown.weight), entries(expected, whole.weight)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_rows_in_another_order_go_on_as_they_were(options):
    moved, alone = (Embedding(7, 3, padding_idx=0, _weight=torch.ones(7, 3)) for _ in range(2))
    optimizer, expected = RMSprop(moved.parameters(), 0.1, **options), RMSprop(alone.parameters(), 0.1, **options)
    places = torch.tensor([6, 2, 4, 0, 1])
    for k in range(8):
        rows = [6, 2, 0] if k % 3 else [4]
        if k == 4:
            optimizer.zero_grad()
            optimizer.take_rows(moved, places)
            assert moved.padding_idx == 3
        step(moved, optimizer, [places.tolist().index(row) for row in rows] if k >= 4 else rows, k + 1.0)
        step(alone, expected, rows, k + 1.0)
    ours, theirs = entries(optimizer, moved.weight), entries(expected, alone.weight)
    for key in ours:
        found = theirs[key] if key in ("step", "alpha_product") else theirs[key][places]
        torch.testing.assert_close(ours[key], found, rtol=1e-6, atol=1e-6)


def test_rows_that_are_behind_are_caught_up_first():
    table, alone = (Embedding(4, 2, _weight=torch.ones(4, 2)) for _ in range(2))
    optimizer, expected = (RMSprop(each.parameters(), 0.1, momentum=0.9) for each in (table, alone))
    for each, one in ((table, optimizer), (alone, expected)):
        step(each, one, [0], 1.0)
        step(each, one, [1], 1.0)
        one.zero_grad()
    made = optimizer.take_rows(optimizer.param_groups[0]["params"][0], torch.arange(4))  # module.weight would do it
    expected.flush()
    torch.testing.assert_close(made, alone.weight)


def test_new_rows_are_filled_and_state_dicts_fit():
    table = EmbeddingBag(2, 3, _weight=torch.zeros(2, 3), mode="sum")
    optimizer = RMSprop(table.parameters(), use_ema=True, initial_scale=0.5)
    optimizer.resize(table, 3, fill=2.0)  # before the first step, there is no state
    step(table, optimizer, [[0, 2]], 1.0)
    optimizer.zero_grad()
    optimizer.take_rows(table.weight, torch.tensor([2, -1, 0]), fill=torch.full((1, 3), 7.0))
    parameter = optimizer.param_groups[0]["params"][0]
    assert parameter[1].tolist() == [7, 7, 7]
    assert optimizer.state[parameter]["average"][1].tolist() == [7, 7, 7]
    assert optimizer.state[parameter]["square_avg"][1].tolist() == [0.5, 0.5, 0.5]
    other = torch.nn.Parameter(torch.ones(3, 3))
    RMSprop([other], use_ema=True).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda opt, table: opt.resize(table, -1), TypeError, "rows: expected a whole number, 0 or more, got"),
        (lambda opt, table: opt.resize(table, 0), ValueError, "expected the padding row 0 once, got it 0 times"),
        (
            lambda opt, table: opt.resize(torch.nn.Linear(2, 2), 3),
            ValueError,
            "expected one of this optimizer's groups",
        ),
        (lambda opt, table: opt.resize(torch.nn.ReLU(), 3), TypeError, "table: expected a parameter with rows, or a"),
        (lambda opt, table: opt.take_rows(table, torch.tensor([3])), IndexError, "indices: expected -1 <= index < 3"),
        (lambda opt, table: opt.take_rows(table, torch.tensor([0.5])), TypeError, "indices: expected a tensor of int"),
        (lambda opt, table: opt.take_rows(table, torch.tensor([True])), TypeError, "indices: expected a tensor of int"),
        (
            lambda opt, table: opt.resize(table, 5, torch.ones(3, 2)),
            ValueError,
            r"fill: expected a number or shape \(2",
        ),
        (lambda opt, table: opt.take_rows(table, [0]), TypeError, "indices: expected a tensor of integers"),
    ],
)
def test_what_is_refused_changes_nothing(call, error, message):
    table = Embedding(3, 2, padding_idx=0)
    optimizer = RMSprop(table.parameters())
    before = table.weight
    with pytest.raises(error, match=message):
        call(optimizer, table)
    assert table.weight is before is optimizer.param_groups[0]["params"][0]


def test_modules_that_share_the_old_parameter_fail_until_they_get_the_new_one():
    first, second = Embedding(3, 2), torch.nn.Linear(2, 3, bias=False)
    second.weight = next(first.parameters())
    optimizer = RMSprop(first.parameters())
    made = optimizer.resize(first, 5)
    assert second(torch.ones(1, 2)).shape == (1, 0)
    second.weight = made
    assert second(torch.ones(1, 2)).shape == (1, 5)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_must_be_used_first(fused):
    table = Embedding(3, 2, fused=fused)
    optimizer = RMSprop(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"it has a gradient; call step\(\) or zero_grad\(\) first"):
        optimizer.resize(table, 5)
