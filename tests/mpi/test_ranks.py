"""Ranks that refuse, disagree, leave, fail or die: errors on all, no deadlock; and on how many cores they run."""

import json
import os
import subprocess
import sys

import pytest
from on_ranks import finish, needs_mpi, reports, start

pytestmark = [pytest.mark.mpi, needs_mpi]

REFUSED = """
table = ShardedTable(comm, 10, 2, check_finite=True, momentum=0.9)
ones = np.ones((3, 2), np.float32)
table.gather([1, 2, 9])
table.apply_gradients([1, 2, 9], ones)
before = table.shard.tobytes(), table.iterations
calls = {
    "too large": lambda: table.gather([10]),
    "negative": lambda: table.gather([[3], [-1]]),
    "floats": lambda: table.gather([0.5]),
    "wrong out": lambda: table.gather([1], out=np.empty((2, 2), np.float32)),
    "out in shard": lambda: table.gather([1], out=table.shard[:1]),
    "out in slot": lambda: table.gather([1], out=table.optimizer.get_slot(table.shard, "rms")[:1]),
    "wrong shape": lambda: table.apply_gradients([1, 2], ones),
    "wrong dtype": lambda: table.apply_gradients([1, 2, 3], ones.astype(np.float64)),
    "masked": lambda: table.apply_gradients([1, 2, 3], np.ma.masked_array(ones)),
    "not finite": lambda: table.apply_gradients([1, 2, 3], np.array([[1, 2], [3, np.nan], [5, 6]], np.float32)),
    "step too large": lambda: table.apply_gradients([1, 2, 10], ones),
}
rights = {"gather": lambda: table.gather([1, 1]), "apply": lambda: table.apply_gradients([0], ones[:1])}
for name, call in calls.items():
    gathers = name in ("too large", "negative", "floats", "wrong out", "out in shard", "out in slot")
    try:
        (call if rank == 1 else rights["gather" if gathers else "apply"])()
    except Exception as error:
        report([name, type(error).__name__, str(error)])
    assert (table.shard.tobytes(), table.iterations) == before
table.apply_gradients([1], ones[:1])
table.flush()
report("still works")
"""


def test_a_call_that_one_rank_refuses_does_nothing_on_any():
    *refused, last = reports(REFUSED, 3)
    assert last == ["still works"] * 3
    expected = {
        "too large": ("IndexError", "indices[0] is 10; expected 0 <= index < 10"),
        "negative": ("IndexError", "indices[1] is -1"),
        "floats": ("TypeError", "expected integers"),
        "wrong out": ("ValueError", "out: expected a writable"),
        "out in shard": ("ValueError", "apart"),
        "out in slot": ("ValueError", "apart"),
        "wrong shape": ("ValueError", "values: expected shape (2, 2), got (3, 2)"),
        "wrong dtype": ("TypeError", "values: expected dtype float32, got float64"),
        "masked": ("TypeError", "got a masked array; fill it first"),
        "not finite": ("FloatingPointError", "nan at [2, 1]"),
        "step too large": ("IndexError", "indices[2] is 10"),
    }
    assert [of_all[0][0] for of_all in refused] == list(expected)
    for of_all in refused:
        kind, message = expected[of_all[0][0]]
        assert of_all[1][1] == kind
        assert message in of_all[1][2]
        for rank in (0, 2):
            assert of_all[rank][1] == "OtherRankError"
            assert "rank 1" in of_all[rank][2]
            assert kind in of_all[rank][2]
            assert message in of_all[rank][2]


DISAGREEING = """
first, second = (ShardedTable(comm, 10, 2, learning_rate=schedules.ExponentialDecay(0.1, 5, 0.5)) for _ in range(2))
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
"""


def test_ranks_go_on_where_one_has_left():
    program = """
table = ShardedTable(comm, 10, 2)
if rank == 1:
    print("LEFT", flush=True)
    sys.exit(0)
for call in (lambda: table.gather([1]), lambda: table.gather([1]), lambda: table.gather([99])):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""
    status, printed, _ = finish(start(program, 2))
    assert status == 0
    told = [line for line in printed.splitlines() if line != "LEFT"]
    assert "ValueError the ranks disagree" in told[0]
    assert told[1].startswith("OtherRankError the program of rank 1 has ended")
    assert "IndexError" in told[2]


def test_a_part_of_the_ranks():
    program = """
pair = comm.Split(rank // 2)
with_all, with_some = ShardedTable(comm, 10, 2), ShardedTable(pair, 10, 2)
mine = np.ones((1, 2), np.float32)
for _ in range(2):
    with_some.apply_gradients([pair.rank], mine)
with_all.apply_gradients([rank], mine)
try:
    with_all.whole(root=9)
except ValueError as error:
    said = str(error)
report([with_all.iterations, with_some.iterations, with_some.ranks.size, said])
"""
    assert reports(program, 4) == [[[1, 2, 2, "root: expected a rank from 0 to 3, got 9"]] * 4]


def test_ranks_that_disagree_are_all_told():
    *told, last = reports(DISAGREEING, 3)
    assert last == [[1, 1]] * 3
    assert len(told) == 10
    for of_all in told:
        assert of_all[0] == of_all[1] == of_all[2]
        assert "the ranks disagree" in of_all[0]
    assert "rank 0: apply_gradients of ShardedTable" in told[0][0]
    assert "ranks 1, 2: gather of ShardedTable" in told[0][0]
    assert "learning rate 1.1" in told[3][0]
    assert "clipnorm 2.0" in told[4][0]
    assert "float64" in told[6][0]


WRONG = {
    "comm, -1, 2": ("ValueError", "rows: expected a whole number from 0"),
    "comm, 2.5, 2": ("ValueError", "rows: expected a whole number from 0"),
    "comm, 2, 0": ("ValueError", "columns: expected a whole number from 1"),
    "comm, 2, 2, np.int32": ("TypeError", "dtype: expected float32 or float64"),
    "comm, 2, 2, sum_order='x'": ("ValueError", "sum_order: expected one of"),
    "comm, 2, 2, initializer='x'": ("ValueError", "initializer: expected one of"),
    "comm, 2, 2, initializer=[1]": ("TypeError", "initializer: expected a real number"),
    "comm, 2, 2, initializer=lambda rows: np.ones(3)": ("ValueError", "expected an array of shape (2, 2)"),
    "comm, 2, 2, communicator=comm": ("TypeError", "communicator"),
    "comm, 2, 2, momentun=0.9": ("TypeError", "momentun"),
    "None, 2, 2": ("TypeError", "communicator: expected one of mpi4py's"),
}


def test_wrong_arguments():
    program = f"""
for arguments in {list(WRONG)!r}:
    try:
        eval(f"ShardedTable({{arguments}})")
    except Exception as error:
        report([type(error).__name__, str(error)])
"""
    for ((kind, message),), expected in zip(reports(program, 1), WRONG.values(), strict=True):
        assert kind == expected[0]
        assert expected[1] in message


def test_an_exception_on_one_rank_ends_all():
    status, _, errors = finish(
        start(
            """
table = ShardedTable(comm, 10, 2)
if rank == 1:
    raise ZeroDivisionError("as it may happen")
table.gather([1])
""",
            3,
        )
    )
    assert status != 0
    assert "ZeroDivisionError: as it may happen" in errors
    assert "rank 1 of 3 ended with ZeroDivisionError; the others cannot go on without it" in errors


def test_a_rank_that_leaves_early_is_no_deadlock():
    status, _, errors = finish(
        start(
            """
table = ShardedTable(comm, 10, 2)
if rank == 1:
    sys.exit(0)
table.gather([1])
""",
            2,
        )
    )
    assert status != 0
    assert "rank 1: the end of its program" in errors
    assert "rank 0: gather of ShardedTable 1 after 0 steps" in errors


def test_a_rank_that_is_killed_ends_the_job():
    status, _, errors = finish(
        start(
            """
table = ShardedTable(comm, 10, 2)
for step in range(10**9):
    if rank == 1 and step == 7:
        os.kill(os.getpid(), 9)
    table.gather([step % 10])
""",
            2,
        )
    )
    assert status != 0
    assert "rank 1" in errors
    assert "signal 9" in errors


BOUND = """
import warnings
cores = os.sched_getaffinity(0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ShardedTable(comm, 10, 2)
report([len(cores), [str(warning.message) for warning in caught]])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are bound on Linux")
@pytest.mark.parametrize(("ranks", "bound"), [(1, True), (2, True), (2, False)])
def test_a_warning_names_the_flag_where_ranks_are_bound(ranks, bound):
    """One core is less than the share of a rank if there are at least twice as many cores as ranks: pretend so."""
    program = f"""
from numba_rmsprop.mpi import core_binding
core_binding._cores_of_job = lambda: {4 if bound else 1} * size * len(os.sched_getaffinity(0))
""" + (BOUND)
    for cores, warned in reports(program, ranks)[0]:
        if not bound:
            assert warned == []
            continue
        (message,) = warned
        assert f"may run on {cores} of the {4 * cores} cores that are its share" in message
        assert f"--map-by slot:PE={4 * cores}" in message
        assert "--bind-to none" in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are bound on Linux")
def test_the_cores_of_the_job_are_those_of_mpiexec():
    program = """
from numba_rmsprop.mpi.core_binding import _cores_of_job
report([len(os.sched_getaffinity(0)), _cores_of_job()])
"""
    ((bound, of_job),) = reports(program, 1, options=("--bind-to", "core"))[0]
    assert bound <= of_job
    assert of_job == len(os.sched_getaffinity(0))


def test_an_optimizer_with_a_communicator_is_not_pickled_and_copies_have_it():
    program = """
import copy, pickle
opt = RMSprop(communicator=comm)
var = np.ones(3)
opt.apply_gradients([(var, var)])
try:
    pickle.dumps(opt)
except TypeError as error:
    said = str(error)
opt.communicator = None
pickle.loads(pickle.dumps(opt))
opt.communicator = comm
twin = copy.deepcopy((opt, var))
twin[0].apply_gradients([(var if rank else None, twin[1])])
report([said, len(set(comm.allgather(twin[1].tobytes()))), bool((twin[1] < var).all())])
"""
    for said, same, stepped in reports(program, 2)[0]:
        assert "cannot be pickled" in said
        assert same == 1
        assert stepped


def test_importing_the_package_imports_no_mpi():
    program = """
import sys, json
import numba_rmsprop, numba_rmsprop.distributed
print(json.dumps([name for name in sys.modules if name.startswith("mpi4py")]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
