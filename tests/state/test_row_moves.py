"""Rows that go on at another array with their state: as if they had always been there."""

import copy

import numpy as np
import pytest

from numba_rmsprop import IndexedSlices, RMSprop

VARIANTS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    {"centered": True, "sparse_update": "lazy"},
    {"state": "rowwise", "momentum": 0.5},
    {"use_ema": True, "ema_momentum": 0.5, "bias_correction": True},
    {"initial_scale": 0.5},
]


def step(opt, table, rows, seed):
    values = np.random.default_rng(seed).standard_normal((len(rows), *table.shape[1:])).astype(table.dtype)
    opt.gather(table, rows)
    opt.apply_gradients([(IndexedSlices(values, rows), table)])


def state(opt, table):
    opt.flush()
    return [table, *(opt.get_slot(table, slot) for slot in opt.get_slot_names())]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_longer_table_is_as_one_that_was_so_long_from_the_beginning(options):
    grown, whole = np.ones((6, 2)), np.ones((9, 2))
    whole[6:] = 0.0
    opt, expected = RMSprop(0.1, **options), RMSprop(0.1, **options)
    for seed in range(12):
        rows = [seed % 5, 0] if seed < 7 else [seed % 5, 6 + seed % 2]
        if seed == 7:
            grown = opt.resize(grown, 9)
        step(opt, grown, rows, seed)
        step(expected, whole, rows, seed)
    for ours, theirs in zip(state(opt, grown), state(expected, whole), strict=True):
        if options.get("initial_scale"):  # which decays from the beginning on there
            ours, theirs = ours[:6], theirs[:6]
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_rows_in_another_order_go_on_as_they_were(options, order):
    moved, alone = np.ones((7, 3), order=order), np.ones((7, 3))
    opt, expected = RMSprop(0.1, **options), RMSprop(0.1, **options)
    places = np.array([6, 2, 4, 0, 1])
    where = {int(row): k for k, row in enumerate(places)}
    for seed in range(12):
        rows = [6, 2, 0] if seed % 3 else [4]
        if seed == 6:
            moved = opt.take_rows(moved, places)
            assert moved.flags.f_contiguous == (order == "F")
        step(opt, moved, [where[row] for row in rows] if seed >= 6 else rows, seed)
        step(expected, alone, rows, seed)
    for ours, theirs in zip(state(opt, moved), state(expected, alone), strict=True):
        np.testing.assert_array_equal(ours, theirs[places])


def test_new_rows_have_missed_no_step():
    table, opt = np.ones((3, 2)), RMSprop(0.1, momentum=0.9, weight_decay=0.1)
    for seed in range(4):
        step(opt, table, [1], seed)
    table = opt.resize(table, 5, initializer=5.0)
    assert opt.gather(table, [3, 4]).tolist() == [[5, 5], [5, 5]]


def test_tables_of_many_rows():
    table, opt = np.arange(150_000.0), RMSprop()
    opt.apply_gradients([(table.copy(), table)])
    before, rms, order = table.copy(), opt.get_slot(table, "rms").copy(), np.random.default_rng(0).permutation(150_000)
    table = opt.take_rows(table, order)
    np.testing.assert_array_equal(table, before[order])
    np.testing.assert_array_equal(opt.get_slot(table, "rms"), rms[order])


def test_dense_training_goes_on_too():
    table, opt = np.ones((3, 2)), RMSprop(0.1)
    opt.apply_gradients([(np.ones((3, 2)), table)])
    table = opt.take_rows(table, [2, -1, 2], initializer=5.0)
    opt.apply_gradients([(np.ones((3, 2)), table)])
    np.testing.assert_array_equal(table[0], table[2])
    assert (table[1] > 4).all()
    np.testing.assert_allclose(opt.get_slot(table, "rms")[:, 0], [0.19, 0.1, 0.19])


@pytest.mark.parametrize("initializer", [2.0, np.full((2, 3), 2.0), lambda shape, dtype: np.full(shape, 2.0, dtype)])
def test_new_rows_have_the_values_that_they_are_given(initializer):
    table, opt = np.zeros((4, 3), np.float32), RMSprop(use_ema=True)
    opt.build({"items": table})
    grown = opt.resize("items", 6, initializer)
    assert grown.dtype == np.float32
    assert grown.tolist() == [[0, 0, 0]] * 4 + [[2, 2, 2]] * 2
    assert opt.average(grown).tolist() == grown.tolist()
    assert opt.known.slots[0].name == "items"
    assert (table == 0).all()


def test_shorter_tables_and_given_arrays(tmp_path):
    table, opt = np.ones((5, 2)), RMSprop(0.1, slots_folder=tmp_path)
    step(opt, table, [4, 1], 0)
    out = np.memmap(tmp_path / "rows", np.float64, "w+", shape=(2, 2))
    assert opt.resize(table, 2, out=out) is out
    np.testing.assert_array_equal(out, table[:2])
    step(opt, out, [1], 1)
    empty = opt.take_rows(out, [])
    assert empty.shape == (0, 2)
    assert opt.resize(empty, 3).tolist() == [[0, 0]] * 3


def test_added_slots_go_along():
    table, opt = np.zeros((3, 2)), RMSprop()
    opt.add_slot(table, "ids", initializer=lambda shape, dtype: np.arange(3.0), shape=(3,))
    opt.add_slot(table, "other", shape=(7,), initializer="ones")
    moved = opt.take_rows(table, [2, 0, -1, 1])
    assert opt.get_slot(moved, "ids").tolist() == [2, 0, 0, 1]
    assert opt.get_slot(moved, "other").tolist() == [1] * 7


def test_files_go_on_from_there(tmp_path):
    table, opt = np.ones((5, 2)), RMSprop(0.1, momentum=0.9)
    step(opt, table, [4, 1], 0)
    opt.save(tmp_path / "before")
    table = opt.take_rows(table, [4, 1, -1, 0, 0, 3])
    with pytest.raises(ValueError, match="save_delta: expected a file to go on from, got none"):
        opt.save_delta(tmp_path / "delta")
    opt.save(tmp_path / "after")
    step(opt, table, [2, 0], 1)
    opt.save_delta(tmp_path / "delta")
    loaded = np.empty((6, 2))
    again = RMSprop.load([tmp_path / "after", tmp_path / "delta"], [loaded])
    other, other_table = copy.deepcopy((opt, table))
    for one, its in ((opt, table), (again, loaded), (other, other_table)):
        step(one, its, [5, 2], 2)
    for ours, theirs, third in zip(*map(state, (opt, again, other), (table, loaded, other_table)), strict=True):
        assert ours.tobytes() == theirs.tobytes() == third.tobytes()


def test_another_optimizer_pays_first():
    table, first, second = np.ones((3, 2)), RMSprop(0.1, momentum=0.9), RMSprop(0.1)
    expected, alone = np.ones((3, 2)), RMSprop(0.1, momentum=0.9)
    for opt, var in ((first, table), (alone, expected)):
        step(opt, var, [0], 0)
        step(opt, var, [1], 1)
    second.build([table])
    moved = second.take_rows(table, [0, 1, 2])
    alone.flush()
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda opt, var: opt.resize(var, -1), ValueError, "rows: expected a whole number from 0 to"),
        (lambda opt, var: opt.resize(var, 2.5), ValueError, "rows: expected a whole number from 0 to"),
        (lambda opt, var: opt.resize(var, 4, "three"), ValueError, "initializer of 'new rows of variable 0': expected"),
        (lambda opt, var: opt.resize(var, 5, np.ones((3, 2))), ValueError, r"expected a number or shape \(2, 2\), got"),
        (lambda opt, var: opt.resize(np.ones((3, 2)), 5), KeyError, "is none of this optimizer's 1 variables"),
        (lambda opt, var: opt.resize(var, 4, out=np.ones((5, 2))), ValueError, r"out: expected shape \(4, 2\)"),
        (lambda opt, var: opt.resize(var, 3, out=var), ValueError, "out"),
        (lambda opt, var: opt.take_rows(var, [3]), IndexError, r"indices: expected -1 <= index < 3 for variable 0"),
        (lambda opt, var: opt.take_rows(var, [-2]), IndexError, "indices: expected -1 <= index < 3"),
        (lambda opt, var: opt.take_rows(var, [0.5]), TypeError, "indices: expected integers of shape"),
        (lambda opt, var: opt.take_rows(var, [[0]]), TypeError, "indices: expected integers of shape"),
    ],
)
def test_what_is_refused_changes_nothing(call, error, message):
    var, opt = np.ones((3, 2)), RMSprop(0.1)
    step(opt, var, [1], 0)
    before = [array.tobytes() for array in (var, *opt.get_weights())]
    with pytest.raises(error, match=message):
        call(opt, var)
    assert [array.tobytes() for array in (var, *opt.get_weights())] == before


def test_no_rows_move_amid_calls_and_scalars_have_none():
    scalar, table = np.array(1.0), np.ones((3, 2))
    opt = RMSprop(gradient_accumulation_steps=2)
    opt.build([scalar])
    with pytest.raises(ValueError, match="has no rows to move; expected an array of one axis or more"):
        opt.resize(scalar, 2)
    step(opt, table, [0], 0)
    with pytest.raises(ValueError, match="expected rows to move between steps, got 1 calls whose gradients wait"):
        opt.resize(table, 5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_rows_that_begin_anew(options, tmp_path):
    table, fresh = np.ones((5, 2)), np.ones((5, 2))
    opt, other = RMSprop(0.1, **options), RMSprop(0.1, **options)
    for seed in range(4):
        step(opt, table, [seed % 3, 4], seed)
    opt.save(tmp_path / "file")
    opt.reset_rows(table, [4, 1], np.array([[7.0, 7.0], [1.0, 1.0]]))
    opt.save_delta(tmp_path / "delta")
    loaded = np.empty((5, 2))
    again = RMSprop.load([tmp_path / "file", tmp_path / "delta"], [loaded])
    for one, its in ((opt, table), (again, loaded)):
        step(one, its, [1], 9)
    if not {"bias_correction", "use_ema"} & options.keys():  # where the number of steps matters
        step(other, fresh, [1], 9)
        for ours, theirs in zip(state(opt, table), state(other, fresh), strict=True):
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12)
    for ours, theirs in zip(state(opt, table), state(again, loaded), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_that_begin_anew_are_checked():
    table, opt = np.ones((3, 2)), RMSprop()
    opt.build([table])
    with pytest.raises(IndexError, match="indices: expected 0 <= index < 3"):
        opt.reset_rows(table, [-1])
    table.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.reset_rows(table, [1])
