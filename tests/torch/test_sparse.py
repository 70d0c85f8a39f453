"""Sparse gradients in exact mode beside torch.optim.RMSprop on the densified ones."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler
from torch_twins import VARIANTS, Twins, name_of, randn, random_rows, sparse

DTYPES = [torch.float32, torch.float64]
WITH_MAXIMIZE = [{**options, "maximize": maximize} for options in VARIANTS for maximize in (False, True)]

# The warning of rows that were not read before a step has a test of its own.
unread = pytest.mark.filterwarnings("ignore:.*rows that a step does not touch fall behind")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", WITH_MAXIMIZE, ids=name_of)
def test_tables(options, dtype):
    # a vector, a table, one whose rows are matrices, and one whose entries are shared among threads
    shapes, entries = [(50,), (40, 6), (20, 3, 4)], [9, 12, 5]
    if dtype is torch.float32:  # compiled once more for each variant
        shapes, entries = [*shapes, (3000, 8)], [*entries, 1200]
    twins = Twins(*(randn(*shape, dtype=dtype) for shape in shapes), **options)
    for t in range(15):
        twins.set(lr=0.01 * (1 + t % 4))
        pairs = zip(shapes, entries, strict=True)
        twins.step(*(random_rows(shape, n, dtype, seed=10 * t + k) for k, (shape, n) in enumerate(pairs)))
        if t % 5 == 4:
            twins.check()


@unread
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_long_gaps(options):
    # most rows are touched once or never; nothing reads them before the end
    twins = Twins(randn(60, 3, dtype=torch.float64), reads=False, **options)
    for t in range(150):
        twins.set(lr=0.02 / (1 + t % 7))
        twins.step(random_rows((60, 3), 1, torch.float64, seed=t))
    twins.check()


@unread
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_forms_of_a_gradient(options):
    shape = (20, 6)
    twins = Twins(randn(*shape, dtype=torch.float64), reads=False, **options)
    values = randn(4, 6, dtype=torch.float64)
    grads = [
        sparse([3, 3, 0, 3], values, shape),
        sparse([3, 3, 0, 3], values, shape).coalesce(),
        sparse([], values[:0], shape),  # no entries: still a step
        torch.sparse_coo_tensor(size=shape, dtype=torch.float64),  # and one without entries that has two sparse axes
        sparse([19, 0, 7, 5], values.t().contiguous().t(), shape),
        sparse([1, 2, 1, 2], values[:, :1].expand(4, 6), shape),
        sparse([[1, 2, 1, 1], [0, 5, 3, 3]], values[:, 0].contiguous(), shape),  # sparse along both axes
        sparse([[1, 2, 1, 1], [0, 5, 3, 3]], values[:, 1], shape).coalesce(),
        sparse([4], torch.full((1, 6), 0.5, dtype=torch.float64), shape) * -2.0,
        sparse([2, 2, 9, 8], torch._neg_view(values), shape),
        sparse([0, 1], values[:2], shape) + sparse([1, 2], values[2:], shape),
        randn(*shape, dtype=torch.float64).to_sparse(),
        randn(*shape, dtype=torch.float64).to_sparse(1),
        torch.sparse_coo_tensor(torch.empty(0, 1, dtype=torch.int64), values[None, :1].expand(1, *shape), shape),
    ]
    assert [grad.sparse_dim() for grad in grads].count(2) == 4
    for grad in grads:
        twins.step(grad)
    twins.check()
    assert twins.opt.state[twins.ours[0]]["step"] == len(grads)


@pytest.mark.parametrize("sparse_axes", [1, 2, 3])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_sparse_along_more_axes(options, sparse_axes):
    shape, n = (10, 4, 5), 30
    twins = Twins(randn(*shape, dtype=torch.float64), **options)
    for t in range(8):
        indices = torch.stack([torch.arange(n) * (t + 3 + k) % size for k, size in enumerate(shape[:sparse_axes])])
        values = randn(n, *shape[sparse_axes:], dtype=torch.float64, seed=t)
        twins.step(sparse(indices, values, shape))
    twins.check()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_complex_tables(options, dtype):
    twins = Twins(randn(30, 4, dtype=dtype), randn(12, dtype=dtype), **options)
    for t in range(10):
        twins.step(random_rows((30, 4), 6, dtype, seed=t), random_rows((12,), 4, dtype, seed=50 + t))
    twins.check()


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "every second row", "every second column"])
def test_layouts(layout):
    start = {
        "transposed": randn(6, 30).t(),
        "channels_last": randn(30, 2, 3, 4).to(memory_format=torch.channels_last),
        "every second row": randn(60, 6)[::2],
        "every second column": randn(30, 12)[:, ::2],
    }[layout]
    twins = Twins(start, momentum=0.9, centered=True)
    for t in range(8):
        twins.step(random_rows(start.shape, 7, seed=t))
    twins.check()


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_sparse_and_dense_in_turn(options):
    shape = (30, 4)
    twins = Twins(randn(*shape, dtype=torch.float64), **options)
    for t in range(24):
        dense = t % 7 in (0, 3, 4)
        make = randn(*shape, dtype=torch.float64, seed=t) if dense else random_rows(shape, 3, torch.float64, seed=t)
        twins.step(None if t % 11 == 5 else make)
        if t % 6 == 0:
            twins.check()
    twins.check()


@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_momentum_that_changes_at_every_step(kind, dtype):
    twins = Twins(randn(80, 4, dtype=dtype), momentum=0.9)
    makers = {
        "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=200),
        "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 4, base_momentum=0.3),
    }
    schedulers = [makers[kind](optimizer) for optimizer in twins.optimizers]
    for t in range(120):
        twins.step(random_rows((80, 4), 2, dtype, seed=t))
        for scheduler in schedulers:
            scheduler.step()
    twins.check()


@unread
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("otherwise", [0.8, 1.0])
def test_a_momentum_of_0_for_a_while(centered, reads, otherwise):
    # without momentum, PyTorch ignores the buffer and leaves it unchanged
    twins = Twins(randn(20, 3, dtype=torch.float64), momentum=0.9, centered=centered, reads=reads)
    for t in range(30):
        twins.set(momentum=0.0 if t % 10 in (4, 5, 6) else otherwise, lr=0.01 * (1 + t % 3))
        twins.step(random_rows((20, 3), 2, torch.float64, seed=t))
        if t % 10 in (5, 9):
            twins.check()
    twins.check()


@unread
def test_other_options_that_change():
    twins = Twins(randn(20, 3, dtype=torch.float64), momentum=0.9, centered=True, reads=False)
    changes = [{"alpha": 0.5}, {"eps": 0.1}, {"maximize": True}, {"alpha": 0.9, "momentum": 1.2}, {"maximize": False}]
    for t in range(40):
        if t % 4 == 3:
            twins.set(**changes[t // 4 % len(changes)])
        twins.step(random_rows((20, 3), 2, torch.float64, seed=t))
    twins.check()


@pytest.mark.parametrize("reading", ["flush", "flush one", "catch_up", "state_dict"])
def test_ways_to_read(reading):
    twins = Twins(randn(20, 3, dtype=torch.float64), randn(20, 3, dtype=torch.float64), momentum=0.9)
    for t in range(9):
        twins.step(*(random_rows((20, 3), 2, torch.float64, seed=t) for _ in range(2)))
    first, second = twins.ours
    behind = second.detach().clone()
    rows = torch.arange(20)
    if reading == "flush":
        twins.opt.flush()
    elif reading == "flush one":
        twins.opt.flush(first)
        assert torch.equal(second, behind)
    elif reading == "catch_up":
        twins.opt.catch_up(first, rows[:7].reshape(7, 1).to(torch.int32))
        twins.opt.catch_up(first, torch.cat([rows[5:], rows]))
        assert torch.equal(second, behind)
    else:
        twins.opt.state_dict()
    for ours, theirs in twins.pairs[: 1 if reading in ("flush one", "catch_up") else 2]:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert not torch.equal(behind, twins.theirs[1])
    twins.check()


@st.composite
def steps(draw):
    rows = draw(st.integers(1, 8))
    step = st.fixed_dictionaries(
        {
            # few rows a step and many steps without rows, for gaps of every length
            "rows": st.one_of(st.none(), st.just([]), st.lists(st.integers(0, rows - 1), max_size=5)),
            "kind": st.sampled_from(["rows", "rows", "coalesced", "dense"]),
            "reads": st.one_of(st.none(), st.lists(st.integers(0, rows - 1), max_size=4)),
            "lr": st.sampled_from([0.0, 0.01, 0.1]),
            "momentum": st.sampled_from([0.0, 0.5, 0.95]),
            "alpha": st.sampled_from([0.5, 0.99]),
        }
    )
    return rows, draw(st.lists(step, min_size=1, max_size=20))


@unread
@given(run=steps(), centered=st.booleans(), maximize=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_random_runs(run, centered, maximize, dtype):
    rows, run = run
    shape = rows, 3
    # there from the first step on; PyTorch does not make it later
    twins = Twins(randn(*shape, dtype=dtype), momentum=0.5, centered=centered, maximize=maximize, eps=1e-3, reads=False)
    for t, step in enumerate([{**run[0], "kind": "dense", "rows": []}, *run]):
        if step["reads"] is not None:
            twins.opt.catch_up(twins.ours[0], torch.tensor(step["reads"], dtype=torch.int64))
        twins.set(lr=step["lr"], alpha=step["alpha"], momentum=step["momentum"] if t else 0.5)
        if step["rows"] is None:
            grad = None
        elif step["kind"] == "dense":
            grad = randn(*shape, dtype=dtype, seed=t)
        else:
            grad = sparse(step["rows"], randn(len(step["rows"]), 3, dtype=dtype, seed=t), shape)
            grad = grad.coalesce() if step["kind"] == "coalesced" else grad
        twins.step(grad)
    if twins.peer.state:
        twins.check()
