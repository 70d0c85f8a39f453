"""Gradients summed over ranks: the step of one process on the whole batch, and the same bits on all ranks."""

import numpy as np
import pytest
from on_ranks import needs_mpi, reports

from numba_rmsprop import RMSprop

pytestmark = [pytest.mark.mpi, needs_mpi]

TRAIN = """
import hashlib, warnings
import scipy.sparse

def state(opt, variables):
    opt.flush()
    return [*variables, *opt.get_weights()]

def agree(opt, variables, expected_opt, expected_variables):
    "Report whether all ranks have the same bits, and how far they are from one process."
    ours, theirs = state(opt, variables), state(expected_opt, expected_variables)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in ours)).hexdigest()
    off = max(np.abs(a - b).max(initial=0) / max(1e-3, np.abs(b).max(initial=0)) for a, b in zip(ours, theirs))
    report([len(set(comm.allgather(digest))) == 1, float(off)])

def new_variables(dtype):
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((50, 3)).astype(dtype), np.asfortranarray(rng.standard_normal((4, 5))),
        rng.standard_normal((7, 2, 3)).astype(dtype), np.array(1.0, dtype), rng.standard_normal(30).astype(dtype),
    ]

def gradients(step, k, variables):
    "Return the gradients of rank k: dense, rows, matrices, mixed between ranks, and none."
    rng = np.random.default_rng([step, k])
    table, matrix, cube, scalar, line = variables
    def rows(var, n):
        values = rng.standard_normal((n, *var.shape[1:])).astype(var.dtype)
        return IndexedSlices(values, rng.integers(0, len(var), n))
    def dense(var):
        return rng.standard_normal(var.shape).astype(var.dtype)
    def sparse(var):
        return scipy.sparse.random_array(var.shape, density=0.3, rng=rng, dtype=var.dtype, format="coo")
    kinds = {
        0: [rows(table, 40), dense(matrix), rows(cube, 3), dense(scalar), sparse(line)],
        1: [rows(table, 0), sparse(matrix), sparse(cube), None, rows(line, 9)],
        2: [None, rows(matrix, 3), None, dense(scalar), None],
    }
    return kinds[(k + step) % 3]

def as_dense(grad, var):
    if grad is None:
        return np.zeros(var.shape, var.dtype)
    if isinstance(grad, IndexedSlices):
        out = np.zeros(var.shape, var.dtype)
        np.add.at(out, grad.indices, grad.values)
        return out
    return grad.toarray().astype(var.dtype) if scipy.sparse.issparse(grad) else grad
"""


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_step_is_that_of_one_process_with_the_sum(ranks):
    program = """
warnings.simplefilter("ignore")  # on one rank, a gradient may be missing everywhere
for dtype in (np.float32, np.float64):
    for options in ({}, dict(momentum=0.9, weight_decay=0.01), dict(centered=True, clipnorm=0.7, rho=0.99),
                    dict(global_clipnorm=1.0, clipvalue=0.4), dict(sparse_update="lazy", decay=0.1)):
        ours, alone = new_variables(dtype), new_variables(dtype)
        opt, expected = RMSprop(0.01, communicator=comm, **options), RMSprop(0.01, **options)
        for step in range(6):
            opt.apply_gradients(zip(gradients(step, rank, ours), ours))
            everyone = [gradients(step, k, alone) for k in range(size)]
            sums = []
            for k, var in enumerate(alone):
                parts = [of_one[k] for of_one in everyone]
                if all(part is None for part in parts):
                    sums.append(None)
                    continue
                total = sum(as_dense(part, var) for part in parts)
                if any(isinstance(part, np.ndarray) for part in parts):
                    sums.append(total)
                    continue
                touched = sorted({int(row) for part in parts if part is not None for row in (
                    part.indices if isinstance(part, IndexedSlices) else np.unique(part.tocoo().coords[0]))})
                sums.append(IndexedSlices(total[touched], np.array(touched, np.int64)))
            expected.apply_gradients(zip(sums, alone))
        agree(opt, ours, expected, alone)
"""
    found = reports(TRAIN + program, ranks)
    assert len(found) == 10
    for k, of_all in enumerate(found):
        for same, off in of_all:
            assert same
            assert off < (1e-4 if k < 5 else 1e-12)


def test_no_summing_where_it_is_left_to_the_user():
    program = """
var = np.ones(3)
opt = RMSprop(0.1, communicator=comm)
if rank == 0:
    opt.apply_gradients([(var, var)], experimental_aggregate_gradients=False)
report([opt.iterations, float(var[0])])
"""
    assert reports(program, 2) == [[[1, pytest.approx(1 - 0.1 / 0.1**0.5)], [0, 1.0]]]


def test_ranks_may_gather_what_they_like():
    program = """
from sharded_training import new_array
ours, alone = new_array(40, 3), new_array(40, 3)
options = dict(momentum=0.9, weight_decay=0.01)
opt, expected = RMSprop(0.1, communicator=comm, **options), RMSprop(0.1, **options)
for step in range(8):
    rng = np.random.default_rng([step, rank])
    mine = rng.integers(0, 40, 5 + rank)
    pulled = opt.gather(ours, mine)
    current = expected.gather(alone, np.arange(40))
    assert np.allclose(pulled, current[mine], rtol=1e-5)
    opt.apply_gradients([(IndexedSlices(np.ones((len(mine), 3), np.float32), mine), ours)])
    everyone = [np.random.default_rng([step, k]).integers(0, 40, 5 + k) for k in range(size)]
    rows = np.concatenate(everyone)
    expected.apply_gradients([(IndexedSlices(np.ones((len(rows), 3), np.float32), rows), alone)])
opt.flush()
expected.flush()
report([len(set(comm.allgather(ours.tobytes()))), bool(np.allclose(ours, alone, rtol=1e-5)), len(opt._slots)])
"""
    assert reports(program, 3) == [[[1, True, 1]] * 3]


def test_gathering_leaves_variables_of_any_form_as_they_are():
    program = """
from numba_rmsprop.runtime import launching
base = np.random.default_rng(0).standard_normal((30, 2, 4)).astype(np.float32)
for launches in (False, True):
    launching.SERIAL_ITEMS = 0 if launches else 8192
    for form in (lambda a: a[:, 0, 0].copy(), lambda a: np.asfortranarray(a[:, 0]), lambda a: a.copy(),
                 lambda a: a.copy()[:, :, ::2], lambda a: a.copy()[::2, 0]):
        for options in (dict(momentum=0.9), dict(weight_decay=0.1), dict(momentum=0.9, sparse_update="lazy"), {}):
            ours, alone = form(base), form(base)
            opt, expected = RMSprop(0.1, communicator=comm, **options), RMSprop(0.1, **options)
            for step in range(4):
                grad = IndexedSlices(np.ones((2, *ours.shape[1:]), np.float32), [step, 2 * step])
                opt.apply_gradients([(grad if rank == 0 else None, ours)])
                expected.apply_gradients([(IndexedSlices(grad.values, grad.indices), alone)])
            before = ours.tobytes(), opt._slots[0].clocks.tobytes()
            wanted = np.array([[0, 1], [6, 0]])
            pulled = opt.gather(ours, wanted)
            assert before == (ours.tobytes(), opt._slots[0].clocks.tobytes())
            assert (pulled == opt.gather(ours, wanted)).all()
            assert (pulled == expected.gather(alone, wanted)).all()
report("done")
"""
    assert reports(program, 2, environment={"NUMBA_NUM_THREADS": "2"}) == [["done"] * 2]


def test_what_one_rank_does_alone_is_found_out(tmp_path):
    program = """
first, second, empty = np.ones((5, 2)), np.ones((5, 2)), np.ones((0, 2))
opt = RMSprop(0.1, momentum=0.9, communicator=comm)
rows = IndexedSlices(np.ones((1, 2)), [rank])
nothing = IndexedSlices(np.ones((0, 2)), np.empty(0, int)) if rank else np.ones((0, 2))
opt.apply_gradients([(rows, first), (rows, second), (nothing, empty)])
before = first.tobytes(), second.tobytes(), opt.iterations
try:
    opt.apply_gradients([(rows, second), (rows, first)] if rank else [(rows, first), (rows, second)])
except ValueError as error:
    report(str(error))
assert (first.tobytes(), second.tobytes(), opt.iterations) == before
if rank:
    opt.flush(first)
try:
    opt.apply_gradients([(rows, first)])
except ValueError as error:
    report(str(error))
try:
    RMSprop.load(sys.argv[1] + f"/{rank}", [np.ones(3)], communicator=comm)
except Exception as error:
    report(type(error).__name__)
"""
    opt = RMSprop()
    opt.build([np.ones(3)])
    opt.save(tmp_path / "0", include_variables=True)
    swapped, flushed, loaded = reports(program, 2, tmp_path)
    assert "the ranks disagree" in swapped[0]
    assert "variable 1 (float64, shape (5, 2)) after" in swapped[0]
    assert "0 of them flushed" in flushed[0]
    assert "1 of them flushed" in flushed[0]
    assert loaded == ["OtherRankError", "FileNotFoundError"]


REFUSED = """
import warnings
first, second = np.ones((5, 2)), np.ones(3)
opt = RMSprop(0.1, communicator=comm, check_finite=True)
opt.apply_gradients([(first, first), (second, second)])
before = first.tobytes(), second.tobytes(), opt.iterations
grad = np.ones((5, 2))
right = [(grad, first), (None, second)]
other = np.ones(4)
nan = np.full((5, 2), np.nan)
calls = {
    "shape": [(np.ones((5, 3)), first)],
    "kind": [("x", first)],
    "no pair": [3],
    "index": [(IndexedSlices(np.ones((1, 2)), [5]), first)],
    "not finite": [(nan, first)],
    "twice": [(grad, first), (grad, first)],
    "order": [(None, second), (grad, first)],
    "fewer": [(grad, first)],
    "none at all": [],
    "another": [(grad, first), (np.ones(4), other)],
}
for name, pairs in calls.items():
    try:
        opt.apply_gradients(pairs if rank == 1 else right)
        report([name, "no error", ""])
    except Exception as error:
        report([name, type(error).__name__, str(error)])
    assert (first.tobytes(), second.tobytes(), opt.iterations) == before
try:
    opt.apply_gradients([(None, first), (None, second)])
except ValueError as error:
    report(["all none", type(error).__name__, str(error)])
opt.rho = 0.5 if rank else 0.9
try:
    opt.apply_gradients(right)
except ValueError as error:
    report(["rho", type(error).__name__, str(error)])
opt.rho = 0.9
opt.clipnorm = 1.0 + rank
try:
    opt.apply_gradients(right)
except ValueError as error:
    report(["clipnorm", type(error).__name__, str(error)])
opt.clipnorm = None
assert (first.tobytes(), second.tobytes(), opt.iterations) == before
apart = np.full(3, float(rank))
try:
    RMSprop(communicator=comm).apply_gradients([(apart, apart)])
except ValueError as error:
    report(["other values", type(error).__name__, str(error)])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    opt.apply_gradients([(grad if rank else None, first), (None, second)])
report([opt.iterations, [str(warning.message) for warning in caught]])
assert opt.apply_gradients([]) == 2
"""


def test_ranks_that_disagree_are_told_and_nothing_is_written():
    *refused, last = reports(REFUSED, 2)
    assert [of_all[0][0] for of_all in refused] == [
        "shape", "kind", "no pair", "index", "not finite", "twice", "order", "fewer", "none at all", "another",
        "all none", "rho", "clipnorm", "other values",
    ]  # fmt: skip
    own = ["ValueError", "TypeError", "TypeError", "IndexError", "FloatingPointError", "ValueError"]
    for (theirs, mine), kind in zip(refused, own, strict=False):
        assert (theirs[1], mine[1]) == ("OtherRankError", kind)
        assert mine[2] in theirs[2]
    for theirs, mine in refused[6:]:
        assert theirs == mine
        assert theirs[1] == "ValueError"
    for theirs, _ in refused[6:10] + refused[11:13]:
        assert "the ranks disagree" in theirs[2]
        assert "rank 0: apply_gradients" in theirs[2]
    assert "expected a gradient for at least one variable" in refused[10][0][2]
    assert "'rho': 0.5" in refused[11][0][2]
    assert "differs between ranks" in refused[13][0][2]
    for iterations, warnings in last:
        assert iterations == 2
        assert len(warnings) == 1
        assert "no gradient (None) for grads_and_vars[1]" in warnings[0]


def test_a_callable_is_asked_once_a_step_and_minimize_sums():
    program = """
asked = []
def rate():
    asked.append(1)
    return 0.1
var = np.array(10.0)
opt = RMSprop(rate, communicator=comm)
opt.minimize(lambda: (rank + 1) * var**2 / 2, [var], jac=lambda: [(rank + 1) * var])
report([len(asked), float(opt.get_weights()[1])])
"""
    asked, rms = zip(*reports(program, 2)[0], strict=True)
    assert asked == (1, 1)
    assert rms == pytest.approx([0.1 * 30.0**2] * 2)


def test_loading_with_a_communicator(tmp_path):
    program = """
path = sys.argv[1] + "/opt"
var = np.arange(5.0)
opt = RMSprop(0.1, momentum=0.9, communicator=comm)
opt.apply_gradients([(np.ones(5), var)])
if rank == 0:
    opt.save(path, include_variables=True)
comm.Barrier()
copy = np.empty(5)
again = RMSprop.load(path, [copy], communicator=comm)
assert again.communicator is comm
for _ in range(2):
    opt.apply_gradients([(np.ones(5), var)])
    again.apply_gradients([(np.ones(5), copy)])
report(bool((copy == var).all()))
"""
    assert reports(program, 2, tmp_path) == [[True, True]]


def test_large_gradients_go_in_several_messages():
    program = """
from numba_rmsprop.mpi import ranks
ranks.SUM_ITEMS = 1000
var = np.zeros(2500, np.float32)
RMSprop(0.1, communicator=comm).apply_gradients([(np.arange(2500, dtype=np.float32), var)])
alone = np.zeros(2500, np.float32)
RMSprop(0.1).apply_gradients([(2 * np.arange(2500, dtype=np.float32), alone)])
report(bool((var == alone).all()))
"""
    assert reports(program, 2) == [[True, True]]


def test_the_same_bits_where_not_a_number_is_added():
    program = """
var = np.ones(4, np.float32)
grad = np.array([np.nan, np.inf, -np.inf, 1], np.float32) * np.float32(1 if rank else -1)
RMSprop(0.1, communicator=comm).apply_gradients([(grad, var)])
report(len(set(comm.allgather(var.tobytes()))))
"""
    assert reports(program, 3) == [[1, 1, 1]]
