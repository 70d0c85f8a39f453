"""Interrupts on ranks: a call is whole or not begun, and ranks that part are told of it or meet again: none hangs."""

import pytest
from on_ranks import finish, needs_mpi, reports, start

pytestmark = [pytest.mark.mpi, needs_mpi]

INTERRUPTED = """
import signal
from numba_rmsprop.mpi.ranks import Ranks

signal.signal(signal.SIGINT, signal.default_int_handler)
table = ShardedTable(comm, 50, 2, "float64", momentum=0.9, clipnorm=1.0)
var = np.ones(5)
opt = RMSprop(0.1, communicator=comm)
checkpoints = TableCheckpoints(comm, sys.argv[1])
ones = np.ones((2, 2))

def step():
    return table.apply_gradients([rank, 7], ones)

def gather():
    return table.gather([rank, 7])

def save():
    return checkpoints.save({"table": table}).name

def interrupting(name, times=1):
    "Let an interrupt come, some times, when this rank is about to call a method of Ranks."
    global left
    left = times
    method = getattr(Ranks, name)
    def interrupted(self, *arguments, **options):
        global left
        left -= 1
        if left >= 0:
            signal.raise_signal(signal.SIGINT)
        return method(self, *arguments, **options)
    setattr(Ranks, name, interrupted)
    return lambda: setattr(Ranks, name, method)

def outcome(call):
    try:
        return str(call())
    except (KeyboardInterrupt, ValueError) as error:
        return f"{type(error).__name__} {error}".strip()
"""


def test_an_interrupt_waits_for_the_end_of_a_call(tmp_path):
    program = """
calls = {
    "gather": (gather, "exchange"),
    "gather_async": (lambda: table.gather_async([rank]).wait(), "begin_exchange"),
    "wait": (lambda: coming.wait(), "finish"),
    "apply_gradients": (step, "exchange"),
    "clipping": (step, "tell_all"),
    "whole": (lambda: table.whole(1), "exchange"),
    "flush": (table.flush, "meet"),
    "new table": (lambda: ShardedTable(comm, 5, 2), "meet"),
    "save": (save, "tell_all"),
    "latest": (checkpoints.latest, "tell_all"),
    "table": (lambda: saved.table(comm, "table"), "tell_all"),
    "replicas": (lambda: opt.apply_gradients([(np.ones(5), var)]), "gather_all"),
    "manifest": (lambda: checkpoints.save({"table": table}, optimizer=opt), "together"),
}
for name, (call, method) in calls.items():
    coming = table.gather_async([rank, 7])
    saved = checkpoints.latest()
    restore = interrupting(method) if rank == 1 else lambda: None
    said = outcome(call).split()[0]
    restore()
    report([name, said == "KeyboardInterrupt", table.iterations, opt.iterations, len(checkpoints._all())])
report([len(set(comm.allgather(var.tobytes()))), ShardedTable(comm, 5, 2).number])
"""
    *interrupted, last = reports(INTERRUPTED + program, 3, tmp_path)
    for of_all in interrupted:
        assert [was for _, was, *_ in of_all] == [False, True, False], of_all
        assert len({tuple(counts) for _, _, *counts in of_all}) == 1, of_all
    assert interrupted[-1][0] == ["manifest", False, 2, 1, 2]
    assert len({number for _, number in last}) == 1
    assert [same for same, _ in last] == [1, 1, 1]


def test_ranks_that_are_interrupted_at_different_calls_agree_or_are_told(tmp_path):
    program = """
def at_different_calls(signals, then, method="_wait"):
    "Rank 0 goes on with another call than the others, to which signals come while they wait for it."
    if rank == 0:
        return outcome(then)
    restore = interrupting(method, signals[rank - 1])
    said = outcome(gather)
    restore()
    return said if not said.startswith("KeyboardInterrupt") else "interrupted, then " + outcome(then)

step()
report(at_different_calls((1, 1), save))
report(at_different_calls((0, 1), save))
report(at_different_calls((0, 0), save))

saved = []
signal.signal(signal.SIGINT, lambda *_: saved.append(save()))
if rank == 0:
    signal.raise_signal(signal.SIGINT)
report([at_different_calls((1, 1), gather) == str(gather()), saved])

signal.signal(signal.SIGINT, lambda *_: None)
report(at_different_calls((10**9, 0), table.flush, "_settle"))
report([step(), table.iterations])
"""
    agreed, one, none, handled, for_ever, last = reports(INTERRUPTED + program, 3, tmp_path)
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
    program = """
import time
wait = Ranks._wait
def interrupted_twice(*arguments):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    wait(*arguments)
if rank == 0:
    Ranks._wait = interrupted_twice
    gather()
time.sleep(1000)
"""
    status, _, errors = finish(start(INTERRUPTED + program, 2, tmp_path))
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert "interrupted twice while it waited for others" in errors
    assert "rank 0 of 2 ended with KeyboardInterrupt" in errors
