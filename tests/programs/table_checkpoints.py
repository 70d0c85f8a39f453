"""Trainings with two tables and a variable that all ranks have, which are saved, killed and gone on with."""

import errno
import itertools
import os
import resource
import signal
import warnings

import numpy as np
from mpi_world import comm, rank, report, run, size
from sharded_training import OPTIONS, new_table, take_step

import numba_rmsprop.distributed.table_checkpoints as module
from numba_rmsprop import RMSprop
from numba_rmsprop.distributed import ShardedTable, TableCheckpoints


class Training:
    """Two tables, and an optimizer of one variable, as they were last saved in a folder."""

    def __init__(self, folder):
        self.checkpoints = TableCheckpoints(comm, folder)
        self.bias = np.ones(5)
        saved = self.checkpoints.latest()
        if saved is None:
            self.tables = {"small": new_table(comm, 2, 3), "words": new_table(comm, 300, 4, **OPTIONS)}
            self.opt = RMSprop(0.1, communicator=comm)
            return
        self.tables = {name: saved.table(comm, name) for name in saved.names}
        self.opt = saved.optimizer([self.bias], communicator=comm)
        assert saved.notes == {"step": self.opt.iterations}
        assert self.opt.iterations == self.tables["words"].iterations

    def step(self):
        step = self.opt.iterations
        for table in self.tables.values():
            take_step(comm, table, step)
        grad = np.random.default_rng(step).standard_normal(5)
        self.opt.apply_gradients([(grad if rank == step % size else None, self.bias)])

    def save(self):
        return self.checkpoints.save(self.tables, optimizer=self.opt, notes={"step": self.opt.iterations})


def four_steps(folder):
    training = Training(folder)
    for _ in range(4):
        training.step()
    training.save()
    report([table.optimizer.get_config()["momentum"] for table in training.tables.values()])


def three_saves(folder):
    training = Training(folder)
    for _ in range(3):
        training.step()
        training.save()


def save_again(folder):
    Training(folder).save()


def latest(folder):
    """Report the name of the latest checkpoint, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = TableCheckpoints(comm, folder).latest()
    report([None if found is None else found.path.name, [str(warning.message) for warning in caught]])


def failing_saves(folder):
    training = Training(folder)
    checkpoints, tables = training.checkpoints, training.tables
    training.step()
    training.save()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def flushed_alone():
        if rank:
            tables["words"].optimizer.flush()
        training.save()

    calls = {
        "disk": training.save,
        "name": lambda: checkpoints.save({("a/b" if rank else "words"): tables["words"]}),
        "notes": lambda: checkpoints.save(tables, notes={"step": object()}),
        "long notes": lambda: checkpoints.save(tables, notes={"step": "x" * (1 << 24)}),
        "keep": lambda: TableCheckpoints(comm, folder, keep=rank),
        "other keep": lambda: TableCheckpoints(comm, folder, keep=2 + rank),
        "other tables": lambda: checkpoints.save({"small": tables["words" if rank else "small"]}),
        "other ranks": lambda: checkpoints.save({"words": ShardedTable(comm.Split(rank), 3, 2)}),
        "flushed alone": flushed_alone,
    }
    for name, call in calls.items():
        if rank and name == "disk":
            limit(1000)
        try:
            call()
        except Exception as error:  # noqa: BLE001  # reported
            report([type(error).__name__, str(error)])
        limit(resource.RLIM_INFINITY)
    report(checkpoints.latest().path.name)
    tables["words"].flush()
    report(training.save().name)


def unreadable_and_replaced(folder):
    """Look for the latest checkpoint where a rank cannot read it, and where others save at the same time."""
    training = Training(folder)
    for _ in range(4):
        training.step()
        training.save()
    real = module.read_shard

    def unreadable(path, identity):
        if rank:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, identity)

    module.read_shard = unreadable
    try:
        training.checkpoints.latest()
    except OSError as error:
        report(str(error))
    module.read_shard = real
    looking = TableCheckpoints(comm, folder)
    numbers = looking._numbers
    calls = []

    def listed(**options):
        found = numbers(**options)
        if not calls:  # between this and the reading, both that are there are replaced
            calls.append(found)
            training.save()
            training.save()
        return found

    looking._numbers = listed
    report(looking.latest().path.name)


def another_training(folder):
    """Train another table, and save it into the same folder."""
    checkpoints, words = TableCheckpoints(comm, folder, keep=1), new_table(comm, 300, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            take_step(comm, words, step)
            checkpoints.save({"words": words})
    report([str(warning.message) for warning in caught])
    again = TableCheckpoints(comm, folder, keep=1)
    words = again.latest().table(comm, "words")
    take_step(comm, words, 6)
    again.save({"words": words})


def until_killed(folder):
    print("PID", rank, os.getpid(), flush=True)
    training = Training(folder)
    for step in itertools.count(training.opt.iterations):
        training.step()
        if step % 3 == 0:
            training.save()
        if rank == 0:
            print("STEP", step, flush=True)


if __name__ == "__main__":
    run(globals())
