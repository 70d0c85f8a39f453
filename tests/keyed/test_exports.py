"""Rows by key for other programs: safetensors, changes that follow one another, and word2vec."""

import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from keyed_tables import DRAW, batch

from numba_rmsprop import DamagedCheckpointError
from numba_rmsprop.files import safetensors_file
from numba_rmsprop.files.safetensors_file import write_tensors
from numba_rmsprop.keyed import KeyedTable, export, read_export, table


def as_dict(keys, rows):
    assert len(set(keys.tolist())) == len(keys)
    return {key: row.tobytes() for key, row in zip(keys.tolist(), rows, strict=True)}


@pytest.mark.usefixtures("growth")
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"sparse_update": "lazy", "admit_after": 2}], ids=str)
def test_an_export_and_its_changes_are_the_table(tmp_path, monkeypatch, options):
    monkeypatch.setattr(safetensors_file, "CHUNK_ITEMS", 50)
    keyed, paths = KeyedTable(3, initializer=DRAW, learning_rate=0.1, **options), []
    for step in range(12):
        keys, grads = batch(step)
        keyed.gather(keys)
        keyed.apply_gradients(keys, grads)
        if step % 3 == 2:
            keyed.evict(max_age=2)
        if step % 5 == 4:
            keyed.evict(max_rows=10)
        if step == 6:
            keyed.flush()
        if step % 2:
            paths.append(tmp_path / str(step))
            (keyed.export_changes if len(paths) > 1 else keyed.export)(paths[-1])
        keyed.rows([1000 + step], create=True)
    paths.append(tmp_path / "last")
    keyed.export_changes(paths[-1])
    keys = keyed.keys()
    found = as_dict(*read_export(paths))
    assert found == as_dict(keys, keyed.gather(keys))
    keyed.export(tmp_path / "whole")
    assert found == as_dict(*read_export(tmp_path / "whole"))
    if not options:
        assert len(safetensors.numpy.load_file(paths[-2])["keys"]) < len(keys)


def test_an_export_leaves_rows_as_far_behind_as_they_are(tmp_path):
    keyed = KeyedTable(3, initializer=DRAW, momentum=0.9, use_ema=True)
    for step in range(4):
        keyed.apply_gradients(*batch(step))
    before, keys = keyed._var.tobytes(), keyed.keys()
    keyed.export(tmp_path / "rows")
    keyed.export(tmp_path / "averages", averaged=True)
    assert keyed._var.tobytes() == before
    np.testing.assert_array_equal(read_export(tmp_path / "averages")[1], keyed.gather(keys, averaged=True))
    np.testing.assert_array_equal(read_export(tmp_path / "rows")[1], keyed.gather(keys))
    plain = KeyedTable(3)
    with pytest.raises(ValueError, match="use_ema"):
        plain.export(tmp_path / "no averages", averaged=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("own", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes(tmp_path, own, dtype):
    own, dtype = (np.dtype(getattr(ml_dtypes, name, name)) for name in (own, dtype))
    keyed = KeyedTable(3, own, DRAW)
    keyed.apply_gradients([7, -7], np.ones((2, 3), np.float64 if own == np.float64 else np.float32))
    keyed.export(tmp_path / "file", dtype=dtype)
    keys, rows = read_export(tmp_path / "file")
    assert rows.dtype == dtype
    assert keys.tolist() == [7, -7]
    np.testing.assert_array_equal(rows, keyed.gather([7, -7]).astype(dtype))
    found = safetensors.numpy.load_file(tmp_path / "file") if dtype.name != "bfloat16" else {"rows": rows}
    np.testing.assert_array_equal(found["rows"], rows)


def test_exports_that_are_refused(tmp_path):
    keyed = KeyedTable(2, initializer=lambda keys: np.stack([keys, keys], axis=1) * 1e4)
    with pytest.raises(ValueError, match=r"expected an export to go on from, got none; call table\.export first"):
        keyed.export_changes(tmp_path / "changes")
    keyed.rows([1, 7], create=True)
    with pytest.raises(ValueError, match="expected one that holds the row of key 7, got float16; take a wider one"):
        keyed.export(tmp_path / "file", dtype=np.float16)
    with pytest.raises(TypeError, match="dtype: expected float32, float64"):
        keyed.export(tmp_path / "file", dtype=np.int8)
    assert list(tmp_path.iterdir()) == []
    keyed._var[1] = np.inf  # which is no overflow
    keyed.export(tmp_path / "file", dtype=np.float16)
    assert read_export(tmp_path / "file")[1].tolist() == [[1e4, 1e4], [np.inf, np.inf]]


def test_files_in_another_order_are_refused(tmp_path):
    keyed = KeyedTable(2)
    names = [tmp_path / name for name in "abc"]
    keyed.export(names[0])
    keyed.export_changes(names[1])
    keyed.export_changes(names[2])
    read_export(names)
    for wrong, message in (
        (names[1:], "expected a whole export, got another file; pass them in order"),
        ([names[0], names[2]], r"c: expected the changes that follow .*a, got another"),
        ([names[0], names[0]], "expected the changes that follow"),
        ([], "path: expected an export, or one and its changes in order, got no path"),
    ):
        with pytest.raises(ValueError, match=message):
            read_export(wrong)
    keyed.save(tmp_path / "table")
    with pytest.raises(DamagedCheckpointError, match=r"expected a file of KeyedTable\.export, got 'numba_rmsprop'"):
        read_export(tmp_path / "table")


@pytest.mark.parametrize("binary", [True, False])
def test_gensim_reads_the_format_of_word2vec(tmp_path, binary, monkeypatch):
    keyedvectors = pytest.importorskip("gensim.models.keyedvectors", reason="needs gensim, of the extra bench")
    monkeypatch.setattr(export, "CHUNK_ITEMS", 30)
    keyed = KeyedTable(3, initializer=DRAW, learning_rate=0.1, momentum=0.9)
    for step in range(3):
        keyed.apply_gradients(*batch(step))
    names = {key: f"wörd{key}" for key in keyed.keys().tolist()}
    for chosen in (None, names):
        keyed.export_word2vec(tmp_path / "words", names=chosen, binary=binary)
        found = keyedvectors.KeyedVectors.load_word2vec_format(tmp_path / "words", binary=binary)
        assert found.index_to_key == [chosen[key] if chosen else str(key) for key in keyed.keys().tolist()]
        np.testing.assert_array_equal(found.vectors, keyed.gather(keyed.keys()))


def test_names_that_the_format_cannot_hold(tmp_path):
    keyed = KeyedTable(2)
    keyed.rows([1, 2], create=True)
    for names, message in (
        ({1: "a b", 2: "c"}, "names: expected words without white space, got 'a b'"),
        ({1: "", 2: "c"}, "names: expected words without white space, got ''"),
        ({1: "c", 2: "c"}, "names: expected a different one for each key, got 'c' twice"),
    ):
        with pytest.raises(ValueError, match=message):
            keyed.export_word2vec(tmp_path / "words", names=names)
    with pytest.raises(KeyError, match="2"):
        keyed.export_word2vec(tmp_path / "words", names={1: "a"})
    assert list(tmp_path.iterdir()) == []


def test_a_handler_amid_an_export(tmp_path, monkeypatch):
    """A handler steps and evicts while rows are written: the file fits together."""
    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    keyed = KeyedTable(1, initializer=lambda keys: keys[:, np.newaxis] * 1.0)
    keyed.rows([1, 2], create=True)
    write, done = export.write_tensors, []

    def handled(*arguments):
        if not done:
            done.append(True)
            keyed.evict(max_rows=0)
            keyed.rows([50, 51], create=True)
        return write(*arguments)

    monkeypatch.setattr(export, "write_tensors", handled)
    keyed.export(tmp_path / "file")
    keys, rows = read_export(tmp_path / "file")
    assert sorted(keys.tolist()) == [50, 51]
    assert rows.ravel().tolist() == keys.tolist()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_handler_drops_amid_an_export_is_told_by_the_next(tmp_path, monkeypatch, moment):
    keyed = KeyedTable(1, initializer="ones")
    keyed.rows([1, 2, 3], create=True)
    names = [tmp_path / name for name in "abc"]
    if moment == "before":
        keyed.export(names[0])
    real, done = os.fsync, []

    def handled(descriptor):
        real(descriptor)
        if not done:
            done.append(keyed.evict(max_rows=2))
            with pytest.raises(RuntimeError, match="export: expected no call amid another export"):
                keyed.export(tmp_path / "another")

    monkeypatch.setattr(os, "fsync", handled)
    (keyed.export_changes if moment == "before" else keyed.export)(names[1])
    keyed.export_changes(names[2])
    assert done
    assert sorted(read_export(names[moment == "after" :])[0].tolist()) == [2, 3]


def test_changes_go_on_as_the_export_began(tmp_path):
    keyed = KeyedTable(2, use_ema=True, ema_momentum=0.5, sparse_update="lazy")
    for _ in range(2):
        keyed.apply_gradients([1, 2], np.ones((2, 2), np.float32))
    names = [tmp_path / name for name in "ab"]
    keyed.export(names[0], dtype=np.float16, averaged=True)
    keyed.apply_gradients([1], np.ones((1, 2), np.float32))
    for path in names[:1]:
        with pytest.raises(ValueError, match="expected a new file, got one that the changes would go on from"):
            keyed.export_changes(path)
    keyed.export_changes(names[1])
    keys, rows = read_export(names)
    np.testing.assert_array_equal(rows, keyed.gather(keys, averaged=True).astype(np.float16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"keys": None},
        {"rows": None},
        {"keys": np.zeros(3)},
        {"keys": np.zeros(2, np.int64)},
        {"rows": np.zeros(3)},
        {"dropped": np.zeros((1, 1), np.int64)},
        {"follows": None},
        {"identity": None},
        {"format_version": "2"},
    ],
    ids=str,
)
def test_exports_that_are_none(tmp_path, wrong):
    tensors = {"keys": np.arange(3), "rows": np.ones((3, 2)), "dropped": np.arange(0)}
    metadata = {"format": export.FORMAT, "format_version": "1", "identity": "a", "follows": ""}
    write_tensors(tmp_path / "right", tensors, metadata)
    read_export(tmp_path / "right")
    for part in (tensors, metadata):
        part.update({name: value for name, value in wrong.items() if name in part})
        for name in [name for name, value in part.items() if value is None]:
            del part[name]
    write_tensors(tmp_path / "wrong", tensors, metadata)
    with pytest.raises(DamagedCheckpointError):
        read_export(tmp_path / "wrong")


def test_rows_of_another_kind_do_not_follow(tmp_path):
    metadata = {"format": export.FORMAT, "format_version": "1", "identity": "a", "follows": ""}
    write_tensors(tmp_path / "a", {"keys": np.arange(3), "rows": np.ones((3, 2))}, metadata)
    for rows in (np.ones((3, 4)), np.ones((3, 2), np.float32)):
        write_tensors(tmp_path / "b", {"keys": np.arange(3), "rows": rows}, metadata | {"follows": "a"})
        with pytest.raises(DamagedCheckpointError, match="b: expected rows like those of"):
            read_export([tmp_path / "a", tmp_path / "b"])


def test_numbers_that_float32_cannot_hold(tmp_path):
    keyed = KeyedTable(1, np.float64, 1e300)
    keyed.rows([7], create=True)
    with pytest.raises(ValueError, match="the row of key 7, got float32"):
        keyed.export_word2vec(tmp_path / "words")
    with pytest.raises(ValueError, match="names: expected words without white space, got 7"):
        keyed.export_word2vec(tmp_path / "words", names={7: 7})


def test_a_key_that_has_come_back_is_not_dropped(tmp_path):
    keyed = KeyedTable(1)
    keyed.rows([1, 2], create=True)
    keyed.export(tmp_path / "rows")
    keyed.evict(max_rows=0)
    keyed.rows([2], create=True)
    keyed.export_changes(tmp_path / "changes")
    found = safetensors.numpy.load_file(tmp_path / "changes")
    assert {name: found[name].tolist() for name in ("keys", "dropped")} == {"keys": [2], "dropped": [1]}


def test_a_handler_amid_an_export_of_word2vec(tmp_path, monkeypatch):
    keyed, done = KeyedTable(1, initializer=lambda keys: keys[:, np.newaxis] * 1.0), []
    keyed.rows([1, 2], create=True)
    cast = export._cast

    def handled(*arguments):
        if not done:
            done.append(keyed.evict(max_rows=0))
            keyed.rows([50, 51], create=True)
        return cast(*arguments)

    monkeypatch.setattr(export, "_cast", handled)
    keyed.export_word2vec(tmp_path / "words", binary=False)
    assert sorted((tmp_path / "words").read_text().splitlines()) == ["2 1", "50 50", "51 51"]
