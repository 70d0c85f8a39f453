"""Tables shared out among ranks: the bits of one process, few bytes, any indices."""

from functools import cache

import numpy as np
import pytest
from on_ranks import needs_mpi, reports
from sharded_training import TRAININGS, digest_of_one_process

from numba_rmsprop.distributed.shard import ShardOptimizer

pytestmark = [pytest.mark.mpi, needs_mpi]


@cache
def digests(ranks):
    """Return the digest of each case on so many ranks."""
    return reports("sharded_tables.digests", ranks)[0][0]


def test_clipped_norms_are_those_of_one_process():
    for nobody, off in reports("sharded_tables.clipped_norms", 2):
        assert nobody is None
        assert off < 1e-12


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)])
def test_the_same_bits_on_any_number_of_ranks(ranks):
    assert digests(ranks) == digests(1)
    assert len(set(digests(ranks))) == len(digests(ranks))


def test_the_bits_of_one_process():
    expected = [
        digest_of_one_process(rows, columns, np.dtype(dtype), **options)
        for options, (rows, columns, dtype) in TRAININGS
        if "clipnorm" not in options  # the norm of one process is rounded more than once
    ]
    assert digests(1)[: len(expected)] == expected


def test_sums_by_rank_are_close_and_repeat():
    repeat, difference = reports("sharded_tables.sums_by_rank", 3)[0][0]
    assert repeat
    assert 0 < difference < 1e-4


@pytest.mark.parametrize("columns", [4, 64])
def test_bytes_on_the_wire(columns):
    for ranks in (2, 4):
        for of_all in reports("sharded_tables.bytes_sent", ranks, columns):
            sent, least = np.sum(of_all, axis=0)
            assert 1 <= sent / least < 1.1


def test_a_remembered_request_is_not_sent_again():
    for known, other, none in reports("sharded_tables.remembered_request", 2)[0]:
        assert known < other == none


def test_any_gather_since_the_last_step_is_found_again():
    assert reports("sharded_tables.remembered_gathers", 3) == [[True] * 3]


def test_a_gather_under_way_has_the_rows_of_its_time():
    assert reports("sharded_tables.gathers_under_way", 3) == [[[True, True, True]] * 3]


def test_indices_and_values_of_any_kind():
    assert reports("sharded_tables.any_kind_of_arrays", 3) == [[True] * 3]


def test_sums_may_overflow_as_in_one_process():
    assert reports("sharded_tables.overflowing_sums", 2) == [[2, 2]]


def test_wide_links_and_launches_on_all_threads_have_the_same_bits():
    environment = {"NUMBA_NUM_THREADS": "2"}
    assert reports("sharded_tables.wide_links_and_launches", 3, environment=environment) == [[1, 1, 1]]


@pytest.mark.parametrize("options", [{"learning_rate_factors": {"a": 0.5}}, {"excluded_from_weight_decay": ["a"]}])
def test_a_table_has_no_options_by_names_of_variables(options):
    with pytest.raises(ValueError, match="expected None for a table, which is one variable"):
        ShardOptimizer(None, **options)
    opt = ShardOptimizer(None)
    with pytest.raises(ValueError, match="expected None for a table, which is one variable"):
        opt.learning_rate_factors = {"variable 0": 0.5}
    assert opt.learning_rate_factors is None
