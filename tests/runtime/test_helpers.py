"""Helpers: each share is taken once, nobody waits for those that do not come, and an account says whether they pay."""

import os
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest
from meetings import meet
from processes import can_fork, results

import numba_rmsprop
from numba_rmsprop import RMSprop
from numba_rmsprop.kernels import thread_pool
from numba_rmsprop.kernels.jit import compiled, compiled_inside
from numba_rmsprop.kernels.parallel_loop import run_shares
from numba_rmsprop.kernels.thread_pool import ACCOUNTS, ALONE, CREDIT, FACTOR, LOST, PATIENCE, TAKES, UNTIL, WORKED
from numba_rmsprop.runtime import helpers, launching

pytestmark = pytest.mark.skipif(not helpers.AVAILABLE, reason="there are no helpers here, or nothing is compiled")
ITEMS = 10**6


@compiled_inside
def _note(share, shares, taken):
    taken[share] += 1


@compiled
def note_shares(team, taken):
    """Add 1 for each share that is taken."""
    run_shares(_note, team, (taken,))


@compiled_inside
def _dawdle(share, shares, ended):
    begin = thread_pool.nanoseconds(thread_pool.MONOTONIC)
    while thread_pool.nanoseconds(thread_pool.MONOTONIC) - begin < 200_000 * share:
        thread_pool.let_others_run()
    ended[share] = 1


@compiled
def dawdle(team, ended):
    """Take shares of which later ones take longer, so that the caller is done before its helpers."""
    run_shares(_dawdle, team, (ended,))


def team_of(shares, threads=4):
    return shares, launching._pool_loop(), helpers.pool_of(threads, True).address, thread_pool.UNSHARED


@pytest.fixture
def account():
    """The account of jobs of ``ITEMS`` elements, in a pool that nobody else uses."""
    numba.set_num_threads(3)
    helpers.pool_of.cache_clear()
    kind = ITEMS.bit_length()
    yield helpers.pool_of(3, True).accounts[4 * kind : 4 * kind + 4]
    helpers.pool_of(3, True).stop()
    helpers.pool_of.cache_clear()


@pytest.fixture
def _automatic():
    yield
    numba_rmsprop.set_threads("auto")


@pytest.mark.parametrize("shares", [1, 3, 4, 5, 32])
def test_each_share_is_taken_once(shares):
    taken = np.zeros(shares, np.int64)
    for _ in range(2000):
        note_shares(team_of(shares), taken)
    assert (taken == 2000).all()


def test_threads_that_launch_at_once_take_their_own_shares():
    counts = [np.zeros(8, np.int64) for _ in range(3)]

    def launch(taken):
        for _ in range(2000):
            note_shares(team_of(8), taken)

    callers = [threading.Thread(target=launch, args=(taken,)) for taken in counts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all((taken == 2000).all() for taken in counts)


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["they look out", "they sleep"])
def test_helpers_come(pause):
    for _ in range(20):
        assert meet(4)
        time.sleep(pause)  # far longer than they look out; a shorter one tests less, and fails nothing


def test_the_caller_waits_for_helpers_amid_a_share():
    for _ in range(50):
        ended = np.zeros(4, np.int64)
        dawdle(team_of(4), ended)
        assert ended.all()


@can_fork
def test_a_forked_process_has_helpers_of_its_own():
    assert results("helpers_in_a_fork.py") == [0, 0]


def test_no_one_waits_for_helpers_that_do_not_come(monkeypatch):
    """There are none, which is as if the system gave them no core."""

    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.warns(UserWarning, match="only 1 of 4 threads can work"):
        pool = helpers.Pool(4, helped=True)
    taken = np.zeros(32, np.int64)
    note_shares((32, launching._pool_loop(), pool.address, thread_pool.UNSHARED), taken)
    assert (taken == 1).all()


def settle(pool, kind, worked, waited, took=1_000_000):
    """Enter a job in which helpers worked for some nanoseconds, and the caller then waited; return its end."""
    pool.memory[WORKED] = worked
    began = time.monotonic_ns()
    thread_pool.settle(pool.address, kind, began, began, began + took, began + took + waited)
    return began + took + waited


def test_an_account_of_wins_and_losses(account):
    pool, kind = helpers.pool_of(3, True), ITEMS.bit_length()
    settle(pool, kind, worked=1_000_000, waited=0)
    assert list(account) == [-1_000_000, 0, 0, 2_000_000]
    for _ in range(10):
        settle(pool, kind, worked=1_000_000, waited=0)
    assert account[LOST] == -CREDIT
    settle(pool, kind, worked=0, waited=CREDIT)
    assert (account[LOST], account[ALONE]) == (0, 0)
    ended = settle(pool, kind, worked=1_000_000, waited=3_000_000)
    takes = account[TAKES]
    assert list(account) == [0, FACTOR * 2_000_000 // takes, ended + PATIENCE, takes]
    others = pool.memory[ACCOUNTS : ACCOUNTS + 4 * kind]
    assert not others.any()


def test_one_job_in_which_the_caller_was_interrupted_does_not_look_like_long_ones(account):
    pool, kind = helpers.pool_of(3, True), ITEMS.bit_length()
    settle(pool, kind, worked=0, waited=0, took=8000)
    settle(pool, kind, worked=0, waited=0, took=20_000_000)
    assert account[TAKES] == 10_000


def test_after_a_loss_steps_are_taken_alone_and_then_together_again(account):
    together = launching.team_for(ITEMS)
    assert together[0] == 3
    account[ALONE], account[UNTIL] = 2, time.monotonic_ns() + 100 * PATIENCE
    assert [launching.team_for(ITEMS) for _ in range(4)] == [launching.ALONE] * 2 + [together] * 2
    account[ALONE], account[UNTIL] = 1000, time.monotonic_ns()
    assert launching.team_for(ITEMS) == together
    account[ALONE], account[UNTIL] = 1000, time.monotonic_ns() + 100 * PATIENCE
    assert launching.team_for(2 * ITEMS)[0] == 3


@pytest.mark.usefixtures("_automatic")
def test_a_fixed_number_of_threads_keeps_no_account(account):
    account[ALONE], account[UNTIL] = 1000, time.monotonic_ns() + PATIENCE
    numba_rmsprop.set_threads(5)
    assert launching.team_for(ITEMS)[0] == 5
    assert launching.team_for(ITEMS, fine=True)[0] == 40
    assert launching.team_for(10_000, fine=True)[0] == 2
    assert launching.team_for(ITEMS)[3] == thread_pool.UNSHARED
    numba_rmsprop.set_threads(1)
    assert launching.team_for(ITEMS) == launching.ALONE


@pytest.mark.usefixtures("_automatic")
@pytest.mark.parametrize("threads", ["auto", 1, np.int64(3), "numba"])
def test_the_same_bits_whatever_is_set(threads, launches):
    rng = np.random.default_rng(0)
    grad, found = rng.standard_normal((300, 7)), []
    for setting in ("auto", threads):
        numba_rmsprop.set_threads(setting)
        opt, var = RMSprop(0.1, momentum=0.9, clipnorm=1.0), np.ones((300, 7))
        for _ in range(3):
            opt.apply_gradients([(grad, var)])
        found.append(var.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, None, "2", "all", 1025, [1]], ids=repr)
def test_other_numbers_of_threads_are_refused(wrong):
    with pytest.raises(ValueError, match='threads: expected "auto", "numba" or a number from 1 to 1024, got'):
        numba_rmsprop.set_threads(wrong)
    assert launching.fixed is None


@pytest.mark.parametrize(("value", "fixed"), [("3", "3"), ("", "None"), ("auto", "None"), ("numba", "None")])
def test_the_environment_sets_threads(value, fixed, monkeypatch):
    monkeypatch.setenv("NUMBA_RMSPROP_THREADS", value)
    program = "from numba_rmsprop.runtime import launching; print(launching.fixed, launching.helped)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fixed, str(value != "numba")]


def test_a_wrong_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("NUMBA_RMSPROP_THREADS", "many")
    done = subprocess.run([sys.executable, "-c", "import numba_rmsprop"], capture_output=True, text=True, check=False)
    assert "ValueError: NUMBA_RMSPROP_THREADS: expected" in done.stderr


@compiled
def _leave(pool, thread):
    thread_pool.leave_core_of_caller(pool, thread)


@compiled
def _core_now():
    return thread_pool.core_now()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell cores")
def test_a_helper_leaves_the_core_of_the_caller_and_stays_away():
    pool, allowed, seen = helpers.Pool(2, helped=False), os.sched_getaffinity(0), []
    if len(allowed) < 2:
        pytest.skip("there is one core")
    first, second = sorted(allowed)[:2]

    def stand_on(core):
        """Let this thread be on a core, from which it may go."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        os.sched_setaffinity(0, before | {core})
        pool.memory[thread_pool.CORE] = core

    def move():
        os.sched_setaffinity(0, allowed)
        pool.memory[thread_pool.CORE] = -1
        _leave(pool.address, 1)
        seen.append(os.sched_getaffinity(0) == allowed)  # the caller is elsewhere
        stand_on(first)
        while _core_now() != first:  # it may have been moved already
            stand_on(first)
        _leave(pool.address, 1)
        seen.append(os.sched_getaffinity(0) == allowed - {first} and _core_now() != first)
        os.sched_setaffinity(0, {second})
        pool.memory[thread_pool.CORE] = second
        os.sched_setaffinity(0, allowed - {first} if len(allowed) > 2 else {second})
        while len(allowed) > 2 and _core_now() != second:
            os.sched_setaffinity(0, {second})
            os.sched_setaffinity(0, allowed - {first})
        _leave(pool.address, 1)
        seen.append(os.sched_getaffinity(0) == allowed - {second})  # and may be on the first one again
        os.sched_setaffinity(0, {first})
        pool.memory[thread_pool.CORE], pool.memory[thread_pool.PARTS + thread_pool.LINE + thread_pool.LEFT] = first, 0
        _leave(pool.address, 1)
        seen.append(os.sched_getaffinity(0) == {first})  # there is no other

    thread = threading.Thread(target=move)  # whose cores are its own
    thread.start()
    thread.join()
    assert seen == [True] * 4
