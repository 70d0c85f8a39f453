"""What a batch asks of other ranks, in one process: rows dealt, entries added up, sums passed on and rounded once."""

import itertools
import json
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_rmsprop.distributed.initial_values import Uniform, fill_shard
from numba_rmsprop.distributed.row_exchange import Request
from numba_rmsprop.distributed.row_layout import Layout
from numba_rmsprop.distributed.saved_tables import read_manifest
from numba_rmsprop.distributed.shard import exact_sum, partial_sum
from numba_rmsprop.files.safetensors_file import DamagedCheckpointError
from numba_rmsprop.kernels.row_dealing import link_ranks
from numba_rmsprop.mpi.coalescing import coalesced, number

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
    rows, found = coalesced(np.array(indices, np.int64), values)
    assert rows.tolist() == list(sums)
    assert found.tobytes() == b"".join(value.tobytes() for value in sums.values())


def test_the_same_bits_at_any_number_of_threads(threads, launches):
    rng = np.random.default_rng(0)
    indices, values = rng.zipf(1.3, 3000) % 500, rng.standard_normal((3000, 7))
    rows, sums = coalesced(indices, values)
    expected = {row: np.float64(0) for row in rows.tolist()}
    for row, value in zip(indices.tolist(), values, strict=True):
        expected[row] = expected[row] + value
    assert (sums == np.stack(list(expected.values()))).all()


@given(indices=batches, ranks=st.integers(1, 5))
def test_a_request_lists_distinct_rows_by_owner(indices, ranks):
    indices = np.array(indices, np.int64)
    layout = Layout(2**62 + 1, ranks)
    request = Request(indices, layout)
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
    link_ranks(number(rows)[1], askers, repeats, 16, links)
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


@given(
    terms=st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=0), max_size=30), cut=st.integers(0, 30)
)
def test_a_sum_is_rounded_once(terms, cut):
    parts = [partial_sum(np.array(part, np.float64)) for part in (terms[:cut], terms[cut:])]
    exact = sum(map(Fraction, terms), Fraction(0))
    try:
        expected = float(exact)
    except OverflowError:
        expected = np.inf
    assert exact_sum(parts) == expected


def test_many_large_terms_pass_no_64_bits():
    terms = np.full(5000, np.nextafter(2.0, 0))
    assert exact_sum([partial_sum(terms)] * 3) == float(15_000 * Fraction(np.nextafter(2.0, 0)))


def test_first_values_are_made_by_blocks(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.distributed.initial_values.ITEMS_AT_A_TIME", 6)
    layout, asked = Layout(31, 2), []

    def values(rows):
        asked.append(len(rows))
        return np.stack([rows, -rows], axis=1)

    for rank in range(2):
        shard = np.empty((layout.length(rank), 2))
        fill_shard(shard, layout, rank, values)
        assert (shard[:, 0] == layout.rows_of(rank)).all()
        assert (shard[:, 1] == -layout.rows_of(rank)).all()
    assert max(asked) == 3


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_what_is_not_finite_stays_so(wrong):
    beyond = partial_sum(np.full(4, 1e308))
    assert exact_sum([beyond, partial_sum(np.array([1e308]))]) == np.inf
    assert not np.isfinite(exact_sum([beyond, partial_sum(np.array([wrong]))]))
    assert not np.isfinite(exact_sum([partial_sum(np.array([1.0, wrong])), partial_sum(np.array([1.0]))]))


def test_uniform_rows_are_uniform_and_depend_on_the_row_alone():
    draw = Uniform(-2.0, 6.0, columns=40, seed=5)
    values = draw(np.arange(5000))
    assert abs(values.mean() - 2) < 0.05
    assert abs(values.std() - 8 / 12**0.5) < 0.05
    assert values.min() >= -2
    assert values.max() < 6
    assert len(np.unique(values)) > 0.98 * values.size
    assert (draw(np.array([4321, 2**40])) == np.stack([values[4321], draw(np.array([2**40]))[0]])).all()
    assert (Uniform(-2.0, 6.0, columns=40, seed=6)(np.arange(9)) != values[:9]).mean() > 0.99
    correlations = np.corrcoef(values.T) - np.eye(40)
    assert np.abs(correlations).max() < 0.08


@pytest.mark.parametrize("arguments", [(1.0, 0.0, 3, 0), (0.0, 1.0, 3, -1), (np.nan, 1.0, 3, 0)])
def test_bounds_of_uniform(arguments):
    with pytest.raises(ValueError, match="expected"):
        Uniform(*arguments)


def manifest(**changes):
    table = {"rows": 3, "columns": 2, "dtype": "float32", "sum_order": "batch", "identities": ["a"], "config": {}}
    content = {
        "format": "numba_rmsprop tables", "format_version": 1, "ranks": 1, "notes": {}, "replicas": None,
        "tables": {"words": table | changes.pop("table", {})},
    } | changes  # fmt: skip
    return sealed(json.dumps(content))


def sealed(text):
    return json.dumps({"crc32": f"{zlib.crc32(text.encode()):08x}", "content": text})


def test_a_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(manifest())
    assert read_manifest(path)["ranks"] == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DamagedCheckpointError, "expected a manifest"),
        ("[]", DamagedCheckpointError, "expected a manifest"),
        ("3", DamagedCheckpointError, "expected a manifest"),
        ('{"crc32": "", "content": 3}', DamagedCheckpointError, "expected a manifest"),
        (manifest().replace("batch", "botch"), DamagedCheckpointError, "checksum"),
        (sealed("[]"), DamagedCheckpointError, "expected format"),
        (sealed("{}"), DamagedCheckpointError, "expected format"),
        ("[" * 100_000, DamagedCheckpointError, "expected a manifest"),
        (manifest(format_version=2), ValueError, "expected format version 1, got 2"),
        (manifest(ranks=2), ValueError, "entries"),
        (manifest(ranks="1"), ValueError, "entries"),
        (manifest(ranks=True), ValueError, "entries"),
        (manifest(tables=[]), ValueError, "entries"),
        (manifest(replicas=3), ValueError, "entries"),
        (manifest(table={"rows": -1}), ValueError, "entries"),
        (manifest(table={"columns": 0}), ValueError, "entries"),
        (manifest(table={"dtype": "int8"}), ValueError, "entries"),
        (manifest(table={"config": None}), ValueError, "entries"),
        (manifest(table={"config": {"initializer": "ones"}}), ValueError, "entries"),
        (manifest(table={"sum_order": "x"}), ValueError, "entries"),
        (manifest(table={"identities": [3]}), ValueError, "entries"),
        (manifest().replace("words", "../words"), DamagedCheckpointError, "checksum"),
        (sealed(json.loads(manifest())["content"].replace("words", "../words")), ValueError, "entries"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, text, error, message):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(error, match=message) as raised:
        read_manifest(path)
    assert str(path) in str(raised.value)
