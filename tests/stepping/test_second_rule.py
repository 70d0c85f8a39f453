"""A second rule, plain momentum, in one file: exact sparse steps, gather, flush, save and load follow from it."""

import copy
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest

from numba_rmsprop import IndexedSlices
from numba_rmsprop.base_optimizer import Optimizer
from numba_rmsprop.kernels.jit import compiled_inline, inlined
from numba_rmsprop.kernels.rule import Rule
from numba_rmsprop.settings.step_numbers import StepNumbers


class Numbers(NamedTuple):
    learning_rate: Any
    momentum: Any


class Factors(NamedTuple):
    velocity: Any
    drift: Any


@inlined
def unpack(packed):
    return Numbers(packed[2], packed[3])


@compiled_inline
def update(grad, numbers, var, velocity):
    velocity = numbers.momentum * velocity + grad
    return var - numbers.learning_rate * velocity, velocity


@compiled_inline
def skip_none():
    return Factors(1.0, 0.0)


@compiled_inline
def skip_once(run, runs):
    return Factors(runs[run, 2], runs[run, 1] * runs[run, 2])


@compiled_inline
def skip_both(first, second):
    return Factors(first.velocity * second.velocity, first.drift + first.velocity * second.drift)


@compiled_inline
def is_plain(factors, var, velocity):
    return True


@compiled_inline
def catch_up(factors, var, velocity):
    return var - factors.drift * velocity, factors.velocity * velocity


MOMENTUM = Rule(
    name=f"{__name__}.MOMENTUM",
    slots=("velocity",),
    factors=Factors,
    skipped={"learning_rate": (0.0, np.inf), "momentum": (0.0, 1.0)},
    unpack=unpack,
    update=update,
    skip_once=skip_once,
    skip_none=skip_none,
    skip_both=skip_both,
    is_plain=is_plain,
    catch_up=catch_up,
    catch_up_any=catch_up,
)


class MomentumSGD(Optimizer):
    rule = MOMENTUM
    slot_names = ("velocity",)
    drifts = True

    def __init__(self, learning_rate=0.1, momentum=0.9):
        super().__init__()
        self.settings = {"learning_rate": learning_rate, "momentum": momentum}

    def numbers_at(self, step):
        return StepNumbers(
            self.rule, Numbers(self.settings["learning_rate"] / (1 + step // 5), self.settings["momentum"])
        )

    def get_config(self):
        return self.settings


def gradient(step, rows):
    rng = np.random.default_rng(step)
    indices = rng.integers(0, rows, 6)
    return rng.standard_normal((6, 3)), indices


class Dense:
    """The same in plain NumPy, one dense step after the other."""

    def __init__(self, table, momentum=0.9):
        self.table, self.velocity, self.momentum, self.steps = table.copy(), np.zeros_like(table), momentum, 0

    def step(self, values, indices):
        grad = np.zeros_like(self.table)
        np.add.at(grad, indices, values)
        self.velocity = self.momentum * self.velocity + grad
        self.table -= 0.1 / (1 + self.steps // 5) * self.velocity
        self.steps += 1


def test_sparse_steps_are_those_of_the_dense_algorithm():
    table = np.ones((40, 3))
    opt, dense = MomentumSGD(), Dense(table)
    for step in range(30):
        values, indices = gradient(step, 40)
        np.testing.assert_allclose(opt.gather(table, indices), dense.table[indices], rtol=1e-12, atol=1e-12)
        opt.apply_gradients([(IndexedSlices(values, indices), table)])
        dense.step(values, indices)
    opt.flush()
    np.testing.assert_allclose(table, dense.table, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(opt.get_slot(table, "velocity"), dense.velocity, rtol=1e-12, atol=1e-12)


def test_small_dense_variables_take_one_launch():
    variables = [np.ones(5), np.ones((2, 3))]
    opt = MomentumSGD()
    for _ in range(3):
        opt.apply_gradients([(np.ones(var.shape), var) for var in variables])
    np.testing.assert_allclose(variables[0], 1 - 0.1 * (1 + 1.9 + 2.71))
    assert [array.shape for array in opt.weights[1:]] == [(5,), (2, 3)]


def test_a_file_goes_on_where_training_was(tmp_path):
    ours, alone = np.ones((40, 3)), np.ones((40, 3))
    opt, expected = MomentumSGD(), MomentumSGD()
    for step in range(20):
        values, indices = gradient(step, 40)
        if step == 9:
            opt.save(tmp_path / "file")
            ours = np.empty((40, 3))
            opt = MomentumSGD.load(tmp_path / "file", [ours])
        for one, table in ((opt, ours), (expected, alone)):
            one.gather(table, indices)
            one.apply_gradients([(IndexedSlices(values, indices), table)])
    for one in (opt, expected):
        one.flush()
    assert ours.tobytes() == alone.tobytes()


def test_a_file_with_numbers_beyond_the_bounds_is_refused(tmp_path):
    table, opt = np.ones((40, 3)), MomentumSGD(momentum=1.5)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 3)), [3]), table)])
    opt.save(tmp_path / "file")
    with pytest.raises(ValueError, match="which no training run brings about"):
        MomentumSGD.load(tmp_path / "file", [table])


def test_copies_and_pickles_know_their_rule():
    table, opt = np.ones((40, 3)), MomentumSGD()
    opt.apply_gradients([(IndexedSlices(np.ones((1, 3)), [3]), table)])
    for again, copied in (copy.deepcopy((opt, table)), pickle.loads(pickle.dumps((opt, table)))):
        again.flush()
        assert again.get_slot(copied, "velocity")[3, 0] == 1
