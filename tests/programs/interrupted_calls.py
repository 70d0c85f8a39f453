"""Ctrl-C and other signals that reach ranks in the middle of their calls, or at different ones."""

import signal
import time

import numpy as np
from mpi_world import comm, rank, report, run

from numba_rmsprop import RMSprop
from numba_rmsprop.distributed import ShardedTable, TableCheckpoints
from numba_rmsprop.mpi.ranks import Ranks


class Calls:
    """Calls of a table, an optimizer and checkpoints."""

    def __init__(self, folder):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.table = ShardedTable(comm, 50, 2, "float64", momentum=0.9, clipnorm=1.0)
        self.var = np.ones(5)
        self.opt = RMSprop(0.1, communicator=comm)
        self.checkpoints = TableCheckpoints(comm, folder)

    def step(self):
        return self.table.apply_gradients([rank, 7], np.ones((2, 2)))

    def gather(self):
        return self.table.gather([rank, 7])

    def save(self):
        return self.checkpoints.save({"table": self.table}).name


def interrupt(name, times=1):
    """Let an interrupt come, some times, when this rank is about to call a method of Ranks; return what ends it."""
    method, left = getattr(Ranks, name), times

    def interrupted(self, *arguments, **options):
        nonlocal left
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


def in_the_middle(folder):
    """Interrupt rank 1 in the middle of each call."""
    calls = Calls(folder)
    table, opt, checkpoints = calls.table, calls.opt, calls.checkpoints
    interrupted = {
        "gather": (calls.gather, "all_to_all"),
        "gather_async": (lambda: table.gather_async([rank]).wait(), "begin_all_to_all"),
        "wait": (lambda: coming.wait(), "finish"),
        "apply_gradients": (calls.step, "all_to_all"),
        "clipping": (calls.step, "all_gather"),
        "whole": (lambda: table.whole(1), "all_to_all"),
        "flush": (table.flush, "agree"),
        "new table": (lambda: ShardedTable(comm, 5, 2), "agree"),
        "save": (calls.save, "all_gather_objects"),
        "latest": (checkpoints.latest, "all_gather_objects"),
        "table": (lambda: saved.table(comm, "table"), "all_gather_objects"),
        "replicas": (lambda: opt.apply_gradients([(np.ones(5), calls.var)]), "all_gather"),
        "manifest": (lambda: checkpoints.save({"table": table}, optimizer=opt), "together"),
    }
    for name, (call, method) in interrupted.items():
        coming = table.gather_async([rank, 7])
        saved = checkpoints.latest()
        restore = interrupt(method) if rank == 1 else lambda: None
        said = outcome(call).split()[0]
        restore()
        report([name, said == "KeyboardInterrupt", table.iterations, opt.iterations, len(checkpoints._all())])
    report([len(set(comm.allgather(calls.var.tobytes()))), ShardedTable(comm, 5, 2).number])


def at_different_calls(folder):
    """Let rank 0 make another call than the others, to which signals come while they wait for it."""
    calls = Calls(folder)

    def after_interrupts(signals, then, method="_wait"):
        if rank == 0:
            return outcome(then)
        restore = interrupt(method, signals[rank - 1])
        said = outcome(calls.gather)
        restore()
        return said if not said.startswith("KeyboardInterrupt") else "interrupted, then " + outcome(then)

    calls.step()
    report(after_interrupts((1, 1), calls.save))
    report(after_interrupts((0, 1), calls.save))
    report(after_interrupts((0, 0), calls.save))

    saved = []
    signal.signal(signal.SIGINT, lambda *_: saved.append(calls.save()))
    if rank == 0:
        signal.raise_signal(signal.SIGINT)
    report([after_interrupts((1, 1), calls.gather) == str(calls.gather()), saved])

    signal.signal(signal.SIGINT, lambda *_: None)
    report(after_interrupts((10**9, 0), calls.table.flush, "_raise_or_retry"))
    report([calls.step(), calls.table.iterations])


def twice(folder):
    """Interrupt rank 0 twice while it waits for rank 1, which is stuck."""
    calls = Calls(folder)
    wait = Ranks._wait

    def interrupted_twice(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        wait(*arguments)

    if rank == 0:
        Ranks._wait = interrupted_twice
        calls.gather()
    time.sleep(1000)


if __name__ == "__main__":
    run(globals())
