"""Calls of sharded tables that a rank refuses, about which ranks disagree, or during which one fails."""

import json
import os
import pickle
import sys
import warnings
from copy import deepcopy

import numpy as np
from mpi_world import comm, rank, report, run, size

from numba_rmsprop import RMSprop, schedules
from numba_rmsprop.distributed import ShardedTable
from numba_rmsprop.mpi import core_binding


def refused():
    table = ShardedTable(comm, 10, 2, check_finite=True, momentum=0.9)
    ones = np.ones((3, 2), np.float32)
    nan = np.array([[1, 2], [3, np.nan], [5, 6]], np.float32)
    table.gather([1, 2, 9])
    table.apply_gradients([1, 2, 9], ones)
    before = table.shard.tobytes(), table.iterations
    gathers = {
        "too large": lambda: table.gather([10]),
        "negative": lambda: table.gather([[3], [-1]]),
        "floats": lambda: table.gather([0.5]),
        "wrong out": lambda: table.gather([1], out=np.empty((2, 2), np.float32)),
        "out in shard": lambda: table.gather([1], out=table.shard[:1]),
        "out in slot": lambda: table.gather([1], out=table.optimizer.get_slot(table.shard, "rms")[:1]),
    }
    steps = {
        "wrong shape": lambda: table.apply_gradients([1, 2], ones),
        "wrong dtype": lambda: table.apply_gradients([1, 2, 3], ones.astype(np.float64)),
        "masked": lambda: table.apply_gradients([1, 2, 3], np.ma.masked_array(ones)),
        "not finite": lambda: table.apply_gradients([1, 2, 3], nan),
        "step too large": lambda: table.apply_gradients([1, 2, 10], ones),
    }
    for name, wrong in (gathers | steps).items():
        try:
            if rank == 1:
                wrong()
            elif name in gathers:
                table.gather([1, 1])
            else:
                table.apply_gradients([0], ones[:1])
        except Exception as error:  # noqa: BLE001  # reported
            report([name, type(error).__name__, str(error)])
        assert (table.shard.tobytes(), table.iterations) == before
    table.apply_gradients([1], ones[:1])
    table.flush()
    report("still works")


def disagreeing():
    rate = schedules.ExponentialDecay(0.1, 5, 0.5)
    first, second = ShardedTable(comm, 10, 2, learning_rate=rate), ShardedTable(comm, 10, 2, learning_rate=rate)
    one = np.ones((1, 2), np.float32)

    def another_rate():
        second.optimizer.learning_rate = 0.1 + rank
        second.apply_gradients([1], one)

    def another_limit():
        second.optimizer.learning_rate = 0.1
        second.optimizer.clipnorm = 1.0 + rank
        second.apply_gradients([1], one)

    calls = [
        lambda: first.gather([1]) if rank else first.apply_gradients([1], one),
        lambda: (second if rank else first).gather([1]),
        lambda: second.flush() if rank == 1 else first.gather([1]),
        another_rate,
        another_limit,
        lambda: ShardedTable(comm, 10 + rank, 2),
        lambda: ShardedTable(comm, 10, 2, np.float64 if rank else np.float32),
        lambda: ShardedTable(comm, 10, 2, momentum=0.1 * rank),
        lambda: ShardedTable(comm, 10, 2) if rank else first.flush(),
        lambda: ShardedTable(comm, 10, 2, sum_order="rank" if rank else "batch"),
    ]
    for call in calls:
        try:
            call()
            report("no error")
        except ValueError as error:
            report(str(error))
    second.optimizer.clipnorm = None
    first.apply_gradients([rank], one)
    second.apply_gradients([rank], one)
    report([first.iterations, second.iterations])


def wrong_arguments(texts):
    names = {"comm": comm, "np": np, "ShardedTable": ShardedTable}
    for text in json.loads(texts):
        try:
            eval(f"ShardedTable({text})", names)
        except Exception as error:  # noqa: BLE001  # reported
            report([type(error).__name__, str(error)])


def part_of_the_ranks():
    pair = comm.Split(rank // 2)
    with_all, with_some = ShardedTable(comm, 10, 2), ShardedTable(pair, 10, 2)
    mine = np.ones((1, 2), np.float32)
    for _ in range(2):
        with_some.apply_gradients([pair.rank], mine)
    with_all.apply_gradients([rank], mine)
    try:
        with_all.whole(root=9)
    except ValueError as error:
        message = str(error)
    report([with_all.iterations, with_some.iterations, with_some.ranks.size, message])


def going_on_without_a_rank():
    table = ShardedTable(comm, 10, 2)
    if rank == 1:
        print("LEFT", flush=True)
        sys.exit(0)
    for row in (1, 1, 99):
        try:
            table.gather([row])
        except Exception as error:  # noqa: BLE001  # printed
            print(type(error).__name__, error, flush=True)


def failing(how):
    """Let rank 1 fail while the others gather."""
    table = ShardedTable(comm, 10, 2)
    for step in range(10**9):
        if rank == 1 and how == "raises":
            raise ZeroDivisionError("as it may happen")
        if rank == 1 and how == "leaves":
            sys.exit(0)
        if rank == 1 and how == "is killed" and step == 7:
            os.kill(os.getpid(), 9)
        table.gather([step % 10])


def bound_to_cores(times_as_many):
    """Make a table where mpiexec seems to have several times as many cores for each rank as it is bound to."""
    cores = os.sched_getaffinity(0)
    core_binding._cores_of_job = lambda: int(times_as_many) * size * len(cores)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ShardedTable(comm, 10, 2)
    report([len(cores), [str(warning.message) for warning in caught]])


def cores_of_the_job():
    report([len(os.sched_getaffinity(0)), core_binding._cores_of_job()])


def pickling_and_copying():
    opt = RMSprop(communicator=comm)
    var = np.ones(3)
    opt.apply_gradients([(var, var)])
    try:
        pickle.dumps(opt)
    except TypeError as error:
        message = str(error)
    opt.communicator = None
    pickle.loads(pickle.dumps(opt))
    opt.communicator = comm
    twin = deepcopy((opt, var))
    twin[0].apply_gradients([(var if rank else None, twin[1])])
    report([message, len(set(comm.allgather(twin[1].tobytes()))), bool((twin[1] < var).all())])


if __name__ == "__main__":
    run(globals())
