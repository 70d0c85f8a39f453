"""Tables whose rows are found by keys: as tables of numbered rows, and as they grow, drop keys and are saved."""

import copy
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from keyed_tables import DRAW, batch

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.keyed import KeyedTable, table, text_keys
from numba_rmsprop.keyed.sightings import Sightings

VARIANTS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"state": "rowwise", "sparse_update": "lazy"},
    {"use_ema": True, "ema_momentum": 0.5, "bias_correction": True},
]


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
    assert sorted(keyed.evict(max_rows=1).tolist()) == [2, 3]
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
    seen.settle()
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


def test_a_refused_call_counts_no_sighting(monkeypatch):
    def refuse(rows, grads):
        raise ZeroDivisionError

    keyed = KeyedTable(1, admit_after=3)
    keyed.rows([1, 2], create=True)
    monkeypatch.setattr(keyed, "_take_step", refuse)
    for keys in ([1, 5, 7, 1, 5, 7, 2], [5] * 300):
        before, counted = keyed._seen.counters.copy(), keyed._seen.counted
        with pytest.raises(ZeroDivisionError):
            keyed.apply_gradients(keys, np.ones((len(keys), 1), np.float32))
        assert (keyed._seen.counters == before).all()
        assert keyed._seen.counted == counted
    monkeypatch.undo()
    for _ in range(2):
        keyed.apply_gradients([5], np.ones((1, 1), np.float32))
    assert keyed.keys().tolist() == [1, 2]


def test_gradients_of_keys_that_are_left_out_are_checked_too():
    keyed = KeyedTable(1, admit_after=3, check_finite=True)
    with pytest.raises(FloatingPointError, match="values: expected finite numbers, got others for key 7"):
        keyed.apply_gradients([5, 7], np.array([[1], [np.inf]], np.float32))
    assert keyed.iterations == 0


def test_what_reads_rows_touches_none():
    keyed = KeyedTable(1, momentum=0.9, weight_decay=0.1)
    for key in (4, 1, 3, 1, 2):
        keyed.apply_gradients([key], np.ones((1, 1), np.float32))
    keyed.gather([4])
    keyed.flush()
    keyed.optimizer.get_weights()
    assert keyed.evict(max_rows=2).tolist() == [4, 3]


def test_of_rows_of_one_age_those_with_the_smallest_keys_go():
    keyed = KeyedTable(1)
    keyed.rows([5, -2, 9, 1], create=True)
    assert sorted(keyed.evict(max_rows=2).tolist()) == [-2, 1]


def test_first_values_are_asked_for_new_keys_alone():
    keyed = KeyedTable(2, initializer=lambda keys: np.stack([[key, -key] for key in keys.tolist()]) * 1.0)
    keyed.rows([1], create=True)
    assert keyed.gather([1, 1]).tolist() == [[1, -1], [1, -1]]
    keyed.apply_gradients([1], np.ones((1, 2), np.float32))
    assert keyed.gather([]).shape == (0, 2)


def test_an_initializer_that_always_changes_the_table_is_refused():
    keyed = KeyedTable(1, initializer=lambda keys: keyed.evict(max_rows=0).size * np.ones((len(keys), 1)))
    with pytest.raises(RuntimeError, match="initializer: expected one that does not change the table"):
        keyed.rows([1], create=True)


def test_limits_of_any_kind_of_integer():
    keyed = KeyedTable(1)
    keyed.rows(np.arange(500), create=True)
    assert len(keyed.evict(max_rows=np.uint8(5), max_age=np.int8(100))) == 495
