"""Ctrl-C at any moment: a call is complete or has done nothing."""

import os
import signal
import threading
from functools import partial

import numpy as np
import pytest
from interrupting import gradients, interrupted_at, lock_is_free, trained
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.files.atomic_file import write_atomically
from numba_rmsprop.runtime.interrupts import Uninterrupted


def check_at(moments, call, settings):
    """Interrupt ``call(opt, variables)`` at moments, until it has ended before: it must do nothing or all."""
    opt, variables = trained(**settings)
    call(opt, variables)
    after = state_of(opt, variables)
    before = state_of(*trained(**settings))
    outcomes = []
    for moment in moments():
        opt, variables = trained(**settings)
        if not interrupted_at(moment, call, opt, variables):
            break
        state = state_of(opt, variables)
        assert state in (before, after), f"half done, when interrupted at moment {moment}"
        outcomes.append(state == after)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert lock_is_free()
    if moment == len(outcomes) + 1:  # at each of them
        assert set(outcomes) == {False, True} or before == after
    return moment


SETTINGS = [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}, {"clipnorm": 0.5}, {"sparse_update": "lazy"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_step_is_whole_or_not_begun(settings, moments):
    def step(opt, variables):
        opt.apply_gradients(gradients(variables, 3))

    assert check_at(moments, step, settings) > 300


@pytest.mark.parametrize("which", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}], ids=str)
def test_a_step_of_one_variable_is_whole_or_not_begun(which, settings, moments):
    def step(opt, variables):
        opt.apply_gradients([gradients(variables, 3)[which]])

    def again(opt, variables):
        step(opt, variables)
        step(opt, variables)

    check_at(moments, step, settings)
    # The second call takes over checks from the first, and so runs other code.
    opt, variables = trained(**settings)
    states = [state_of(opt, variables)]
    for _ in range(2):
        step(opt, variables)
        states.append(state_of(opt, variables))
    for moment in moments():
        opt, variables = trained(**settings)
        if not interrupted_at(moment, again, opt, variables):
            break
        assert state_of(opt, variables) in states


def test_interrupts_from_outside(launches):
    """Send SIGINT from another thread all the time: after each, the state is that of complete steps."""

    def made():
        opt, variables = RMSprop(0.1, momentum=0.9), [np.ones((400, 40)), np.ones(30), np.ones((40, 4))]
        rows = IndexedSlices(np.ones((30, 40)), np.arange(30) * 7)
        calls = [
            [(rows, variables[0])],
            [(np.ones(30), variables[1])],
            [(rows, variables[0]), (np.ones(30), variables[1]), (np.ones((40, 4)), variables[2])],
        ]
        opt.build(variables)
        return opt, variables, lambda t: opt.apply_gradients(calls[t % 3])

    opt, variables, step = made()
    for t in range(3):
        step(t)  # compiles
    opt, variables, step = made()
    whole, expected, step_whole = made()
    armed, over = False, threading.Event()

    def interrupt(*_):
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    def send():
        while not over.wait(0.0007):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        for _ in range(300):
            try:
                armed = True
                while True:
                    step(opt.iterations)
            except KeyboardInterrupt:
                pass
            while whole.iterations < opt.iterations:
                step_whole(whole.iterations)
            assert state_of(opt, variables) == state_of(whole, expected)
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGINT, before)


def test_a_flush_is_whole_or_not_begun_for_each_variable(moments):
    check_at(moments, lambda opt, variables: opt.flush(variables[4]), {"momentum": 0.9})
    check_at(moments, lambda opt, variables: opt.flush(variables[0]), {"momentum": 0.9})


def test_a_gather_is_whole_or_not_begun(moments):
    check_at(moments, lambda opt, variables: opt.gather(variables[0], [1, 2]), {"momentum": 0.9})
    check_at(moments, lambda opt, variables: opt.gather(variables[4], [1, 2]), {"momentum": 0.9})


def test_weights_are_set_or_not(moments):
    def halve(opt, _):
        opt.set_weights(halves)

    opt, _ = trained(sparse_update="lazy")
    halves = [weight // 2 if i == 0 else weight / 2 for i, weight in enumerate(opt.get_weights())]
    check_at(moments, halve, {"sparse_update": "lazy"})


def test_a_save_is_whole_or_leaves_the_old_file(tmp_path, seed):
    opt, variables = trained(momentum=0.9)
    opt.save(tmp_path / "opt", include_variables=True)
    moment = 1 + seed % 11
    while interrupted_at(moment, partial(opt.save, tmp_path / "opt", include_variables=True)):
        assert [path.name for path in tmp_path.iterdir()] == ["opt"]
        opt.save_delta(tmp_path / "delta")  # goes on from whatever file is there
        copies = [np.zeros_like(var) for var in variables[:-1]]
        found = RMSprop.load([tmp_path / "opt", tmp_path / "delta"], copies)
        assert state_of(found, copies) == state_of(opt, variables[:-1])
        (tmp_path / "delta").unlink()
        opt.save(tmp_path / "opt", include_variables=True)
        moment += 11
    assert moment > 300


def test_a_delta_is_whole_or_not_there(tmp_path):
    opt, variables = trained(momentum=0.9)
    opt.save(tmp_path / "opt")
    moment = 1
    while interrupted_at(moment, partial(opt.save_delta, tmp_path / "delta")):
        files = sorted(tmp_path.iterdir(), reverse=True)
        assert [path.name for path in files] in (["opt"], ["opt", "delta"])
        opt.save_delta(tmp_path / "next")  # goes on from whatever file is the last
        copies = [np.zeros_like(var) for var in variables[:-1]]
        assert state_of(RMSprop.load([*files, tmp_path / "next"], copies), copies) == state_of(opt, variables[:-1])
        opt.save(tmp_path / "opt")
        for name in ("delta", "next"):
            (tmp_path / name).unlink(missing_ok=True)
        moment += 23
    assert moment > 300


def test_a_file_is_whole_or_not_there_at_every_moment(tmp_path):
    outcomes, moment = set(), 1
    while interrupted_at(moment, write_atomically, tmp_path / "file", lambda file: file.write(b"all")):
        names = [path.name for path in tmp_path.iterdir()]
        assert names in ([], ["file"]), f"interrupted at chance {moment}"
        outcomes.add(bool(names))
        (tmp_path / "file").unlink(missing_ok=True)
        moment += 1
    assert outcomes == {False, True}
    assert moment > 20


def test_interrupts_are_held_off_and_come_after():
    came = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        with Uninterrupted():
            with Uninterrupted():
                signal.raise_signal(signal.SIGINT)
                assert came == []
            assert came == []
        assert came == [signal.SIGINT]
        with Uninterrupted():
            pass
        assert came == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_process_that_handles_no_interrupts_is_left_alone(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with Uninterrupted():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_each_interrupt_is_told_with_its_frame():
    came = []
    before = signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [frame.f_code.co_name for frame in came] == ["test_each_interrupt_is_told_with_its_frame"] * 2


def test_a_handler_that_was_set_meanwhile_stays():
    before = signal.getsignal(signal.SIGINT)
    try:
        with Uninterrupted():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at", range(1, 60))
def test_a_timeout_at_any_moment_leaves_the_handler(at):
    """Ctrl-C works again after a step in which the handler of another signal has raised."""

    def raise_timeout(*_):
        raise TimeoutError

    opt, var = RMSprop(0.1), np.ones(3)
    opt.apply_gradients([(np.ones(3), var)])
    before = signal.signal(signal.SIGALRM, raise_timeout)
    try:
        interrupted_at(at, opt.apply_gradients, [(np.ones(3), var)], number=signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    opt.apply_gradients([(np.ones(3), var)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert lock_is_free()


def test_handlers_are_held_off_after_a_timeout_that_came_as_they_were_to_be(monkeypatch):
    def raise_timeout():
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr("numba_rmsprop.runtime.interrupts._hold", raise_timeout)
        with pytest.raises(TimeoutError):
            Uninterrupted().__enter__()
    with Uninterrupted():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_hold_nothing_off():
    def hold():
        with Uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    other = threading.Thread(target=hold)
    other.start()
    other.join()
    assert seen == [signal.default_int_handler]
