"""Tables shared out among ranks, which report bits, bytes and messages."""

import numpy as np
from mpi_world import comm, rank, report, run, size
from sharded_training import STEPS, TRAININGS, digest, new_array, take_step_alone, trained

from numba_rmsprop import RMSprop
from numba_rmsprop.distributed import ShardedTable, row_exchange
from numba_rmsprop.runtime import launching


def digests():
    """Report the digest of each case of sharded_training."""
    report([digest(trained(comm, *kind, **options)) for options, kind in TRAININGS])


def clipped_norms():
    """Report how far clipped steps are from those of one process."""
    for options in ({"clipnorm": 0.5, "momentum": 0.9}, {"global_clipnorm": 0.3, "clipvalue": 0.2}):
        ours = trained(comm, 60, 5, "float64", **options).whole(root=size - 1)
        alone, opt = new_array(60, 5, "float64"), RMSprop(**options)
        for step in range(STEPS):
            take_step_alone(opt, alone, step)
        opt.flush()
        report(None if ours is None else float(abs(ours - alone).max()))


def sums_by_rank():
    whole = [trained(comm, 60, 5, order=order).whole() for order in ("batch", "rank", "rank")]
    report(None if rank else [bool((whole[1] == whole[2]).all()), float(abs(whole[0] - whole[1]).max())])


def bytes_sent(columns):
    """Report the bytes that were sent, and the least that had to be, for uniform rows and for skewed ones."""
    rows, n, columns = 50_000, 2000, int(columns)
    table = ShardedTable(comm, rows, columns)
    rng = np.random.default_rng(rank)
    table.gather([0])
    table.apply_gradients([0], np.ones((1, columns), np.float32))
    for skewed in (False, True):
        before, least = table.ranks.bytes_sent, 0
        for _ in range(5):
            indices = ((rows + 1.0) ** rng.random(n)).astype(int) - 1 if skewed else rng.integers(0, rows, n)
            remote = np.count_nonzero(~np.isin(np.unique(indices), table.rows_here))
            least += remote * (2 * columns * 4 + 4)
            table.gather(indices)
            table.apply_gradients(indices, np.ones((n, columns), np.float32))
        report([table.ranks.bytes_sent - before, least])


def remembered_request():
    """Report the messages of a step after a gather of the same rows, of other rows, and of none."""
    table = ShardedTable(comm, 1000, 4)
    messages = []
    for gathered in ([5, 900, 5], [5, 900], None):
        if gathered:
            table.gather(gathered)
        before = table.ranks.messages
        table.apply_gradients([5, 900, 5], np.ones((3, 4), np.float32))
        messages.append(table.ranks.messages - before)
    report(messages)


def remembered_gathers():
    """Take steps with the rows of any gather since the last one."""
    table, other = ShardedTable(comm, 60, 2), ShardedTable(comm, 60, 2)
    rng = np.random.default_rng(rank)
    batches = [rng.integers(0, 60, 20) for _ in range(3)]
    if rank == 1:
        batches[1] = batches[0]  # the same rows twice, where other ranks gather two batches
    values = rng.standard_normal((20, 2)).astype(np.float32)
    for step in range(4):
        for batch in batches:
            table.gather(batch)
        # In the end, a batch that one rank alone has gathered.
        stepped = batches[step % 3] if step < 3 or rank else rng.integers(0, 60, 20)
        messages = table.ranks.messages
        table.apply_gradients(stepped, values)
        known = table.ranks.messages - messages
        other.apply_gradients(stepped, values)
        unknown = table.ranks.messages - messages - known
        assert known <= unknown - (size - 1) * (step < 3), (step, known, unknown)
    report(bool((table.shard == other.shard).all()))


def gathers_under_way():
    """Take a step while gathers are under way, and forget one of these."""
    first_values = np.repeat(np.arange(100)[:, None], 3, axis=1)
    table = ShardedTable(comm, 100, 3, initializer=lambda rows: first_values[rows])
    mine = np.arange(rank, 100, size)
    early, forgotten = table.gather_async(mine), table.gather_async(mine)
    del forgotten
    late = table.gather_async(mine, out=np.empty((len(mine), 3), np.float32))
    table.apply_gradients(mine, np.ones((len(mine), 3), np.float32))
    after = table.gather(mine)
    expected = first_values[mine]
    same = [bool((gathering.wait() == expected).all()) for gathering in (late, early)]
    report([*same, bool((after < expected).all())])


def any_kind_of_arrays():
    table = ShardedTable(comm, np.int64(50), np.int32(3), momentum=0.9)
    other = ShardedTable(comm, 50, 3, momentum=0.9)
    rows = np.array([[4, 9, 4], [30, 49, 0]])
    values = np.arange(36, dtype=np.float32).reshape(2, 6, 3)[:, ::2]
    values.flags.writeable = False
    for kind in (np.int8, np.uint64, np.int32, list):
        indices = rows.tolist() if kind is list else rows.astype(kind)
        assert (table.gather(indices) == other.gather(rows.T.copy().T)).all()
        table.apply_gradients(indices, values)
        other.apply_gradients(rows.reshape(-1), np.ascontiguousarray(values).reshape(-1, 3))
    table.flush()
    other.flush()
    report(bool((table.shard == other.shard).all() and (table.shard != 0).any()))


def overflowing_sums():
    table = ShardedTable(comm, 4, 1, check_finite=True, clipnorm=1.0)
    table.apply_gradients([1], np.array([[3e38]], np.float32))
    table.optimizer.check_finite = False
    table.optimizer.check_finite = True
    table.apply_gradients([1], np.array([[3e38]], np.float32))
    report(table.iterations)


def wide_links_and_launches():
    """Report how many different digests there are: at first, with all threads, and with links for many ranks."""
    found = {digest(trained(comm, 60, 5, momentum=0.9))}
    launching.SERIAL_ITEMS = 0
    found.add(digest(trained(comm, 60, 5, momentum=0.9)))
    row_exchange.link_format = lambda ranks: (16, np.uint32)
    found.add(digest(trained(comm, 60, 5, momentum=0.9)))
    report(len(found))


if __name__ == "__main__":
    run(globals())
