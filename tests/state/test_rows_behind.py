"""Rows that are behind: reading old values warns, and optimizers on one table wait for each other's rows."""

import warnings

import numpy as np
import pytest
import scipy.sparse
from optimizer_internals import shared_variables

from numba_rmsprop import IndexedSlices, RMSprop

FALLS_BEHIND = [{"momentum": 0.9}, {"weight_decay": 0.1}]


def slices(indices, table):
    return IndexedSlices(np.ones((len(indices), *table.shape[1:]), table.dtype), indices)


def csr(indices, table):
    return scipy.sparse.csr_array((np.ones(len(indices)), (indices, np.zeros(len(indices), int))), table.shape)


pytestmark = pytest.mark.filterwarnings("error")  # turn on the warning that pyproject.toml ignores

# Reading without gather


@pytest.mark.parametrize("options", FALLS_BEHIND, ids=str)
@pytest.mark.parametrize("form", [slices, csr])
def test_reading_rows_without_gather_warns_once(options, form):
    table, opt = np.ones((20, 3)), RMSprop(0.1, **options)
    opt.apply_gradients([(form([1, 2], table), table)])
    with pytest.warns(UserWarning, match=r"variable 0 .*opt\.gather\(table, batch\)") as told:
        opt.apply_gradients([(form([2, 3], table), table)])
    assert told[0].filename == __file__
    for k in range(4, 10):
        opt.apply_gradients([(form([k], table), table)])


def test_the_warning_as_an_error_leaves_every_byte():
    table, opt = np.ones((20, 3)), RMSprop(0.1, momentum=0.9)
    opt.apply_gradients([(slices([1], table), table)])
    before = table.tobytes()
    with pytest.raises(UserWarning, match="old values"):
        opt.apply_gradients([(slices([2], table), table)])
    assert (table.tobytes(), opt.iterations) == (before, 1)
    opt.apply_gradients([(slices([2], table), table)])


def test_a_loop_that_stops_gathering_is_warned():
    table, opt = np.ones((20, 3)), RMSprop(0.1, momentum=0.9)
    for k in range(5):
        opt.gather(table, [k])
        opt.apply_gradients([(slices([k], table), table)])
    with pytest.warns(UserWarning, match="old values"):
        opt.apply_gradients([(slices([9], table), table)])


def gathers(opt, table, batch, k):
    opt.gather(table, batch)
    return [batch]


def gathers_once_for_three_parts(opt, table, batch, k):
    opt.gather(table, [0, *batch, 19])
    return [[0], batch, [19]]


def flushes(opt, table, batch, k):
    opt.flush()
    return [batch]


def flushes_through_what_reads(opt, table, batch, k):
    opt.get_weights()
    return [batch]


def minimizes(opt, table, batch, k):
    opt.minimize(lambda: (0.0, [slices(batch, table)]), [table], jac=True)
    return []


def takes_the_same_rows_each_time(opt, table, batch, k):
    return [[1, 2]]


def takes_dense_steps_too(opt, table, batch, k):
    opt.apply_gradients([(np.ones_like(table), table)])
    return [batch]


@pytest.mark.parametrize(
    "way",
    [
        gathers,
        gathers_once_for_three_parts,
        flushes,
        flushes_through_what_reads,
        minimizes,
        takes_the_same_rows_each_time,
        takes_dense_steps_too,
    ],
)
@pytest.mark.parametrize("options", [*FALLS_BEHIND, {}, {"momentum": 0.9, "sparse_update": "lazy"}], ids=str)
def test_correct_ways_of_reading_do_not_warn(way, options):
    table, opt = np.ones((20, 3)), RMSprop(0.1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(6):
            for batch in way(opt, table, [k, k + 5], k):
                opt.apply_gradients([(slices(batch, table), table)])


def test_values_that_never_fall_behind_need_no_gather():
    table, opt = np.ones((20, 3)), RMSprop(0.1)
    for k in range(6):
        opt.apply_gradients([(slices([k], table), table)])


# Several optimizers on one table


OPTIONS = [{}, *FALLS_BEHIND, {"momentum": 0.9, "weight_decay": 0.2}]


@pytest.mark.parametrize("second", OPTIONS, ids=str)
@pytest.mark.parametrize("first", OPTIONS, ids=str)
@pytest.mark.parametrize("form", [slices, csr])
def test_two_optimizers_on_one_table_give_the_dense_numbers(first, second, form):
    def run(dense):
        rng, table = np.random.default_rng(2), np.ones((20, 1))
        pair = RMSprop(0.05, **first), RMSprop(0.02, **second)
        for k in range(24):
            opt, batch = pair[k % 2 if k < 20 else 0], rng.integers(0, 20, 4)
            grad = form(batch, table)
            if dense:
                total = np.zeros_like(table)
                np.add.at(total, batch, 1.0)
                grad = total
            else:
                rows = opt.gather(table, batch)
                np.testing.assert_array_equal(rows, table[batch])
            opt.apply_gradients([(grad, table)])
        pair[1].flush()
        return table.copy()

    np.testing.assert_allclose(run(dense=False), run(dense=True), rtol=1e-12)


def test_views_of_one_table_in_two_optimizers_give_the_dense_numbers():
    def run(dense):
        table = np.ones((20, 2))
        one, other = RMSprop(0.05, momentum=0.9), RMSprop(0.02, weight_decay=0.1)
        for k in range(12):
            for opt, var in ((one, table), (other, table[5:])):
                opt.gather(var, [k])
                grad = slices([k], var)
                if dense:
                    grad = np.zeros_like(var)
                    grad[k] = 1.0
                opt.apply_gradients([(grad, var)])
        one.flush()
        return table

    np.testing.assert_allclose(run(dense=False), run(dense=True), rtol=1e-12)


@pytest.mark.parametrize("reader", ["gather", "flush", "minimize"])
def test_an_optimizer_that_never_saw_the_table_reads_what_another_owes(reader):
    table, same = np.ones((20, 2)), np.ones((20, 2))
    one, other, expected = RMSprop(0.1, momentum=0.9), RMSprop(0.1), RMSprop(0.1, momentum=0.9)
    for opt, var in ((one, table), (expected, same)):
        for k in range(3):
            opt.gather(var, [k])
            opt.apply_gradients([(slices([k], var), var)])
    expected.flush()
    if reader == "gather":
        np.testing.assert_array_equal(other.gather(table, np.arange(20)), same)
    elif reader == "flush":
        other.flush(table)
    else:
        seen = []
        other.minimize(lambda: (seen.append(table.copy()), [np.zeros_like(table)]), [table], jac=True)
        np.testing.assert_array_equal(seen[0], same)
    np.testing.assert_array_equal(table, same)


def test_a_second_optimizer_without_a_table_in_common_is_asked_nothing():
    one, other, table = RMSprop(momentum=0.9), RMSprop(momentum=0.9), np.ones((5, 2))
    elsewhere = np.ones((5, 2))
    for _ in range(2):
        for opt, var in ((one, table), (other, elsewhere)):
            opt.gather(var, [0])
            opt.apply_gradients([(slices([0], var), var)])
    assert not shared_variables(one)
    assert not shared_variables(other)
    other.rebind(elsewhere, table)
    one.gather(table, [0])
    assert len(shared_variables(one)) == len(shared_variables(other)) == 1
    other.forget(table)
    one.gather(table, [0])
    assert not shared_variables(one)
