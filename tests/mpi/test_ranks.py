"""Ranks that refuse, disagree, leave, fail or die: errors on all and no deadlock; and ranks bound to few cores."""

import json
import os
import subprocess
import sys

import pytest
from on_ranks import finish, needs_mpi, reports, start

pytestmark = [pytest.mark.mpi, needs_mpi]


def test_a_call_that_one_rank_refuses_does_nothing_on_any():
    *refused, last = reports("table_calls.refused", 3)
    assert last == ["still works"] * 3
    expected = {
        "too large": ("IndexError", "indices[0] is 10; expected 0 <= index < 10"),
        "negative": ("IndexError", "indices[1] is -1"),
        "floats": ("TypeError", "expected integers"),
        "wrong out": ("ValueError", "out: expected a writable"),
        "out in shard": ("ValueError", "apart"),
        "out in slot": ("ValueError", "apart"),
        "wrong shape": ("ValueError", "values: expected shape (2, 2), got (3, 2)"),
        "wrong dtype": ("TypeError", "values: expected dtype float32, got float64"),
        "masked": ("TypeError", "got a masked array; fill it first"),
        "not finite": ("FloatingPointError", "nan at [2, 1]"),
        "step too large": ("IndexError", "indices[2] is 10"),
    }
    assert [of_all[0][0] for of_all in refused] == list(expected)
    for of_all in refused:
        kind, message = expected[of_all[0][0]]
        assert of_all[1][1] == kind
        assert message in of_all[1][2]
        for rank in (0, 2):
            assert of_all[rank][1] == "OtherRankError"
            assert "rank 1" in of_all[rank][2]
            assert kind in of_all[rank][2]
            assert message in of_all[rank][2]


def test_ranks_go_on_where_one_has_left():
    status, printed, _ = finish(start("table_calls.going_on_without_a_rank", 2))
    assert status == 0
    told = [line for line in printed.splitlines() if line != "LEFT"]
    assert "ValueError the ranks disagree" in told[0]
    assert told[1].startswith("OtherRankError the program of rank 1 has ended")
    assert "IndexError" in told[2]


def test_a_part_of_the_ranks():
    assert reports("table_calls.part_of_the_ranks", 4) == [[[1, 2, 2, "root: expected a rank from 0 to 3, got 9"]] * 4]


def test_ranks_that_disagree_are_all_told():
    *told, last = reports("table_calls.disagreeing", 3)
    assert last == [[1, 1]] * 3
    assert len(told) == 10
    for of_all in told:
        assert of_all[0] == of_all[1] == of_all[2]
        assert "the ranks disagree" in of_all[0]
    assert "rank 0: apply_gradients of ShardedTable" in told[0][0]
    assert "ranks 1, 2: gather of ShardedTable" in told[0][0]
    assert "learning rate 1.1" in told[3][0]
    assert "clipnorm 2.0" in told[4][0]
    assert "float64" in told[6][0]


WRONG = {
    "comm, -1, 2": ("ValueError", "rows: expected a whole number from 0"),
    "comm, 2.5, 2": ("ValueError", "rows: expected a whole number from 0"),
    "comm, 2, 0": ("ValueError", "columns: expected a whole number from 1"),
    "comm, 2, 2, np.int32": ("TypeError", "dtype: expected float32, float64, float16 or"),
    "comm, 2, 2, sum_order='x'": ("ValueError", "sum_order: expected one of"),
    "comm, 2, 2, initializer='x'": ("ValueError", "initializer: expected one of"),
    "comm, 2, 2, initializer=[1]": ("TypeError", "initializer: expected a real number"),
    "comm, 2, 2, initializer=lambda rows: np.ones(3)": ("ValueError", "expected an array of shape (2, 2)"),
    "comm, 2, 2, communicator=comm": ("TypeError", "communicator"),
    "comm, 2, 2, momentun=0.9": ("TypeError", "momentun"),
    "None, 2, 2": ("TypeError", "communicator: expected one of mpi4py's"),
}


def test_wrong_arguments():
    found = reports("table_calls.wrong_arguments", 1, json.dumps(list(WRONG)))
    for ((kind, message),), expected in zip(found, WRONG.values(), strict=True):
        assert kind == expected[0]
        assert expected[1] in message


def test_an_exception_on_one_rank_ends_all():
    status, _, errors = finish(start("table_calls.failing", 3, "raises"))
    assert status != 0
    assert "ZeroDivisionError: as it may happen" in errors
    assert "rank 1 of 3 ended with ZeroDivisionError; the others cannot go on without it" in errors


def test_a_rank_that_leaves_early_is_no_deadlock():
    status, _, errors = finish(start("table_calls.failing", 2, "leaves"))
    assert status != 0
    assert "rank 1: the end of its program" in errors
    assert "rank 0: gather of ShardedTable 1 after 0 steps" in errors


def test_a_rank_that_is_killed_ends_the_job():
    status, _, errors = finish(start("table_calls.failing", 2, "is killed"))
    assert status != 0
    assert "rank 1" in errors
    assert "signal 9" in errors


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are bound on Linux")
@pytest.mark.parametrize(("ranks", "bound"), [(1, True), (2, True), (2, False)])
def test_a_warning_names_the_flag_where_ranks_are_bound(ranks, bound):
    """Each rank is bound to less than its share where there seem to be four times as many cores."""
    for cores, warned in reports("table_calls.bound_to_cores", ranks, 4 if bound else 1, alone=True)[0]:
        if not bound:
            assert warned == []
            continue
        (message,) = warned
        assert f"may run on {cores} of the {4 * cores} cores that are its share" in message
        assert f"--map-by slot:PE={4 * cores}" in message
        assert "--bind-to none" in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are bound on Linux")
def test_the_cores_of_the_job_are_those_of_mpiexec():
    ((bound, of_job),) = reports("table_calls.cores_of_the_job", 1, options=("--bind-to", "core"))[0]
    assert bound <= of_job
    assert of_job == len(os.sched_getaffinity(0))


def test_an_optimizer_with_a_communicator_is_not_pickled_and_copies_have_it():
    for said, same, stepped in reports("table_calls.pickling_and_copying", 2)[0]:
        assert "cannot be pickled" in said
        assert same == 1
        assert stepped


def test_importing_the_package_imports_no_mpi():
    program = "import sys, numba_rmsprop.distributed; sys.exit('mpi4py' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
