"""Tables of rows by key, shared out among ranks."""

import numpy as np
from mpi_world import comm, rank, report, run, size
from sharded_key_training import CASES, CLIPPED, digest, trained

from numba_rmsprop.distributed import ShardedKeyedTable, ShardedTable, TableCheckpoints


def digests():
    """Report the digest of each case, and how many keys each rank has."""
    report([digest(trained(comm, *kind, **options)) for options, kind in CASES])
    report(len(trained(comm, 3, "float32").local))


def clipped():
    """Report the sum of all rows, clipped by the norm of all, and with sums by rank."""
    for options, kind in CLIPPED:
        found = trained(comm, *kind, **options).whole()
        report(None if found is None else [len(found[0]), float(found[1].sum())])


def refused():
    """Report what is raised where one rank refuses, and that no key has got a row."""
    table = ShardedKeyedTable(comm, 2, check_finite=True)
    ones = np.ones((1, 2), np.float32)
    table.apply_gradients([1, 2], np.ones((2, 2), np.float32))
    before = sorted(table.local.keys().tolist()), table.iterations
    nan = np.full((1, 2), np.nan, np.float32)
    calls = {
        "strings": lambda: table.apply_gradients(["a"] if rank else [9], ones),
        "shape": lambda: table.apply_gradients([9 + rank], np.ones((1, 2 + rank), np.float32)),
        "not finite": lambda: table.apply_gradients([9 - 90 * rank], nan if rank else ones),
        "gather floats": lambda: table.gather([0.5] if rank else [9]),
        "calls": lambda: table.gather([9]) if rank else table.apply_gradients([9], ones),
        "limit": lambda: table.evict(max_rows=-1 if rank else 3),
        "limits": lambda: table.evict(max_rows=rank + 1),
        "no average": lambda: table.gather([9], averaged=True),
        "root": lambda: table.whole(root=size if rank else 0),
        "columns": lambda: ShardedKeyedTable(comm, 2 + rank),
        "step of one": lambda: table.local.apply_gradients([9], ones),
        "evict of one": lambda: table.local.evict(max_rows=0),
        "rows of one": lambda: table.local.rows([9], create=True),
        "admission": lambda: ShardedKeyedTable(comm, 2, admit_after=2),
    }
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # noqa: BLE001  # reported
            report([name, type(error).__name__, str(error)])
        assert (sorted(table.local.keys().tolist()), table.iterations) == before, name


def failing_initializer():
    """Report what is raised where the first values of a rank fail, and that no key has got a row."""
    fails = [True]

    def values(keys):
        if fails and rank == 1 and len(keys):
            raise ZeroDivisionError("no first values")
        return np.ones((len(keys), 2))

    table = ShardedKeyedTable(comm, 2, initializer=values)
    keys = np.arange(50)
    for call in (lambda: table.gather(keys), lambda: table.apply_gradients(keys, np.ones((50, 2), np.float32))):
        try:
            call()
        except Exception as error:  # noqa: BLE001  # reported
            report([type(error).__name__, str(error)])
        assert len(table.local) == table.iterations == 0
    fails.clear()
    assert (table.gather(keys) == 1).all()
    table.apply_gradients(keys, np.ones((50, 2), np.float32))
    report(len(table.local))
    # Once all keys are known, nobody asks for first values.
    fails.append(True)
    table.apply_gradients(keys, np.ones((50, 2), np.float32))
    found = table.whole()
    report([table.iterations, None if found is None else len(found[0])])
    report(len(table.evict(max_rows=np.int64(3) if rank else 3)))


def bytes_sent():
    """Report the bytes that were sent for a gather and a step, and the least that had to be."""
    table = ShardedKeyedTable(comm, 64)
    keys = np.random.default_rng(rank).integers(-(2**62), 2**62, 2000)
    table.gather([0])
    table.apply_gradients([0], np.ones((1, 64), np.float32))
    before = table.ranks.bytes_sent
    table.gather(keys)
    table.apply_gradients(keys, np.ones((2000, 64), np.float32))
    remote = int((table.owners_of(keys) != rank).sum())
    report([table.ranks.bytes_sent - before, remote * (2 * 64 * 4 + 8)])


def saves(folder, first):
    """Go on with the training that is in a folder for six steps, and save it; report the digest."""
    checkpoints, steps = TableCheckpoints(comm, folder), range(int(first), int(first) + 6)
    saved = checkpoints.latest()
    tables = {}
    for k, (options, kind) in enumerate(CASES):
        table = None if saved is None else saved.keyed_table(comm, f"table{k}")
        assert table is None or (table.owners_of(table.local.keys()) == rank).all()
        tables[f"table{k}"] = trained(comm, *kind, steps=steps, table=table, **options)
    others = {"numbers": ShardedTable(comm, 5, 2) if saved is None else saved.table(comm, "numbers")}
    checkpoints.save(tables | others)
    if saved is not None:
        try:
            saved.table(comm, "table0")
        except ValueError as error:
            report(str(error))
        try:
            saved.keyed_table(comm, "numbers")
        except ValueError as error:
            report(str(error))
    report([digest(table) for table in tables.values()])


def exports(folder):
    """Export the rows of each rank."""
    table = trained(comm, 3, "float32")
    table.local.export(f"{folder}/{rank}")
    comm.Barrier()
    report(digest(table))


if __name__ == "__main__":
    run(globals())
