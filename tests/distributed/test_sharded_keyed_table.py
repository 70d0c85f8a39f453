"""Rows by key, shared out among ranks: the bits of one process, refusals, files."""

from functools import cache

import numpy as np
import pytest
from on_ranks import needs_mpi, reports
from sharded_key_training import CASES, CLIPPED, STEPS, digest, trained_alone

from numba_rmsprop.distributed import SavedTables
from numba_rmsprop.keyed import KeyedTable, read_export

pytestmark = [pytest.mark.mpi, needs_mpi]


@cache
def alone():
    """Return the digest of each case in one process, without ranks."""
    return [digest(trained_alone(*kind, **options)) for options, kind in CASES]


@pytest.mark.parametrize(
    "ranks", [1, 3, pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
def test_the_bits_of_one_process(ranks):
    digests, counts = reports("sharded_keys.digests", ranks)
    assert digests[0] == alone()
    assert sum(counts) == len(trained_alone(3, "float32"))
    assert min(counts) > 0


def test_norms_are_clipped_and_sums_by_rank_are_close():
    for (options, kind), found in zip(CLIPPED, reports("sharded_keys.clipped", 2), strict=True):
        expected = trained_alone(*kind, **{name: value for name, value in options.items() if name != "sum_order"})
        assert found[0][0] == len(expected)
        np.testing.assert_allclose(found[0][1], expected.gather(expected.keys()).sum(), rtol=1e-9)


def test_a_rank_that_refuses():
    found = {of_ranks[0][0]: [each[1:] for each in of_ranks] for of_ranks in reports("sharded_keys.refused", 2)}
    words = {
        "strings": "keys: expected integers",
        "shape": r"values: expected shape (1, 2), got (1, 3)",
        "not finite": "values: expected finite numbers, got others for key -81",
        "gather floats": "keys: expected integers",
        "limit": "max_rows: expected a whole number, 0 or more, or None, got -1",
        "root": "root: expected a rank from 0 to 1, got 2",
    }
    for name, message in words.items():
        (other, told), (_, own) = found.pop(name)
        assert other == "OtherRankError"
        assert message in told
        assert message in own
    for name in ("calls", "limits", "columns"):
        for kind, message in found.pop(name):
            assert kind == "ValueError"
            assert "the ranks disagree, so nothing was done" in message
    for name, message in (
        ("no average", "use_ema"),
        ("admission", "admit_after: expected none for a table of several"),
    ):
        for _, told in found.pop(name):
            assert message in told
    for name in ("step of one", "evict of one", "rows of one"):
        for kind, message in found.pop(name):
            assert kind == "TypeError"
            assert "expected a call that all ranks make together" in message
    assert not found


def test_first_values_that_fail_on_one_rank():
    *refused, counts, after, gone = reports("sharded_keys.failing_initializer", 3)
    assert len(refused) == 2
    for of_ranks in refused:
        assert [kind for kind, _ in of_ranks] == ["OtherRankError", "ZeroDivisionError", "OtherRankError"]
    assert sum(counts) == 50
    assert after == [[2, 50], [2, None], [2, None]]
    assert sum(gone) == 47


def test_bytes_on_the_wire():
    sent, least = np.sum(reports("sharded_keys.bytes_sent", 3)[0], axis=0)
    assert 1 <= sent / least < 1.1


def test_saved_and_gone_on_with_on_other_numbers_of_ranks(tmp_path):
    reports("sharded_keys.saves", 3, tmp_path, 0)
    *refusals, digests = reports("sharded_keys.saves", 2, tmp_path, 6)
    assert digests[0] == alone()
    assert "the rows of 'table0' have keys; call saved.keyed_table, or saved.whole_keyed_table" in refusals[0][0]
    assert "the rows of 'numbers' have numbers; call saved.table, or saved.whole" in refusals[1][1]
    saved = SavedTables(tmp_path / "checkpoint-000000001")
    for k, (options, kind) in enumerate(CASES):
        table = saved.whole_keyed_table(f"table{k}")
        assert type(table) is KeyedTable
        with pytest.raises(ValueError, match="expected a file to go on from, got none"):
            table.save_delta(tmp_path / "delta")
        assert digest(trained_alone(*kind, steps=range(6, STEPS), table=table, **options)) == alone()[k]
    with pytest.raises(ValueError, match="have keys"):
        saved.whole("table0")


def test_each_rank_exports_its_rows(tmp_path):
    reports("sharded_keys.exports", 2, tmp_path)
    parts = [read_export(tmp_path / name) for name in "01"]
    expected = trained_alone(3, "float32")
    assert sorted(np.concatenate([keys for keys, _ in parts]).tolist()) == sorted(expected.keys().tolist())
    for keys, rows in parts:
        np.testing.assert_array_equal(rows, expected.gather(keys))
