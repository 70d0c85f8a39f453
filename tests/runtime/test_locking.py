"""Code that runs in the middle of a call: it sees a complete state, waits or is refused, and leaves no lock."""

import concurrent.futures
import ctypes
import gc
import operator
import os
import signal
import sys
import threading
from collections import deque
from functools import partial
from itertools import starmap

import numba
import numpy as np
import pytest
from interrupting import gradients, interrupted_at, lock_is_free, trained
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.runtime.locking import commit, in_turn, launch_lock, look, whole

CALLS = {
    "step": lambda opt, variables: opt.apply_gradients(gradients(variables, 3)),
    "step of a table": lambda opt, variables: opt.apply_gradients(gradients(variables, 3)[:1]),
    "gather": lambda opt, variables: opt.gather(variables[0], [1, 2]),
    "flush": lambda opt, variables: opt.flush(),
    "get_weights": lambda opt, variables: opt.get_weights(),
    "build": lambda opt, variables: opt.build([np.ones(7)]),
    "add_slot": lambda opt, variables: opt.add_slot(variables[0], "mine"),
    "set_weights": lambda opt, variables: opt.set_weights([7, *(np.full_like(w, 0.5) for w in opt.weights[1:])]),
}
SETTINGS = {"momentum": 0.9, "weight_decay": 0.1}


def amid(call, moment, handle, opt, variables):
    """Call, with a signal whose handler calls ``handle`` at the ``moment``-th chance; return whether it did."""
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: (came.append(True), handle(opt, variables)))
    try:
        interrupted_at(moment, call, opt, variables, number=signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    return bool(came)


def current(opt, variables):
    """Return values and slots with every row caught up: these must not depend on the moment of the handler."""
    opt.flush()
    return [*(variable.copy() for variable in variables), *opt.get_weights()]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


HANDLERS = {
    "steps": lambda opt, variables: opt.apply_gradients(gradients(variables[:-1], 5)),
    "flushes": lambda opt, variables: opt.flush(),
    "gathers": lambda opt, variables: opt.gather(variables[4], [1, 2, 3]),
    "reads weights": lambda opt, variables: opt.get_weights(),
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("name", CALLS)
def test_a_handler_amid_a_call_comes_before_it_or_after(name, handler):
    """The state is that of both calls, one after the other in either order, also if the handler takes a step."""
    call, handle = CALLS[name], HANDLERS[handler]
    expected = []
    for first, second in ((call, handle), (handle, call)):
        opt, variables = trained(**SETTINGS)
        first(opt, variables)
        second(opt, variables)
        expected.append(current(opt, variables))
    moment = 1
    while True:
        opt, variables = trained(**SETTINGS)
        if not amid(call, moment, handle, opt, variables):
            break
        found = current(opt, variables)
        same = [all(np.allclose(a, b, 1e-12, 1e-15) for a, b in zip(found, each, strict=True)) for each in expected]
        assert any(same), f"neither before nor after, at chance {moment}"
        assert lock_is_free()
        moment += 17


def test_a_handler_that_saves_writes_a_state_of_the_run(tmp_path):
    states, moment = [], 1
    for steps in (0, 1):
        opt, variables = trained(**SETTINGS)
        for _ in range(steps):
            opt.apply_gradients(gradients(variables[:-1], 3))
        states.append(state_of(opt, variables[:-1]))
    path = tmp_path / "file"

    def step(opt, variables):
        opt.apply_gradients(gradients(variables[:-1], 3))

    while amid(step, moment, lambda opt, _: opt.save(path, include_variables=True), *trained(**SETTINGS)):
        copies = [np.zeros_like(var) for var in variables[:-1]]
        assert state_of(RMSprop.load(path, copies), copies) in states
        moment += 17
    assert moment > 50


@pytest.mark.parametrize("save", ["save", "save_delta"])
@pytest.mark.parametrize("name", ["step", "gather", "flush", "get_weights"])
def test_a_handler_amid_a_save_leaves_a_file_of_one_state(tmp_path, name, save):
    def call(opt, variables):
        opt.save(tmp_path / "file") if save == "save" else opt.save_delta(tmp_path / "delta")

    files = [tmp_path / "file", tmp_path / "delta"][: 1 + (save == "save_delta")]
    expected = []
    for steps in (0, 1):
        opt, variables = trained(**SETTINGS)
        for _ in range(steps):
            CALLS[name](opt, variables[:-1])
        expected.append(current(opt, variables[:-1]))
    moment, came = 1, True
    while came:
        opt, variables = trained(**SETTINGS)
        if save == "save_delta":
            opt.save(tmp_path / "file")
        came = amid(call, moment, lambda opt, variables: CALLS[name](opt, variables[:-1]), opt, variables)
        for path in [files, [*files, tmp_path / "further"]]:
            copies = [np.zeros_like(var) for var in variables[:-1]]
            found = current(RMSprop.load(path, copies), copies)
            same = [all(np.allclose(a, b, 1e-12, 1e-15) for a, b in zip(found, each, strict=True)) for each in expected]
            assert any(same), f"torn, at chance {moment}"
            if len(path) == len(files):
                opt.save_delta(tmp_path / "further")  # holds the changes since the file
        assert all(np.allclose(a, b, 1e-12, 1e-15) for a, b in zip(found, current(opt, variables[:-1]), strict=True))
        moment += 67


def test_a_handler_that_raises_leaves_a_whole_state():
    """Handlers may raise other things than KeyboardInterrupt, such as a time-out or SystemExit."""

    def end(*_):
        raise SystemExit

    states = []
    for steps in (0, 1):
        opt, variables = trained(**SETTINGS)
        for _ in range(steps):
            opt.apply_gradients(gradients(variables, 3))
        states.append(state_of(opt, variables))
    moment, outcomes = 1, set()
    while True:
        opt, variables = trained(**SETTINGS)
        try:
            amid(CALLS["step"], moment, end, opt, variables)
        except SystemExit:
            state = state_of(opt, variables)
            assert state in states
            outcomes.add(states.index(state))
            assert lock_is_free()
            assert not callable(signal.getsignal(signal.SIGUSR1))
        else:
            break
        moment += 7
    assert outcomes == {0, 1}


def test_two_signals_amid_a_step_are_both_handled():
    opt, var = RMSprop(0.1), np.zeros(3)
    opt.apply_gradients([(np.ones(3), var)])
    came = []

    def first(*_):
        came.append("first")
        raise TimeoutError

    before = [signal.signal(signal.SIGUSR1, first), signal.signal(signal.SIGUSR2, lambda *_: came.append("second"))]
    try:

        def raise_both():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
            assert came == []
            return True

        with pytest.raises(TimeoutError):
            in_turn(lambda: commit([*look(), (raise_both,)], held=True))
        assert came == ["first", "second"]
        assert signal.getsignal(signal.SIGUSR1) is first
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])
    assert lock_is_free()


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


@pytest.mark.parametrize("name", ["step", "step of a table", "gather", "flush"])
def test_a_collection_amid_a_call_is_refused_or_sees_a_whole_state(name):
    """Collections come where Python allocates, and their callbacks may read, and so catch rows up."""

    def read(phase, _):
        if phase == "start":
            try:
                seen.append(opt.gather(variables[0], [1, 2]))
            except RuntimeError as error:
                seen.append(error)

    def collect(frame, event, _):
        nonlocal chances
        chances += 1
        if chances == moment:
            gc.collect(0)

    opt, variables = trained(**SETTINGS)
    CALLS[name](opt, variables)
    expected = current(opt, variables)
    moment, seen = 1, [None]
    while seen:
        opt, variables = trained(**SETTINGS)
        seen, chances = [], 0
        gc.callbacks.append(read)
        try:
            sys.setprofile(collect)
            CALLS[name](opt, variables)
        finally:
            sys.setprofile(None)
            gc.callbacks.remove(read)
        assert_same(current(opt, variables), expected)
        moment += 17
    assert moment > 40
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
    var, inside = np.zeros(300), []

    def rate():
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


def test_a_kernel_that_is_compiled_amid_a_step_holds_handlers_off():
    """Numba's compiler is Python, so a handler that ran in it would see half a step."""
    if numba.config.DISABLE_JIT:
        pytest.skip("nothing is compiled")
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append(opt.iterations))

    @numba.njit
    def kernel(x):
        return x + 1

    def compile_it():
        signal.raise_signal(signal.SIGUSR1)
        kernel(1)
        assert came == []

    opt = RMSprop()
    try:
        in_turn(lambda: commit([*look(), (compile_it,)], held=True))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came == [0]


def test_the_lock_is_free_after_an_interrupt_that_came_as_it_was_taken(monkeypatch):
    """On Python 3.14, ``with`` would leave it held; both calls are one instruction, as with a real signal."""
    calls = [(launch_lock.acquire,), (getattr(ctypes.CDLL(None), "raise"), int(signal.SIGINT))]
    monkeypatch.setattr("numba_rmsprop.runtime.locking._take", partial(deque, starmap(operator.call, calls)))
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
