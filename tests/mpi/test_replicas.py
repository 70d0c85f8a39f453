"""Gradients summed over ranks: the step of one process on the whole batch, and the same bits on all ranks."""

import numpy as np
import pytest
from on_ranks import needs_mpi, reports

from numba_rmsprop import RMSprop

pytestmark = [pytest.mark.mpi, needs_mpi]


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_a_step_is_that_of_one_process_with_the_sum(ranks):
    found = reports("replicas.beside_one_process", ranks)
    assert len(found) == 12
    for k, of_all in enumerate(found):
        for same, off in of_all:
            assert same
            assert off < (1e-4 if k < 6 else 1e-12)


def test_no_summing_where_it_is_left_to_the_user():
    assert reports("replicas.no_summing", 2) == [[[1, pytest.approx(1 - 0.1 / 0.1**0.5)], [0, 1.0]]]


def test_ranks_may_gather_what_they_like():
    assert reports("replicas.gathering", 3) == [[[1, True, 1]] * 3]


def test_gathering_leaves_variables_of_any_form_as_they_are():
    environment = {"NUMBA_NUM_THREADS": "2"}
    assert reports("replicas.gathering_from_any_layout", 2, environment=environment) == [["done"] * 2]


def test_what_one_rank_does_alone_is_found_out(tmp_path):
    opt = RMSprop()
    opt.build([np.ones(3)])
    opt.save(tmp_path / "0", include_variables=True)
    swapped, flushed, loaded = reports("replicas.acting_alone", 2, tmp_path)
    assert "the ranks disagree" in swapped[0]
    assert "variable 1 (float64, shape (5, 2)) after" in swapped[0]
    assert "0 of them flushed" in flushed[0]
    assert "1 of them flushed" in flushed[0]
    assert loaded == ["OtherRankError", "FileNotFoundError"]


def test_ranks_that_disagree_are_told_and_nothing_is_written():
    *refused, last = reports("replicas.refused", 2)
    assert [of_all[0][0] for of_all in refused] == [
        "shape", "kind", "no pair", "index", "not finite", "twice", "order", "fewer", "none at all", "another",
        "all none", "rho", "clipnorm", "row norms", "other values",
    ]  # fmt: skip
    own = ["ValueError", "TypeError", "TypeError", "IndexError", "FloatingPointError", "ValueError"]
    for (theirs, mine), kind in zip(refused, own, strict=False):
        assert (theirs[1], mine[1]) == ("OtherRankError", kind)
        assert mine[2] in theirs[2]
    for theirs, mine in refused[6:]:
        assert theirs == mine
        assert theirs[1] == "ValueError"
    for theirs, _ in refused[6:10] + refused[11:14]:
        assert "the ranks disagree" in theirs[2]
        assert "rank 0: apply_gradients" in theirs[2]
    assert "expected a gradient for at least one variable" in refused[10][0][2]
    assert "'rho': 0.5" in refused[11][0][2]
    assert "differs between ranks" in refused[14][0][2]
    for iterations, warnings in last:
        assert iterations == 2
        assert len(warnings) == 1
        assert "no gradient (None) for grads_and_vars[1]" in warnings[0]


def test_a_callable_is_asked_once_a_step_and_minimize_sums():
    asked, rms = zip(*reports("replicas.minimizing", 2)[0], strict=True)
    assert asked == (1, 1)
    assert rms == pytest.approx([0.1 * 30.0**2] * 2)


def test_loading_with_a_communicator(tmp_path):
    assert reports("replicas.loading", 2, tmp_path / "opt") == [[True, True]]


def test_files_amid_calls(tmp_path):
    ((first, second),) = reports("replicas.loading_amid_calls", 2, tmp_path / "file")
    assert first == second
    assert first[:2] == [True, 1]
    assert first[2].startswith("save: got 1 of 2 calls whose gradients are added up for a step, and no rank has all")


def test_a_refusal_amid_calls_is_told_to_all():
    adding, stepping, apart = reports("replicas.refusing_amid_calls", 2)
    assert adding == [["OtherRankError", 0], ["FloatingPointError", 0]]
    assert stepping == [["OtherRankError", 1], ["FloatingPointError", 1]]
    assert apart[0] == apart[1]
    assert "0 of 2 calls for the next one" in apart[0]


def test_large_gradients_go_in_several_messages():
    assert reports("replicas.in_several_messages", 2, alone=True) == [[True, True]]


def test_the_same_bits_where_not_a_number_is_added():
    assert reports("replicas.not_a_number", 3) == [[1, 1, 1]]
