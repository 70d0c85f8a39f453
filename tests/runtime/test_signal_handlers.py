"""Signal handlers and garbage collections in the middle of a call, which see a complete state or are refused."""

import gc
import signal
import sys

import numba
import numpy as np
import pytest
from interrupting import gradients, interrupted_at, lock_is_free, trained
from optimizer_internals import state_of
from processes import results

from numba_rmsprop import RMSprop
from numba_rmsprop.runtime.whole_calls import commit, in_turn, look

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
    """Call, with a signal whose handler calls ``handle`` at the ``moment``-th moment; return whether it did."""
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
        assert any(same), f"neither before nor after, at moment {moment}"
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
            assert any(same), f"torn, at moment {moment}"
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
        nonlocal moments
        moments += 1
        if moments == moment:
            gc.collect(0)

    opt, variables = trained(**SETTINGS)
    CALLS[name](opt, variables)
    expected = current(opt, variables)
    moment, seen = 1, [None]
    while seen:
        opt, variables = trained(**SETTINGS)
        seen, moments = [], 0
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


def test_a_step_within_a_step_leaves_no_address_of_its_gradient():
    moments, finite = results("step_within_a_step.py")
    assert moments > 20  # and not killed by a read of memory that is gone
    assert finite
