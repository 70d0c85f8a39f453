"""Tables shared out among ranks: the bits of one process, few bytes, any indices."""

import numpy as np
import pytest
from on_ranks import needs_mpi, reports
from sharded_training import digest_of_one_process

from numba_rmsprop import schedules

pytestmark = [pytest.mark.mpi, needs_mpi]

CASES = {
    "plain": {},
    "momentum and weight decay": {"momentum": 0.9, "weight_decay": 0.01, "rho": 0.99},
    "centered, clipped values": {"centered": True, "clipvalue": 0.5},
    "lazy": {"sparse_update": "lazy", "momentum": 0.5},
    "schedule": {"learning_rate": schedules.ExponentialDecay(0.1, 3, 0.5), "momentum": 0.5},
    "clipped norm": {"clipnorm": 0.5, "momentum": 0.9},
}
KINDS = [(1, 1, "float32"), (3, 2, "float32"), (60, 5, "float64"), (20_000, 16, "float32")]
"""Rows, columns and dtype."""


@pytest.fixture(scope="module")
def digests():
    """Return, for each number of ranks, the digest of each case."""
    program = f"""
from sharded_training import digest, trained
from numba_rmsprop.schedules import ExponentialDecay
cases, kinds = {list(CASES.values())!r}, {KINDS!r}
report([digest(trained(comm, rows, columns, np.dtype(dtype), **options))
        for options in cases for rows, columns, dtype in kinds])
"""
    return {ranks: reports(program, ranks)[0][0] for ranks in (1, 2, 3, 4)}


def test_clipped_norms_are_those_of_one_process():
    program = """
from sharded_training import new_array, part, batch, take_step_alone, trained
for options in (dict(clipnorm=0.5, momentum=0.9), dict(global_clipnorm=0.3, clipvalue=0.2)):
    ours = trained(comm, 60, 5, "float64", **options).whole(root=size - 1)
    alone, opt = new_array(60, 5, "float64"), RMSprop(**options)
    for step in range(9):
        take_step_alone(opt, alone, step)
    opt.flush()
    report(None if ours is None else float(abs(ours - alone).max()))
"""
    for nobody, off in reports(program, 2):
        assert nobody is None
        assert off < 1e-12


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_same_bits_on_any_number_of_ranks(digests, ranks):
    assert digests[ranks] == digests[1]
    assert len(set(digests[ranks])) == len(digests[ranks])


def test_the_bits_of_one_process(digests):
    expected = [
        digest_of_one_process(rows, columns, np.dtype(dtype), **options)
        for options in CASES.values()
        for rows, columns, dtype in KINDS
    ]
    clipped = list(CASES).index("clipped norm") * len(KINDS)
    assert digests[1][:clipped] == expected[:clipped]  # the norm of one process is rounded more than once


def test_sums_by_rank_are_close_and_repeat():
    program = """
from sharded_training import trained
whole = [trained(comm, 60, 5, order=order).whole() for order in ("batch", "rank", "rank")]
report(None if rank else [bool((whole[1] == whole[2]).all()), float(abs(whole[0] - whole[1]).max())])
"""
    repeat, difference = reports(program, 3)[0][0]
    assert repeat
    assert 0 < difference < 1e-4


@pytest.mark.parametrize("columns", [4, 64])
def test_bytes_on_the_wire(columns):
    program = (
        f"columns = {columns}"
        + """
rows, n = 50_000, 2000
table = ShardedTable(comm, rows, columns)
rng = np.random.default_rng(rank)
table.gather([0])
table.apply_gradients([0], np.ones((1, columns), np.float32))
for skewed in (False, True):
    before, least = table.ranks.bytes_sent, 0
    for _ in range(5):
        indices = ((rows + 1.0) ** rng.random(n)).astype(int) - 1 if skewed else rng.integers(0, rows, n)
        unique = np.unique(indices)
        remote = np.count_nonzero(~np.isin(unique, table.rows_here))
        least += remote * (2 * columns * 4 + 4)
        table.gather(indices)
        table.apply_gradients(indices, np.ones((n, columns), np.float32))
    report([table.ranks.bytes_sent - before, least])
"""
    )
    for ranks in (2, 4):
        for of_all in reports(program, ranks):
            sent, least = np.sum(of_all, axis=0)
            assert 1 <= sent / least < 1.1


def test_a_remembered_request_is_not_sent_again():
    program = """
table = ShardedTable(comm, 1000, 4)
values = np.ones((3, 4), np.float32)
said = []
for gathered in ([5, 900, 5], [5, 900], None):
    if gathered:
        table.gather(gathered)
    before = table.ranks.messages
    table.apply_gradients([5, 900, 5], values)
    said.append(table.ranks.messages - before)
report(said)
"""
    for known, other, none in reports(program, 2)[0]:
        assert known < other == none


def test_a_gather_under_way_has_the_rows_of_its_time():
    program = """
table = ShardedTable(comm, 100, 3, initializer=lambda rows: np.repeat(rows[:, None], 3, axis=1))
mine = np.arange(rank, 100, size)
early, forgotten = table.gather_async(mine), table.gather_async(mine)
del forgotten
late = table.gather_async(mine, out=np.empty((len(mine), 3), np.float32))
table.apply_gradients(mine, np.ones((len(mine), 3), np.float32))
after = table.gather(mine)
expected = np.repeat(mine[:, None], 3, axis=1)
report([bool((late.wait() == expected).all()), bool((early.wait() == expected).all()), bool((after < expected).all())])
"""
    assert reports(program, 3) == [[[True, True, True]] * 3]


def test_indices_and_values_of_any_kind():
    program = """
table = ShardedTable(comm, np.int64(50), np.int32(3), momentum=0.9)
other = ShardedTable(comm, 50, 3, momentum=0.9)
rows = np.array([[4, 9, 4], [30, 49, 0]])
values = np.arange(36, dtype=np.float32).reshape(2, 6, 3)[:, ::2]
values.flags.writeable = False
for kind in (np.int8, np.uint64, np.int32, list):
    given = rows.tolist() if kind is list else rows.astype(kind)
    pulled = table.gather(given)
    assert (pulled == other.gather(rows.T.copy().T)).all()
    table.apply_gradients(given, values)
    other.apply_gradients(rows.reshape(-1), np.ascontiguousarray(values).reshape(-1, 3))
table.flush()
other.flush()
report(bool((table.shard == other.shard).all() and (table.shard != 0).any()))
"""
    assert reports(program, 3) == [[True] * 3]


def test_sums_may_overflow_as_in_one_process():
    program = """
table = ShardedTable(comm, 4, 1, check_finite=True, clipnorm=1.0)
table.apply_gradients([1], np.array([[3e38]], np.float32))
table.optimizer.check_finite = False
table.optimizer.check_finite = True
table.apply_gradients([1], np.array([[3e38]], np.float32))
report(table.iterations)
"""
    assert reports(program, 2) == [[2, 2]]


def test_wide_links_and_launches_on_all_threads_have_the_same_bits():
    program = """
from sharded_training import digest, trained
from numba_rmsprop.runtime import launching
from numba_rmsprop.distributed import row_exchange
digests = [digest(trained(comm, 60, 5, momentum=0.9))]
launching.SERIAL_ITEMS = 0
digests.append(digest(trained(comm, 60, 5, momentum=0.9)))
row_exchange.link_words = lambda ranks: (16, np.uint32)
digests.append(digest(trained(comm, 60, 5, momentum=0.9)))
report(len(set(digests)))
"""
    assert reports(program, 3, environment={"NUMBA_NUM_THREADS": "2"}) == [[1, 1, 1]]


def test_any_gather_since_the_last_step_is_found_again():
    program = """
table, other = (ShardedTable(comm, 60, 2) for _ in range(2))
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
"""
    assert reports(program, 3) == [[True] * 3]
