"""Gradients and indices in memory that a step writes."""

import numba
import numpy as np
import pytest
import scipy.sparse
from optimizer_internals import occupied_memory

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.arrays.variables import Occupied
from numba_rmsprop.distributed.table_arguments import output

SIZES = [60] if numba.config.DISABLE_JIT else [60, 20_000]
"""Rows: few for one thread, and enough for all of them."""


def permuted(n):
    """Return a table whose elements, read as integers, are its row numbers in reverse order."""
    return np.arange(n)[::-1].astype(np.int64).view(np.float64).copy()[:, np.newaxis]


def stepped(table, indices, **options):
    opt = RMSprop(0.1, **options)
    opt.apply_gradients([(IndexedSlices(np.ones((len(indices), 1)), indices), table)])
    return table.tobytes(), opt.get_slot(table, "rms").tobytes()


@pytest.mark.parametrize("options", [{}, {"clipnorm": 0.5}], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_indices_in_the_memory_of_the_variable_are_read_before_it_is_written(n, options, threads):
    table, apart = permuted(n), permuted(n)
    assert stepped(table, table[:, 0].view(np.int64), **options) == stepped(apart, np.arange(n)[::-1], **options)


@pytest.mark.parametrize("which", ["rms", "momentum", "of another variable"])
def test_indices_in_a_slot_are_read_before_it_is_written(which):
    def step(are_apart):
        opt, table, other = RMSprop(0.1, momentum=0.9), np.zeros((60, 1)), np.zeros((60, 1))
        opt.build([table, other])
        slot = other if which == "of another variable" else opt.get_slot(table, which)
        slot[...] = permuted(60)
        indices = slot[:, 0].view(np.int64)
        rows = IndexedSlices(np.ones((60, 1)), indices.copy() if are_apart else indices)
        opt.apply_gradients([(IndexedSlices(np.ones((1, 1)), [3]), other), (rows, table)])
        return [array.tobytes() for array in (table, *opt.get_weights())]

    assert step(are_apart=False) == step(are_apart=True)


@pytest.mark.parametrize("part", ["indices", "indptr", "data"])
def test_arrays_of_a_csr_gradient_in_the_memory_of_the_variable(part):
    def step(are_apart):
        var = np.zeros((60, 2))
        integers = var.reshape(-1).view(np.int64)
        integers[:61] = {"indices": 1, "indptr": np.arange(61), "data": 0}[part]
        grad = scipy.sparse.csr_array((np.ones(60), np.ones(60, np.int64), np.arange(61)), (60, 2))
        lying = {"indices": integers[:60], "indptr": integers[:61], "data": var.reshape(-1)[40:100]}[part]
        grad.indices, grad.indptr = grad.indices.astype(np.int64), grad.indptr.astype(np.int64)
        setattr(grad, part, lying.copy() if are_apart else lying)
        RMSprop(0.1).apply_gradients([(grad, var)])
        return var.tobytes()

    assert step(are_apart=False) == step(are_apart=True)


def test_coordinates_in_the_memory_of_the_variable():
    def step(are_apart):
        var = permuted(60)[:, 0].copy()
        coords = var.view(np.int64)
        grad = scipy.sparse.coo_array((np.ones(60), (np.arange(60),)), (60,))
        grad.coords = (coords.copy() if are_apart else coords,)
        RMSprop(0.1).apply_gradients([(grad, var)])
        return var.tobytes()

    assert step(are_apart=False) == step(are_apart=True)


def trained_with_rows_behind(n):
    opt, table = RMSprop(0.1, momentum=0.9), np.ones((n, 1))
    for _ in range(2):
        opt.apply_gradients([(IndexedSlices(np.ones((2, 1)), [0, 1]), table)])
    return opt, table


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("n", SIZES)
def test_rows_gathered_over_their_own_indices(n, momentum, threads):
    opt, table = trained_with_rows_behind(n)
    if not momentum:
        opt = RMSprop(0.1)
    indices = np.arange(n)[::-1].astype(np.int64)
    out = indices.view(np.float64)[:, np.newaxis]
    assert opt.gather(table, indices, out=out) is out
    assert (out == opt.gather(table, np.arange(n)[::-1])).all()


def test_indices_in_the_table_that_is_gathered():
    opt, table = RMSprop(0.1, momentum=0.9), permuted(60)
    opt.build([table])
    opt.get_slot(table, "momentum")[:] = 1.0  # so that every row moves
    opt.apply_gradients([(IndexedSlices(np.ones((1, 1)), [59]), table)])
    opt.apply_gradients([(IndexedSlices(np.ones((1, 1)), [59]), table)])
    indices = table[:59, 0].view(np.int64)
    assert (indices == np.arange(1, 60)[::-1]).all()
    assert (opt.gather(table, indices)[0] == table[59]).all()


def test_shards_refuse_to_gather_into_their_slots():
    opt, shard = trained_with_rows_behind(9)
    for array in (shard, *opt.weights[1:]):
        with pytest.raises(ValueError, match="out: expected memory apart from the table's shard and its slots"):
            output(array, (9, 1), shard.dtype, occupied_memory(opt))
    assert output(None, (9, 1), shard.dtype, Occupied([])).shape == (9, 1)
