"""Rows dealt to ranks and asked of them, entries added up, and sums passed on, all in one process."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_rmsprop.distributed.row_exchange import Request
from numba_rmsprop.distributed.row_layout import Layout
from numba_rmsprop.gradients.coalescing import chain_rows, coalesce
from numba_rmsprop.kernels.row_dealing import link_ranks

batches = st.lists(st.integers(0, 12) | st.integers(0, 2**62), max_size=60)


@given(rows=st.integers(0, 200), ranks=st.integers(1, 9))
def test_every_row_has_one_owner_and_shares_are_equal(rows, ranks):
    layout = Layout(rows, ranks)
    parts = [layout.rows_of(rank) for rank in range(ranks)]
    assert sorted(itertools.chain.from_iterable(part.tolist() for part in parts)) == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for rank, part in enumerate(parts):
        assert layout.length(rank) == len(part)
        assert (part // ranks == np.arange(len(part))).all()
        assert (layout.owners_of(part) == rank).all()
        assert (layout.rows_of(rank, 1, len(part)) == part[1:]).all() if len(part) else True


@pytest.mark.parametrize("ranks", [2, 3, 4, 16])
@pytest.mark.parametrize("stride", [1, 2, 3, 16])
def test_hot_neighbours_are_spread(ranks, stride):
    hot = np.arange(0, 64 * ranks * stride, stride)
    counts = np.bincount(Layout(10**6, ranks).owners_of(hot), minlength=ranks)
    assert counts.max() < 1.4 * len(hot) / ranks


def test_rows_beyond_32_bits():
    layout = Layout(2**62, 3)
    request = Request(np.array([2**62 - 1, 5, 2**40]), layout)
    assert request.wanted.dtype == np.uint64
    assert sorted((request.wanted >> np.uint64(1)).tolist()) == [1, 2**40 // 3, (2**62 - 1) // 3]


@given(indices=batches, seed=st.integers(0, 9))
def test_entries_are_added_up_in_order(indices, seed):
    values = np.random.default_rng(seed).standard_normal((len(indices), 3)).astype(np.float32)
    sums = {}
    for row, value in zip(indices, values, strict=True):
        sums[row] = sums[row] + value if row in sums else value
    rows, found = coalesce((np.array(indices, np.int64), values, None, None))
    assert rows.tolist() == list(sums)
    assert found.tobytes() == b"".join(value.tobytes() for value in sums.values())


def test_the_same_bits_at_any_number_of_threads(threads, launches):
    rng = np.random.default_rng(0)
    indices, values = rng.zipf(1.3, 3000) % 500, rng.standard_normal((3000, 7))
    rows, sums = coalesce((indices, values, None, None))
    expected = {row: np.float64(0) for row in rows.tolist()}
    for row, value in zip(indices.tolist(), values, strict=True):
        expected[row] = expected[row] + value
    assert (sums == np.stack(list(expected.values()))).all()


@given(indices=batches, ranks=st.integers(1, 5))
def test_a_request_lists_distinct_rows_by_owner(indices, ranks):
    indices = np.array(indices, np.int64)
    layout = Layout(2**62 + 1, ranks)
    request = Request(indices, layout)
    assert not np.shares_memory(request.indices, indices)  # the caller may reuse the array
    ends = np.cumsum(request.counts)
    assert ends[-1] == len(np.unique(indices))
    for i, row in enumerate(indices):
        place = request.places[i]
        owner = np.searchsorted(ends, place, "right")
        assert owner == layout.owners_of(indices[i : i + 1])[0]
        assert int(request.wanted[place]) == 2 * (int(row) // ranks) + (np.count_nonzero(indices == row) > 1)
        assert indices[request.order[place]] == row
        assert request.order[place] <= i


@given(asked=st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=5), min_size=1, max_size=5))
def test_passed_on_sums_have_the_order_of_the_batch(asked):
    """Simulate the ranks with tuples in place of numbers: adding them keeps the order in which it was done."""
    asked = [dict(of_one) for of_one in asked]  # for each rank, its rows, and whether it has two entries of each
    requests = [(rank, row, twice) for rank, of_one in enumerate(asked) for row, twice in of_one.items()]
    rows = np.array([row for _, row, _ in requests], np.int64)
    askers = np.array([rank for rank, _, _ in requests], np.int32)
    repeats = np.array([twice for _, _, twice in requests], bool)
    links = np.empty(len(rows), np.uint32)
    link_ranks(chain_rows(rows)[1], askers, repeats, 16, links)
    running, at_owner = {}, {}
    for (rank, row, twice), link in zip(requests, links.tolist(), strict=True):
        before, after = (link >> 16) - 1, (link & 0xFFFF) - 1
        entries = [(rank, 0), (rank, 1)][: 1 + twice]
        if before >= 0:
            total = running.pop((row, rank, before))
            for entry in entries:
                total = ("+", total, entry)
        else:
            total = entries[0] if not twice else ("+", *entries)
        if after >= 0:
            assert after > rank
            running[row, after, rank] = total
        else:
            at_owner[row] = ("+", at_owner[row], total) if row in at_owner else total
    assert not running
    for row, total in at_owner.items():
        in_order = [(rank, k) for rank, r, twice in requests if r == row for k in range(1 + twice)]
        expected = in_order[0]
        for entry in in_order[1:]:
            expected = ("+", expected, entry)
        assert total == expected
