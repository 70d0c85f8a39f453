"""Threads that share the work of a launch: helpers, which are waited for only where they came in time; or Numba's.

A barrier waits for every thread, also for one that the system has not woken yet or has taken off its core: beside
other programs, that took a thousand times as long as the work. Here the calling thread opens a job, takes shares of it
like everybody else, and closes it when none is left. It waits only for helpers that are in the middle of a share. For
a while after a job helpers look out for the next one, and then they sleep.

Whether helpers pay is measured at each job: what the caller waited for them, against what they worked in its place. For
each size of jobs, an account adds up the difference. When more was lost than won, jobs of this size are not shared for
a while, 50 times as long as the loss.

The memory of a pool is an array of int64, whose words the constants here name. Threads write to them atomically.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils

from .jit import Integer, compiled, compiled_inside, compiled_parallel, inlined, intrinsic

LINE = 16
"""Words between two that different threads write: two cache lines, which processors fetch together."""

OPEN = 0
"""The number of the job that helpers may join, or 0."""
SHARE, SHARES, PLACE, LONG = 1, 2, 3, 4
"""Of the job: the address of the function that takes a share, how many there are, the address of its arguments, and 1
where jobs of its kind take long, so that the work on them is measured by another clock."""
INSIDE = LINE
"""How many helpers may be at work on the job."""
WORKED = 2 * LINE
"""Nanoseconds that helpers have worked on the job."""
ASLEEP = 3 * LINE
"""How many helpers sleep, and have not been woken yet."""
JOBS = 4 * LINE
"""How many jobs there were."""
TAKEN, BEGUN, DONE, CORE = JOBS + 1, JOBS + 2, JOBS + 3, JOBS + 4
"""1 while a thread is the caller; when it began to take shares on Numba's threads, and when it found no more; and the
core that it was on when the job was opened."""
STOP = 5 * LINE
"""1 when helpers are to end."""
BELL = 6 * LINE
"""The semaphore on which they sleep."""
THREADS = 7 * LINE
"""How many threads there are, with the caller."""
ACCOUNTS = 8 * LINE
"""For each size of jobs, ``KINDS`` of them: the words LOST, ALONE, UNTIL and TAKES."""
KINDS = 64
LOST, ALONE, UNTIL, TAKES = range(4)
"""Nanoseconds lost so far, less those won; how many jobs the caller shall do alone, and until when at the latest; how
long a job takes alone."""
PARTS = ACCOUNTS + KINDS * 4
"""For each thread, how many shares of its own part were taken: see :func:`next_part`."""
LEFT = 1
"""Behind that, the number of the core that it stays away from, plus 1."""

UNSHARED = -1
"""A kind without an account."""
WAKES = 2
"""How many sleeping helpers each thread wakes: waking one takes some microseconds."""
LOOK_OUT = 200_000
"""Nanoseconds for which a helper looks out for the next job, before it sleeps."""
LATE = 50_000
"""A helper that was off its core for as long, while it looked out, goes to sleep: others need the core."""
UNKNOWN = 1_000_000
"""Work of a helper that took longer may have been interrupted, and counts as none, unless the job is long."""
CREDIT = 6_000_000
"""The most that past gains can make up for: a helper that was off its core until the system's next tick, 4 ms on many.
On a quiet machine that happens once in some seconds."""
FACTOR = 50
"""How much longer than a loss the caller works alone: one part in 50 is lost to trying."""
PATIENCE = 1_000_000_000
"""Nanoseconds after which sharing is tried again in any case."""

LINUX = sys.platform == "linux"
POSIX = os.name == "posix"
"""Elsewhere nothing is measured, and all threads share all jobs."""
MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 0)
THREAD_TIME = getattr(time, "CLOCK_THREAD_CPUTIME_ID", 0)  # to ask this clock took 1.2 us, and the other one 0.05

INT32, INT64 = ir.IntType(32), ir.IntType(64)
WORD = INT64.as_pointer()


def words(threads: int) -> int:
    """Return how many words the memory of a pool has.

    The last ones are for the cores that each thread may be on, a bit for each.
    """
    return PARTS + 2 * threads * LINE


def _libc(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(INT32, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
    return builder.call(function, arguments)


def _word(builder: Any, pool: Any, k: Any) -> Any:
    return builder.gep(builder.inttoptr(pool, WORD), [k])


@intrinsic
def get(typing_context: Any, pool: Any, k: Any) -> Any:
    """Return word ``k`` of a pool."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(builder, *arguments), "seq_cst", 8)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def put(typing_context: Any, pool: Any, k: Any, value: Any) -> Any:
    """Set word ``k`` of a pool."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _word(builder, *arguments[:2]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def add(typing_context: Any, pool: Any, k: Any, value: Any) -> Any:
    """Add to word ``k`` of a pool; return what it was before."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, *arguments[:2]), arguments[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def swap(typing_context: Any, pool: Any, k: Any, before: Any, after: Any) -> Any:
    """Set word ``k`` of a pool if it is ``before``; return whether it was."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pool, k, before, after = arguments
        done = builder.cmpxchg(_word(builder, pool, k), before, after, "seq_cst", "seq_cst")
        return builder.extract_value(done, 1)

    return types.boolean(types.int64, types.int64, types.int64, types.int64), emit


@intrinsic
def nanoseconds(typing_context: Any, clock: Any) -> Any:
    """Return the time of a clock of the system."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not POSIX:
            return INT64(0)
        place = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2))  # type: ignore[no-untyped-call]
        _libc(builder, "clock_gettime", builder.trunc(arguments[0], INT32), builder.bitcast(place, WORD))
        seconds, rest = (builder.load(builder.gep(place, [INT32(0), INT32(k)])) for k in range(2))
        return builder.add(builder.mul(seconds, INT64(10**9)), rest)

    return types.int64(types.int64), emit


@intrinsic
def let_others_run(typing_context: Any) -> Any:
    """Offer the core to other threads."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if POSIX:
            _libc(builder, "sched_yield")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def core_now(typing_context: Any) -> Any:
    """Return the number of the core that this thread is on."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sext(_libc(builder, "sched_getcpu"), INT64) if LINUX else INT64(-1)

    return types.int64(), emit


def _with_cores(name: str) -> Any:
    """Return a function that reads or sets the cores that this thread may be on, in words ``k`` and on of a pool."""

    @intrinsic
    def call(typing_context: Any, pool: Any, k: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if not LINUX:
                return INT64(-1)
            place = _word(builder, *arguments)
            return builder.sext(_libc(builder, name, INT32(0), INT64(8 * LINE), place), INT64)

        return types.int64(types.int64, types.int64), emit

    return call


read_cores, set_cores = _with_cores("sched_getaffinity"), _with_cores("sched_setaffinity")


def _at_the_bell(name: str) -> Any:
    """Return a function that calls one of the system's functions of semaphores with that of a pool."""

    @intrinsic
    def call(typing_context: Any, pool: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _libc(builder, name, _word(builder, arguments[0], INT64(BELL)))
            return context.get_dummy_value()

        return types.void(types.int64), emit

    return call


ring = _at_the_bell("sem_post")  # wakes one thread that sleeps, or keeps the next one awake
wait_for_bell = _at_the_bell("sem_wait")


@intrinsic
def call_share(typing_context: Any, share: Any, number: Any, shares: Any, place: Any) -> Any:
    """Call the function at the address ``share`` with three integers."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [INT64] * 3)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), emit


@inlined
def next_part(pool: Integer, thread: Integer, threads: Integer, shares: Integer) -> Integer:
    """Return a share that no thread has taken yet, or -1; first of those that are the same thread's at every job."""
    for turn in range(threads):
        helped = (thread + turn) % threads
        first, end = helped * shares // threads, (helped + 1) * shares // threads
        if get(pool, PARTS + helped * LINE) < end - first:
            share: Integer = first + add(pool, PARTS + helped * LINE, 1)
            if share < end:
                return share
    return -1


@compiled_inside
def take_shares(pool: Integer, thread: Integer) -> None:
    """Take shares of the job until none is left."""
    function, shares, place, threads = get(pool, SHARE), get(pool, SHARES), get(pool, PLACE), get(pool, THREADS)
    share = next_part(pool, thread, threads, shares)
    while share >= 0:
        call_share(function, share, shares, place)
        share = next_part(pool, thread, threads, shares)


@inlined
def wake_some(pool: Integer) -> None:
    """Wake some of the helpers that sleep."""
    for _ in range(WAKES):
        asleep = get(pool, ASLEEP)
        if asleep > 0 and swap(pool, ASLEEP, asleep, asleep - 1):
            ring(pool)


@inlined
def sleep_until_woken(pool: Integer, seen: Integer) -> None:
    """Sleep, unless there is another job than ``seen`` by now."""
    add(pool, ASLEEP, 1)
    if get(pool, OPEN) in (0, seen) and get(pool, STOP) == 0:
        wait_for_bell(pool)
        return
    asleep = get(pool, ASLEEP)
    while asleep > 0:
        if swap(pool, ASLEEP, asleep, asleep - 1):
            return
        asleep = get(pool, ASLEEP)
    wait_for_bell(pool)  # somebody has counted on this thread, and rings


@inlined
def take_shares_as_helper(pool: Integer, thread: Integer) -> None:
    """Take shares of the job, and note how long they took."""
    long = get(pool, LONG)
    clock = THREAD_TIME if long != 0 else MONOTONIC
    began = nanoseconds(clock)
    take_shares(pool, thread)
    worked = nanoseconds(clock) - began
    if long != 0 or worked < UNKNOWN:
        add(pool, WORKED, worked)


@compiled_inside
def leave_core_of_caller(pool: Integer, thread: Integer) -> None:
    """Move to another core, and stay away from this one, if this thread has been woken on that of the caller.

    Linux looks for an idle core only so far, and then wakes a thread where the caller is. After both had slept, helpers
    shared its core, and launches were no faster, as long as they came soon after one another.
    """
    core, threads = core_now(), get(pool, THREADS)
    words, left = PARTS + (threads + thread) * LINE, PARTS + thread * LINE + LEFT
    if core < 0 or core >= 64 * LINE or core != get(pool, CORE) or read_cores(pool, words) < 0:
        return
    before = get(pool, left) - 1
    if before >= 0:
        put(pool, words + before // 64, get(pool, words + before // 64) | (np.int64(1) << (before % 64)))
    put(pool, words + core // 64, get(pool, words + core // 64) & ~(np.int64(1) << (core % 64)))
    if set_cores(pool, words) == 0:  # it refuses to leave none
        put(pool, left, core + 1)


@inlined
def help_with_job(pool: Integer, thread: Integer, job: Integer) -> None:
    """Take shares of a job, if it is still open."""
    add(pool, INSIDE, 1)
    # The caller closes a job first, and then looks who is inside; so it waits for this thread, or this one sees it.
    if get(pool, OPEN) == job:
        wake_some(pool)
        leave_core_of_caller(pool, thread)
        take_shares_as_helper(pool, thread)
    add(pool, INSIDE, -1)


@compiled
def serve(pool: Integer, thread: Integer) -> None:
    """Help with all jobs until the pool stops."""
    seen, now = np.int64(0), nanoseconds(MONOTONIC)
    since = now
    while get(pool, STOP) == 0:
        job = get(pool, OPEN)
        if job != 0 and job != seen:
            help_with_job(pool, thread, job)
            seen, now = job, nanoseconds(MONOTONIC)
            since = now
            continue
        let_others_run()
        before, now = now, nanoseconds(MONOTONIC)
        if now - since > LOOK_OUT or now - before > LATE:
            sleep_until_woken(pool, seen)
            now = nanoseconds(MONOTONIC)
            since = now


@inlined
def settle(pool: Integer, kind: Integer, began: Integer, opened: Integer, done: Integer, ended: Integer) -> None:
    """Enter a job into the account of its kind. The times are when it began, was open, had no share left, and ended."""
    account = ACCOUNTS + kind * 4
    worked = get(pool, WORKED)
    # At least 1, and not what one job took in which the caller was interrupted.
    takes, before = max(done - opened + worked, 1), get(pool, account + TAKES)
    if before > 0:
        takes = min(takes, before * 9 // 8 + 1000)
    put(pool, account + TAKES, takes)
    lost = get(pool, account + LOST) + (opened - began) + (ended - done) - worked
    if lost > 0:
        put(pool, account + ALONE, FACTOR * lost // takes)
        put(pool, account + UNTIL, ended + PATIENCE)
        lost = 0
    put(pool, account + LOST, max(lost, -CREDIT))


@inlined
def take_alone(share: Integer, shares: Integer, place: Integer) -> None:
    """Take all shares of a job that has no pool: another thread is the caller, which the package's own never are."""
    for number in range(shares):
        call_share(share, number, shares, place)


@inlined
def note_job(pool: Integer, share: Integer, shares: Integer, place: Integer, kind: Integer) -> None:
    """Write down what those who take shares must know."""
    put(pool, SHARE, share)
    put(pool, SHARES, shares)
    put(pool, PLACE, place)
    put(pool, LONG, 1 if kind != UNSHARED and get(pool, ACCOUNTS + kind * 4 + TAKES) > UNKNOWN // 4 else 0)
    put(pool, WORKED, 0)
    for thread in range(get(pool, THREADS)):
        put(pool, PARTS + thread * LINE, 0)


@compiled
def share_out(share: Integer, shares: Integer, place: Integer, pool: Integer, kind: Integer) -> None:
    """Call ``share(number, shares, place)`` for each number, on this thread and on helpers."""
    if not swap(pool, TAKEN, 0, 1):
        take_alone(share, shares, place)
        return
    began = nanoseconds(MONOTONIC)
    note_job(pool, share, shares, place, kind)
    job = get(pool, JOBS) + 1
    put(pool, JOBS, job)
    put(pool, CORE, core_now())
    put(pool, OPEN, job)
    wake_some(pool)
    opened = nanoseconds(MONOTONIC)
    take_shares(pool, np.int64(0))
    done = nanoseconds(MONOTONIC)
    put(pool, OPEN, 0)
    while get(pool, INSIDE) > 0:
        let_others_run()
    if kind != UNSHARED:
        settle(pool, kind, began, opened, done, nanoseconds(MONOTONIC))
    put(pool, TAKEN, 0)


@compiled_inside
def take_shares_as(pool: Integer, thread: Integer) -> None:
    """Take shares of the job as the caller, which is thread 0, or as another."""
    if thread == 0:
        put(pool, BEGUN, nanoseconds(MONOTONIC))
        take_shares(pool, thread)
        put(pool, DONE, nanoseconds(MONOTONIC))
    else:
        take_shares_as_helper(pool, thread)


@compiled_parallel
def take_together(pool: Integer, threads: Integer) -> None:
    """Take shares of the job on Numba's threads."""
    for thread in prange(threads):
        take_shares_as(pool, thread)


@compiled
def share_out_to_numba(share: Integer, shares: Integer, place: Integer, pool: Integer, kind: Integer) -> None:
    """Do as :func:`share_out`, on Numba's threads, all of which must come before this returns."""
    if not swap(pool, TAKEN, 0, 1):
        take_alone(share, shares, place)
        return
    began = nanoseconds(MONOTONIC)
    note_job(pool, share, shares, place, kind)
    take_together(pool, get(pool, THREADS))
    if kind != UNSHARED:
        settle(pool, kind, began, get(pool, BEGUN), get(pool, DONE), nanoseconds(MONOTONIC))
    put(pool, TAKEN, 0)
