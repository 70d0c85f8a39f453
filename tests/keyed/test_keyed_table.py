"""Tables whose rows are found by keys: as tables of numbered rows, and as they grow, drop keys and are saved."""

import copy
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.files import checkpoint
from numba_rmsprop.keyed import KeyedTable, Uniform, table, text_keys
from numba_rmsprop.keyed.sightings import Sightings

DRAW = Uniform(-1.0, 1.0, 3, seed=5)
VARIANTS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"state": "rowwise", "sparse_update": "lazy"},
    {"use_ema": True, "ema_momentum": 0.5, "bias_correction": True},
]


def batch(step, n=40):
    rng = np.random.default_rng(step)
    return rng.zipf(1.4, n).astype(np.int64) * (1 - 2 * (step % 2)), rng.standard_normal((n, 3)).astype(np.float32)


@pytest.fixture(params=["in place", "copied"])
def growth(request, monkeypatch):
    """Let tables grow in place, or be copied."""
    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    if request.param == "copied":

        def refuse(own, rows):
            raise MemoryError

        monkeypatch.setattr(table, "Reserve", refuse)


@pytest.mark.usefixtures("growth")
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_as_a_table_of_numbered_rows(options):
    keyed, numbers = KeyedTable(3, initializer=DRAW, learning_rate=0.1, **options), {}
    alone, opt = np.zeros((3000, 3), np.float32), RMSprop(0.1, **options)
    for step in range(12):
        keys, grads = batch(step)
        for key in keys.tolist():
            if key not in numbers:
                numbers[key] = len(numbers)
                alone[numbers[key]] = DRAW(np.array([key]))[0]
        opt.build([alone])
        rows = np.array([numbers[key] for key in keys.tolist()])
        if step == 0:
            opt.reset_rows(alone, rows, DRAW(keys))
        else:
            new = rows[keyed.rows(keys) < 0]
            opt.reset_rows(alone, new, DRAW(keys[keyed.rows(keys) < 0]))
        np.testing.assert_array_equal(keyed.gather(keys), opt.gather(alone, rows))
        assert keyed.apply_gradients(keys, grads) == step + 1
        opt.apply_gradients([(IndexedSlices(grads, rows), alone)])
    keys = np.array(list(numbers))
    assert keyed.keys().tolist() == keys.tolist()
    assert keyed.rows(keys).tolist() == list(range(len(keys)))
    found = keyed.gather(keys)
    np.testing.assert_array_equal(found, opt.gather(alone, np.arange(len(keys))))
    if options.get("use_ema"):
        averages = keyed.gather(keys, averaged=True)
        np.testing.assert_array_equal(averages, opt.gather(alone, np.arange(len(keys)), averaged=True))


def test_reading_what_there_is_not_touches_no_row():
    keyed = KeyedTable(3, initializer=DRAW, momentum=0.9)
    for key in (1, 2, 2):
        keyed.apply_gradients([key], np.ones((1, 3), np.float32))
    before = keyed._var.tobytes()
    out = np.zeros((2, 3), np.float32)
    assert keyed.gather([7, 8], out=out) is out
    np.testing.assert_array_equal(out, DRAW(np.array([7, 8])).astype(np.float32))
    assert keyed._var.tobytes() == before
    with pytest.raises(ValueError, match="out: expected a C-contiguous array"):
        keyed.gather([7, 8], out=np.zeros((3, 3), np.float32))


def test_first_values_depend_on_the_key_alone():
    first, second = (KeyedTable(3, initializer=DRAW) for _ in range(2))
    keys = np.array([5, -7, 2**62, 0])
    first.rows(keys, create=True)
    second.rows(keys[::-1], create=True)
    for each in (first, second, KeyedTable(3, initializer=DRAW)):
        np.testing.assert_array_equal(each.gather(keys), DRAW(keys).astype(np.float32))
    assert len(KeyedTable(3, initializer=DRAW)) == 0


def test_what_is_evicted_comes_back_anew():
    keyed = KeyedTable(3, initializer=DRAW, learning_rate=0.1)
    for key in (1, 2, 3, 2):
        keyed.apply_gradients([key], np.ones((1, 3), np.float32))
    assert keyed.evict(max_age=1).tolist() == [1]
    assert keyed.evict(max_age=1).tolist() == []
    assert keyed.keys().tolist() == [2, 3]
    assert (1 in keyed, 2 in keyed, len(keyed)) == (False, True, 2)
    np.testing.assert_array_equal(keyed.gather([1]), DRAW(np.array([1])).astype(np.float32))
    assert keyed.rows([9], create=True).tolist() == [0]
    fresh = KeyedTable(3, initializer=DRAW, learning_rate=0.1)
    for each in (keyed, fresh):
        each.apply_gradients([9], np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(keyed.gather([9]), fresh.gather([9]))
    assert keyed.evict(max_rows=1).tolist() == [2, 3]
    assert keyed.evict(max_rows=0).tolist() == [9]
    assert len(keyed) == 0


def test_keys_get_a_row_when_they_were_seen_often_enough(tmp_path):
    keyed = KeyedTable(1, admit_after=3, learning_rate=0.1)
    ones = np.ones((1, 1), np.float32)
    assert keyed.apply_gradients([5], ones) == 1
    keyed.apply_gradients([5, 6, 7], np.ones((3, 1), np.float32))
    assert len(keyed) == 0
    keyed.save(tmp_path / "file")
    for each in (keyed, KeyedTable.load(tmp_path / "file")):
        each.apply_gradients([6, 5, 6, -1, 6], np.array([[1.0], [2.0], [1.0], [1.0], [1.0]], np.float32))
        assert each.keys().tolist() == [5, 6]
        np.testing.assert_allclose(each.gather([5, 6]), -0.1 / 0.1**0.5, rtol=1e-3)  # 6 with its third and fourth alone
        assert each.rows([9], create=True).tolist() == [2]  # asked for by name
    keyed.apply_gradients([5], ones)
    assert keyed.iterations == 4


def test_the_least_frequent_are_hardly_counted_too_high():
    seen = Sightings(2)
    rng = np.random.default_rng(0)
    frequent = rng.integers(0, 1000, 300_000)
    seen.admit(frequent, np.full(len(frequent), -1))
    rare = np.arange(10**6, 10**6 + 100_000)
    assert seen.admit(rare, np.full(len(rare), -1)).mean() < 0.001
    assert seen.admit(rare, np.full(len(rare), -1)).all()
    seen.counted = 10**9
    seen.admit(rare[:1], np.array([-1]))
    assert seen.counted == 0
    assert int(seen.counters.max()) == 127


@pytest.mark.parametrize("admit_after", [0, 256, 1.5, True, None])
def test_admissions_that_there_are_not(admit_after):
    with pytest.raises(ValueError, match="admit_after: expected a whole number from 1 to 255, got"):
        KeyedTable(2, admit_after=admit_after)


def test_the_longest_untouched_go_first():
    keyed = KeyedTable(1)
    for key in (4, 1, 3, 1, 2):
        keyed.apply_gradients([key], np.ones((1, 1), np.float32))
    assert keyed.evict(max_rows=2).tolist() == [4, 3]
    assert keyed.keys().tolist() == [1, 2]


@pytest.mark.usefixtures("growth")
@pytest.mark.parametrize("initializer", [DRAW, 0.5, "ones"])
def test_files(tmp_path, initializer):
    keyed = KeyedTable(3, initializer=initializer, learning_rate=0.1, momentum=0.9)
    for step in range(4):
        keyed.apply_gradients(*batch(step))
    keyed.evict(max_rows=20)
    keyed.save(tmp_path / "file")
    keys, grads = batch(1, 10)
    keys = np.resize(keyed.keys(), 10)
    keyed.apply_gradients(keys, grads)
    new = np.array([10**15, -(10**15)])
    keyed.rows(new, create=True)
    keyed.save_delta(tmp_path / "delta")
    loaded = KeyedTable.load([tmp_path / "file", tmp_path / "delta"])
    for step in range(6, 9):
        for each in (keyed, loaded):
            each.gather(batch(step)[0])
            each.apply_gradients(*batch(step))
    assert loaded.keys().tolist() == keyed.keys().tolist()
    np.testing.assert_array_equal(loaded.gather(keyed.keys()), keyed.gather(keyed.keys()))
    assert loaded.iterations == keyed.iterations
    loaded.save(tmp_path / "again")


def test_files_of_functions_and_of_others(tmp_path):
    keyed = KeyedTable(2, initializer=lambda keys: np.stack([keys, -keys], 1).astype(float))
    keyed.rows([3], create=True)
    keyed.save(tmp_path / "file")
    with pytest.raises(ValueError, match="initializer was the function '<lambda>', which a file cannot hold; pass"):
        KeyedTable.load(tmp_path / "file")
    assert KeyedTable.load(tmp_path / "file", initializer="ones").gather([3, 4]).tolist() == [[3, -3], [1, 1]]
    var, opt = np.ones((2, 2)), RMSprop()
    opt.build({"table": var})
    opt.save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"expected a file of KeyedTable\.save, got another"):
        KeyedTable.load(tmp_path / "other")
    with pytest.raises(ValueError, match="path: expected a file, or a file and its deltas in order, got no path"):
        KeyedTable.load([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": np.array([3, 3])}, "expected different keys for at most 1024 rows, got others"),
        ({"keys": np.arange(2000)}, "expected different keys for at most 1024 rows, got others"),
        ({"keys": np.array([3.0])}, "expected different keys for at most 1024 rows, got others"),
        ({"free rows": np.array([7])}, "expected different keys for at most 1024 rows, got others"),
        ({"admission": np.array([0, 1])}, "admit_after: expected a whole number from 1 to 255, got 0"),
        ({"admission": np.array([2, 1])}, "sightings: expected shape"),
        *(
            (
                {"initializer": np.frombuffer(text.encode(), np.uint8)},
                "initializer: expected a number or that of a table",
            )
            for text in ("[" * 5000, "null", "true", "{", '{"uniform":3}', '{"uniform":[0.0,1.0,3,0]}', "NaN", "[1]")
        ),
    ],
)
def test_files_that_make_no_sense(tmp_path, changes, message):
    keyed = KeyedTable(2)
    keyed.rows([3], create=True)
    right = keyed.optimizer.keys
    keyed.optimizer.keys = lambda: right() | changes
    keyed.save(tmp_path / "wrong")
    with pytest.raises(ValueError, match=message):
        KeyedTable.load(tmp_path / "wrong")


def test_other_files_are_no_tables(tmp_path):
    keyed = KeyedTable(2)
    keyed.optimizer.save(tmp_path / "values apart", include_variables=False)
    with pytest.raises(ValueError, match=r"expected a file of KeyedTable\.save, got another"):
        KeyedTable.load(tmp_path / "values apart")
    for shape in ((3,), (3, 2, 2), (3, 0)):
        var, opt = np.ones(shape, np.float32), RMSprop()
        opt.build({"table": var})
        opt.own_weights = keyed.optimizer.own_weights
        opt.save(tmp_path / "shape")
        with pytest.raises(ValueError, match=r"expected a file of KeyedTable\.save, got another"):
            KeyedTable.load(tmp_path / "shape")


def test_a_refused_call_leaves_no_rows_to_grow_by(tmp_path):
    fails = [True]

    def values(keys):
        if fails:
            raise ZeroDivisionError
        return np.zeros((len(keys), 2))

    keyed = KeyedTable(2, initializer=values, check_finite=True)
    with pytest.raises(ZeroDivisionError):
        keyed.rows(np.arange(5000), create=True)
    fails.clear()
    with pytest.raises(FloatingPointError):
        keyed.apply_gradients(np.arange(5000), np.full((5000, 2), np.nan, np.float32))
    assert keyed._map.counts[:2].tolist() == [0, 0]
    keyed.rows([1], create=True)
    keyed.save(tmp_path / "file")
    assert KeyedTable.load(tmp_path / "file", initializer="zeros").keys().tolist() == [1]


def test_an_initializer_may_use_the_table():
    def values(keys):
        if 7 not in keyed:
            keyed.optimizer.learning_rate = 0.5
            busy.append(len(keys))
            if len(busy) == 1:
                keyed.rows([100], create=True)
                keyed.evict(max_rows=0)
        return np.full((len(keys), 2), float(len(keyed)))

    busy = []
    keyed = KeyedTable(2, initializer=values)
    assert keyed.rows([7, 8], create=True).tolist() == [0, 1]
    assert len(busy) > 1
    assert keyed.keys().tolist() == [7, 8]


def test_an_initializer_may_drop_keys_of_the_call():
    def values(keys):
        if not dropped:
            dropped.append(keyed.evict(max_rows=0))
            keyed.rows([9], create=True)
        return keys[:, np.newaxis] * 1.0

    dropped = [None]
    keyed = KeyedTable(1, initializer=values, learning_rate=0.1)
    keyed.rows([1], create=True)
    dropped.clear()
    keyed.apply_gradients([1, 2], np.ones((2, 1), np.float32))
    assert sorted(keyed.keys().tolist()) == [1, 2, 9]
    assert keyed.gather([9]).tolist() == [[9]]


def test_both_limits_of_an_eviction():
    keyed = KeyedTable(1)
    for key in (1, 2, 3, 4, 5):
        keyed.apply_gradients([key], np.ones((1, 1), np.float32))
    assert keyed.evict(max_age=2, max_rows=2).tolist() == [1, 2, 3]
    assert keyed.keys().tolist() == [4, 5]


def test_a_handler_amid_a_save_and_a_gather(monkeypatch, tmp_path):
    """A handler evicts all keys and gives their rows to others while a file is written: the file fits together."""
    keyed = KeyedTable(1, initializer=lambda keys: keys[:, np.newaxis] * 1.0)
    keyed.rows([1, 2], create=True)
    parse, done = checkpoint.parse, []

    def handled(*arguments):
        if not done:
            done.append(True)
            keyed.evict(max_rows=0)
            keyed.rows([50, 51], create=True)
        return parse(*arguments)

    monkeypatch.setattr(checkpoint, "parse", handled)
    keyed.save(tmp_path / "file")
    loaded = KeyedTable.load(tmp_path / "file", initializer="zeros")
    assert loaded.gather(loaded.keys()).ravel().tolist() == loaded.keys().tolist()


def test_arrays_that_belong_to_the_table_are_no_output():
    keyed = KeyedTable(2)
    keyed.rows([5], create=True)
    rms = keyed.optimizer.get_slot(keyed._var, "rms")
    for keys in ([5, 5], [5, 77]):
        with pytest.raises(ValueError, match="out"):
            keyed.gather(keys, out=rms[:2])


def test_a_single_key_and_no_key():
    keyed = KeyedTable(2)
    assert keyed.apply_gradients(5, np.ones(2, np.float32)) == 1
    assert (keyed.gather(5).shape, keyed.rows(5).shape) == ((2,), ())
    assert ("a" in keyed, 5.5 in keyed, 2**70 in keyed, 5 in keyed) == (False, False, False, True)
    assert keyed.gather(np.empty((0, 3), int)).shape == (0, 3, 2)
    assert keyed.apply_gradients([], np.empty((0, 2), np.float32)) == 2


def test_clocks_that_begin_anew_go_on_after_growth(monkeypatch):
    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    found = []
    for restarts in (False, True):
        keyed = KeyedTable(2, learning_rate=0.1, momentum=0.9)
        for step, key in enumerate([1, 2, 1, 3, 4, 2, 1, 5]):
            keyed.gather([key])
            keyed.apply_gradients([key], np.ones((1, 2), np.float32))
            if step == 2 and restarts:
                own = keyed.optimizer.known.slots[0]
                own.flush()
                own.restore(None, 0, 0, own.history.runs[:0])
            elif step == 2:
                keyed.flush()
        found.append(keyed.gather(keyed.keys()))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_refused_call_gives_no_rows():
    keyed = KeyedTable(3, initializer=DRAW, check_finite=True)
    keyed.apply_gradients([1, 2], np.ones((2, 3), np.float32))
    wrong = [
        ([5], np.full((1, 3), np.nan, np.float32), FloatingPointError, "expected finite numbers"),
        ([5], np.ones((1, 2), np.float32), ValueError, r"values: expected shape \(1, 3\), got \(1, 2\)"),
        ([5], np.ones((1, 3)), TypeError, "values: expected dtype float32, got float64"),
        ([5.0], np.ones((1, 3), np.float32), TypeError, r"keys: expected integers from -2\*\*63 to 2\*\*63 - 1, got"),
        (["a"], np.ones((1, 3), np.float32), TypeError, "keys: expected integers"),
        ([True], np.ones((1, 3), np.float32), TypeError, "keys: expected integers"),
        (np.array([2**63], np.uint64), np.ones((1, 3), np.float32), TypeError, "keys: expected integers"),
    ]
    for keys, values, error, message in wrong:
        with pytest.raises(error, match=message):
            keyed.apply_gradients(keys, values)
        assert keyed.keys().tolist() == [1, 2]
    keyed.apply_gradients([7, 5], np.ones((2, 3), np.float32))
    assert keyed.rows([7, 5]).tolist() == [2, 3]


@pytest.mark.usefixtures("growth")
def test_an_initializer_that_fails_gives_no_rows():
    fails = []

    def values(keys):
        if fails:
            raise ZeroDivisionError
        return np.zeros((len(keys), 2))

    keyed = KeyedTable(2, initializer=values)
    keyed.rows([1], create=True)
    fails.append(True)
    with pytest.raises(ZeroDivisionError):
        keyed.rows([2, 3, 4, 5], create=True)
    assert keyed.keys().tolist() == [1]
    fails.clear()
    assert keyed.rows([4, 3], create=True).tolist() == [1, 2]
    wrong = KeyedTable(2, initializer=lambda keys: np.zeros(len(keys)))
    with pytest.raises(ValueError, match=r"initializer: expected an array of shape \(1, 2\) for as many keys, got"):
        wrong.rows([1], create=True)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    computed = np.float64 if dtype == np.float64 else np.float32
    keyed = KeyedTable(2, dtype, initializer=0.5, learning_rate=0.1, rounding="stochastic")
    keyed.apply_gradients([[1, 2], [2, 1]], np.ones((2, 2, 2), computed))
    found = keyed.gather([[1], [3]])
    assert (found.dtype, found.shape) == (computed, (2, 1, 2))
    assert (found[0] < 0.5).all()
    assert (found[1] == 0.5).all()


def test_threads_lose_no_key():
    keyed = KeyedTable(2, learning_rate=0.1)

    def train(number):
        for k in range(40):
            keyed.apply_gradients([k, 1000 * number + k], np.ones((2, 2), np.float32))

    threads = [threading.Thread(target=train, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(keyed), keyed.iterations) == (200, 160)
    assert len(set(keyed.keys().tolist())) == 200


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": 0}, ValueError, "columns: expected a whole number above 0, got 0"),
        ({"columns": 2, "dtype": np.int32}, TypeError, "dtype: expected one of float32, float64"),
        ({"columns": 2, "initializer": "ten"}, ValueError, "initializer: expected one of"),
        ({"columns": 2, "gradient_accumulation_steps": 2}, ValueError, "expected none for a KeyedTable, got 2; leave"),
        ({"columns": 2, "slots_folder": "."}, ValueError, "slots_folder: expected none for a KeyedTable, got"),
        ({"columns": 2, "learnig_rate": 2}, TypeError, "did you mean 'learning_rate'"),
    ],
)
def test_tables_that_there_are_not(options, error, message):
    with pytest.raises(error, match=message):
        KeyedTable(**options)


def test_copies_and_limits_are_refused():
    keyed = KeyedTable(2)
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        for what in (keyed, keyed.optimizer):
            with pytest.raises(TypeError, match="a KeyedTable cannot be copied or pickled, since it lies in reserved"):
                call(what)
    with pytest.raises(TypeError, match="extra: a KeyedTable has no weights of your own"):
        keyed.optimizer.add_weight("extra")
    with pytest.raises(TypeError, match="extra: a KeyedTable has no slots of your own"):
        keyed.optimizer.add_slot(keyed._var, "extra")
    for limits in ({"max_age": -1}, {"max_rows": 1.5}, {"max_rows": True}):
        with pytest.raises(ValueError, match="expected a whole number, 0 or more, or None, got"):
            keyed.evict(**limits)


def test_keys_of_strings():
    keys = text_keys(["ann", "bob", "ann", ""])
    assert keys.dtype == np.int64
    assert len(set(keys.tolist())) == 3
    assert keys[0] == keys[2]
