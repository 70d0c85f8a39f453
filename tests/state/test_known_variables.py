"""Variables are told apart by their memory, also among thousands."""

import sys

import numpy as np
import pytest

from numba_rmsprop import RMSprop
from numba_rmsprop.arrays.variables import Occupied
from numba_rmsprop.kernels.rmsprop import RMSPROP
from numba_rmsprop.state.slots import Slots
from numba_rmsprop.state.variables_by_memory import MemoryRanges


def test_thousands_of_new_variables_take_calls_in_their_number():
    def calls(n):
        variables, opt, count = [np.ones(8) for _ in range(n)], RMSprop(), 0

        def note(*_):
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            opt.build(variables[: n // 2])
            for var in variables[n // 2 :]:
                opt.build([var])
        finally:
            sys.setprofile(None)
        return count

    calls(200)  # compiles
    assert calls(2000) < 15 * calls(200)  # comparing every pair would take 100 times the calls


@pytest.mark.parametrize("seed", range(3))
def test_places_near_an_array_are_all_that_reach_into_it(seed):
    rng = np.random.default_rng(seed)
    memory = np.zeros(400)
    places, known = MemoryRanges(), []
    for _ in range(60):
        begin, length, step = rng.integers(0, 300), rng.integers(1, 40), rng.integers(1, 3)
        view = memory[begin : begin + length : step]
        expected = {own for own in known if np.may_share_memory(own.var, view)}
        assert set(places.near(view)) == expected
        if rng.random() < 0.7:
            own = Slots(view, "a", RMSPROP, ("rms",), exact=True, drifts=False)
            known.append(own)
            places.add(own)
        elif known:
            places.remove(known.pop(rng.integers(len(known))))


def test_occupied_memory_that_grows_and_shrinks_is_that_of_its_arrays():
    rng, memory = np.random.default_rng(0), np.zeros(1000)
    arrays, occupied = [], Occupied([])
    for begins in rng.permutation(900)[:120].reshape(40, 3):
        more = [memory[i : i + rng.integers(1, 30)] for i in begins]
        arrays, occupied = arrays + more, occupied.with_more(more)
        gone = arrays.pop(rng.integers(len(arrays)))
        occupied = occupied.without([gone, np.ones(3)])
        np.testing.assert_array_equal(occupied.array, Occupied(arrays).array)
        for i in range(0, 1000, 9):
            assert occupied.reached_by(memory[i : i + 1]) == any(
                np.may_share_memory(memory[i : i + 1], array) for array in arrays
            )


def test_one_array_is_one_variable_and_not_its_rows():
    opt, table = RMSprop(), np.ones((5, 2))
    opt.build(table)
    assert [array.shape for array in opt.weights] == [(), (5, 2)]


def test_interleaved_views_that_share_no_element_are_variables():
    table, opt = np.zeros((5, 40)), RMSprop(0.1, rho=0.0, epsilon=0.0)
    opt.apply_gradients([(np.full(5, 1.0), table[:, k]) for k in range(39)])
    np.testing.assert_array_equal(table[:, :39], -0.1)
    with pytest.raises(ValueError, match=r"overlaps variable [789] "):
        opt.apply_gradients([(np.ones((5, 3)), table[:, 7:10])])
    opt.apply_gradients([(np.ones(5), table[:, 39])])
    np.testing.assert_array_equal(table[:, 39], -0.1)
