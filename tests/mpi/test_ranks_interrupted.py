"""Interrupts on ranks: a call is whole or not begun, and ranks at different calls agree anew or raise: none hangs."""

import pytest
from on_ranks import finish, needs_mpi, reports, start

pytestmark = [pytest.mark.mpi, needs_mpi]


def test_an_interrupt_waits_for_the_end_of_a_call(tmp_path):
    *interrupted, last = reports("interrupted_calls.in_the_middle", 3, tmp_path, alone=True)
    for of_all in interrupted:
        assert [was for _, was, *_ in of_all] == [False, True, False], of_all
        assert len({tuple(counts) for _, _, *counts in of_all}) == 1, of_all
    assert interrupted[-1][0] == ["manifest", False, 2, 1, 2]
    assert len({number for _, number in last}) == 1
    assert [same for same, _ in last] == [1, 1, 1]


def test_ranks_that_are_interrupted_at_different_calls_agree_or_are_told(tmp_path):
    agreed, one, none, handled, for_ever, last = reports(
        "interrupted_calls.at_different_calls", 3, tmp_path, alone=True
    )
    assert agreed == ["checkpoint-000000001"] + ["interrupted, then checkpoint-000000001"] * 2
    assert [said.split(" the ranks")[0] for said in one] == [
        "ValueError",
        "ValueError",
        "interrupted, then ValueError",
    ]
    assert all("gather of ShardedTable" in said and "a look, of TableCheckpoints" in said for said in one + none)
    assert all(said.startswith("ValueError the ranks disagree") for said in none)
    assert handled == [[True, ["checkpoint-000000002"]]] * 3
    assert all(said.startswith("ValueError the ranks disagree") for said in for_ever)
    assert last == [[2, 2]] * 3


def test_a_second_interrupt_ends_a_job_whose_other_ranks_are_stuck(tmp_path):
    status, _, errors = finish(start("interrupted_calls.twice", 2, tmp_path))
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert "interrupted twice while it waited for others" in errors
    assert "rank 0 of 2 ended with KeyboardInterrupt" in errors
