"""The lock of all optimizers: calls during a commit, rates and gradients that step themselves, and no deadlock."""

import concurrent.futures
import ctypes
import operator
import os
import signal
import threading
from collections import deque
from functools import partial
from itertools import starmap

import numpy as np
import pytest
from interrupting import lock_is_free
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.runtime import whole_calls
from numba_rmsprop.runtime.whole_calls import commit, in_turn, launch_lock, look, whole

ENTRANCES = {
    "apply_gradients": lambda opt, var: opt.apply_gradients([(np.ones(var.shape), var)]),
    "gather": lambda opt, var: opt.gather(var, [0]),
    "flush": lambda opt, var: opt.flush(),
    "get_weights": lambda opt, var: opt.get_weights(),
    "get_slot": lambda opt, var: opt.get_slot(var, "rms"),
    "set_weights": lambda opt, var: opt.set_weights([1, *opt.weights[1:]]),
    "build": lambda opt, var: opt.build([np.ones(3)]),
    "add_slot": lambda opt, var: opt.add_slot(var, "mine"),
    "add_weight": lambda opt, var: opt.add_weight("mine"),
    "iterations": lambda opt, var: setattr(opt, "iterations", 5),
    "minimize": lambda opt, var: opt.minimize(lambda: float(var.sum()), [var]),
    "save": lambda opt, var: opt.save(os.devnull + "s"),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_calls_during_a_commit_are_refused(entrance):
    """A callback of the garbage collector may call in, and no signal mask holds it off."""
    opt, var = RMSprop(0.1, momentum=0.9), np.ones((4, 2))
    for row in range(2):
        opt.gather(var, [0])
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), var)])
    before = state_of(opt, [var])

    def call_in():
        with pytest.raises(RuntimeError, match="expected no call amid a step"):
            ENTRANCES[entrance](opt, var)
        refused.append(True)

    refused = []
    assert in_turn(lambda: commit([*look(), (call_in,)]))
    assert refused == [True]
    assert state_of(opt, [var]) == before
    assert lock_is_free()


def test_a_value_read_during_a_commit_is_read_again():
    def read():
        found.append(len(found))
        if len(found) == 1:
            assert commit(look())
        return found[-1]

    found = []
    assert in_turn(whole, read) == 1
    assert in_turn(whole, read) == 2


def test_a_check_that_a_commit_has_overtaken_writes_nothing():
    written = []

    def look_twice():
        first, second = look(), look()
        assert commit([*second, (written.append, "second")])
        assert not commit([*first, (written.append, "first")])

    in_turn(look_twice)
    assert written == ["second"]


@pytest.mark.parametrize("planned", [False, True])
def test_a_rate_that_steps_the_optimizer_leaves_the_outer_step_its_gradient(planned):
    var, inside, asked = np.zeros(300), [], []

    def rate():
        asked.append(opt.iterations)
        if not inside and opt.iterations == 3 * planned:
            inside.append(True)
            opt.apply_gradients([(np.full(300, -1.0), var)])
        return 0.1

    opt = RMSprop(rate, rho=0.0, epsilon=1e-30)
    for _ in range(3 * planned):
        opt.apply_gradients([(np.ones(300), var)])
    before = var.copy()
    opt.apply_gradients([(np.full(300, 5.0), var)])
    np.testing.assert_allclose(var, before, atol=1e-12)
    assert (opt.get_slot(var, "rms") == 25.0).all()
    assert opt.iterations == 3 * planned + 2
    assert len(asked) == opt.iterations  # its answer counts, though the number of steps has changed meanwhile


def test_a_rate_that_waits_for_another_threads_step_is_no_deadlock():
    other, theirs = RMSprop(0.1), np.zeros(3)
    opt, var = RMSprop(lambda: pool.submit(probe).result(timeout=60)), np.zeros(3)

    def probe():
        other.apply_gradients([(np.ones(3), theirs)])
        opt.gather(var, [0])  # of this very optimizer, too
        return 0.1

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            opt.apply_gradients([(np.ones(3), var)])
    assert other.iterations == opt.iterations == 3


def test_an_initializer_that_steps_the_optimizer_is_no_deadlock():
    opt, var = RMSprop(0.1), np.zeros(3)

    def initial(shape, dtype):
        thread = threading.Thread(target=opt.apply_gradients, args=([(np.ones(3), var)],))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        return np.ones(shape, dtype)

    assert opt.add_slot(var, "mine", initial).tolist() == [1.0, 1.0, 1.0]


def test_the_lock_is_free_after_an_interrupt_that_came_as_it_was_taken(monkeypatch):
    """On Python 3.14, ``with`` would leave it held; both calls are one instruction, as with a real signal."""
    calls = [(launch_lock.acquire,), (getattr(ctypes.CDLL(None), "raise"), int(signal.SIGINT))]
    monkeypatch.setattr("numba_rmsprop.runtime.whole_calls._take", partial(deque, starmap(operator.call, calls)))
    with pytest.raises(KeyboardInterrupt):
        in_turn(int)
    assert lock_is_free()


def test_a_gradient_that_waits_for_another_threads_step_is_no_deadlock():
    """Gradients of other libraries are read by their own code, and no lock is held meanwhile."""

    class Foreign:
        def __array__(self, dtype=None, copy=None):
            return pool.submit(step).result(timeout=60)

    def step():
        other.apply_gradients([(np.ones(3), theirs)])
        return np.ones(3)

    other, theirs = RMSprop(0.1), np.zeros(3)
    opt, var = RMSprop(0.1), np.zeros(3)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            opt.apply_gradients([(Foreign(), var)])
    assert other.iterations == opt.iterations == 3
    assert var.tobytes() == theirs.tobytes()


def transposed(grad):
    return np.asfortranarray(grad)


def read_only(grad):
    grad.flags.writeable = False
    return grad


@pytest.mark.parametrize("change", [transposed, read_only])
def test_a_step_that_compiles_for_another_layout_holds_handlers_off(change, monkeypatch):
    held, commit = [], whole_calls.commit
    monkeypatch.setattr(whole_calls, "commit", lambda calls, hold=False: held.append(hold) or commit(calls, hold))
    opt, var = RMSprop(0.1), np.ones((300, 100))
    for grad in (np.ones(var.shape), np.ones(var.shape), change(np.ones(var.shape)), change(np.ones(var.shape))):
        opt.apply_gradients([(grad, var)])
    assert held[-4:] == [False, True, False, False]  # the third step, and the commit that it makes within
