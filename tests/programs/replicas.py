"""Ranks that train copies of the same variables, and report whether these are the same, and right."""

import hashlib
import warnings

import numpy as np
import scipy.sparse
from mpi_world import comm, one_before_the_others, rank, report, run, size
from sharded_training import new_array

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct
from numba_rmsprop.mpi import messages
from numba_rmsprop.runtime import launching


def new_variables(dtype, order="F"):
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((50, 3)).astype(dtype), np.array(rng.standard_normal((4, 5)), order=order),
        rng.standard_normal((7, 2, 3)).astype(dtype), np.array(1.0, dtype), rng.standard_normal(30).astype(dtype),
    ]  # fmt: skip


def gradients(step, k, variables):
    """Return the gradients of rank k: dense, rows, matrices, mixed between ranks, and none."""
    rng = np.random.default_rng([step, k])
    table, matrix, cube, scalar, line = variables

    def rows(var, n):
        values = rng.standard_normal((n, *var.shape[1:])).astype(var.dtype)
        return IndexedSlices(values, rng.integers(0, len(var), n))

    def product(var, n):
        found, examples = rows(var, n), rng.integers(0, n // 2, n)
        return SparseProduct.from_entries(found.values, found.indices, examples, found.values[:, 0])

    def dense(var):
        return rng.standard_normal(var.shape).astype(var.dtype)

    def sparse(var):
        return scipy.sparse.random_array(var.shape, density=0.3, rng=rng, dtype=var.dtype, format="coo")

    kinds = {
        0: [product(table, 40), dense(matrix), rows(cube, 3), dense(scalar), sparse(line)],
        1: [rows(table, 0), sparse(matrix), sparse(cube), None, rows(line, 9)],
        2: [None, rows(matrix, 3), None, dense(scalar), None],
    }
    return kinds[(k + step) % 3]


def sum_of(parts, var):
    """Return the sum of all ranks' gradients of a variable, in one process."""
    if all(part is None for part in parts):
        return None
    total = sum(as_dense(part, var) for part in parts)
    if any(isinstance(part, np.ndarray) for part in parts):
        return total
    touched = {int(row) for part in parts if part is not None for row in touched_rows(part)}
    return IndexedSlices(total[sorted(touched)], np.array(sorted(touched), np.int64))


def as_dense(grad, var):
    if grad is None:
        return np.zeros(var.shape, var.dtype)
    if isinstance(grad, IndexedSlices):
        out = np.zeros(var.shape, var.dtype)
        np.add.at(out, grad.indices, grad.values)
        return out
    if isinstance(grad, SparseProduct):
        out = np.zeros(var.shape, var.dtype)
        np.add.at(out, grad.indices, grad.values[grad.sources] * grad.weights[:, None])
        return out
    return grad.toarray().astype(var.dtype) if scipy.sparse.issparse(grad) else grad


def touched_rows(part):
    return part.indices if isinstance(part, IndexedSlices | SparseProduct) else np.unique(part.tocoo().coords[0])


def beside_one_process():
    """Report whether all ranks have the same bits, and how far they are from one process."""
    warnings.simplefilter("ignore")  # on one rank, a gradient may be missing everywhere
    cases = [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"centered": True, "clipnorm": 0.7, "rho": 0.99},
        {"global_clipnorm": 1.0, "clipvalue": 0.4},
        {"sparse_update": "lazy", "decay": 0.1},
        {"gradient_accumulation_steps": 3, "momentum": 0.9},
    ]
    for dtype in (np.float32, np.float64):
        for options in cases:
            order = "C" if options else "F"  # each variant is compiled anew for another order

            def trained_alone(dtype=dtype, options=options, order=order):
                opt, variables = RMSprop(0.01, **options), new_variables(dtype, order)
                for step in range(6):
                    everyone = zip(*(gradients(step, k, variables) for k in range(size)), strict=True)
                    sums = [sum_of(parts, var) for parts, var in zip(everyone, variables, strict=True)]
                    opt.apply_gradients(zip(sums, variables, strict=True))
                return state(opt, variables)

            theirs = one_before_the_others(trained_alone)
            opt, ours = RMSprop(0.01, communicator=comm, **options), new_variables(dtype, order)
            for step in range(6):
                opt.apply_gradients(zip(gradients(step, rank, ours), ours, strict=True))
            mine = state(opt, ours)
            digest = hashlib.sha256(b"".join(array.tobytes() for array in mine)).hexdigest()
            off = max(
                np.abs(a - b).max(initial=0) / max(1e-3, np.abs(b).max(initial=0))
                for a, b in zip(mine, theirs, strict=True)
            )
            report([len(set(comm.allgather(digest))) == 1, float(off)])


def state(opt, variables):
    opt.flush()
    return [*variables, *opt.get_weights()]


def no_summing():
    var = np.ones(3)
    opt = RMSprop(0.1, communicator=comm)
    if rank == 0:
        opt.apply_gradients([(var, var)], experimental_aggregate_gradients=False)
    report([opt.iterations, float(var[0])])


def gathering():
    """Let each rank gather rows of its own before each step."""
    ours, alone = new_array(40, 3), new_array(40, 3)
    options = {"momentum": 0.9, "weight_decay": 0.01}
    opt, expected = RMSprop(0.1, communicator=comm, **options), RMSprop(0.1, **options)
    for step in range(8):
        everyone = [np.random.default_rng([step, k]).integers(0, 40, 5 + k) for k in range(size)]
        mine, rows = everyone[rank], np.concatenate(everyone)
        pulled = opt.gather(ours, mine)
        current = expected.gather(alone, np.arange(40))
        assert np.allclose(pulled, current[mine], rtol=1e-5)
        opt.apply_gradients([(IndexedSlices(np.ones((len(mine), 3), np.float32), mine), ours)])
        expected.apply_gradients([(IndexedSlices(np.ones((len(rows), 3), np.float32), rows), alone)])
    opt.flush()
    expected.flush()
    report([len(set(comm.allgather(ours.tobytes()))), bool(np.allclose(ours, alone, rtol=1e-5)), len(opt.known.slots)])


def gathering_from_any_layout():
    """Gather from variables of any layout in memory, which must stay as they are."""
    base = np.random.default_rng(0).standard_normal((30, 2, 4)).astype(np.float32)
    layouts = [
        lambda: base[:, 0, 0].copy(),
        lambda: np.asfortranarray(base[:, 0]),
        lambda: base.copy(),
        lambda: base.copy()[:, :, ::2],
        lambda: base.copy()[::2, 0],
    ]
    cases = [{"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "sparse_update": "lazy"}, {}]
    once = [(0, new, cases[0]) for new in layouts]  # launched on all threads
    for items, new, options in [*once, *((8192, new, options) for new in layouts for options in cases)]:
        launching.SERIAL_ITEMS = items
        ours, wanted = new(), np.array([[0, 1], [6, 0]])
        grads = [IndexedSlices(np.ones((2, *ours.shape[1:]), np.float32), [t, 2 * t]) for t in range(4)]

        def gathered_alone(new=new, options=options, grads=grads, wanted=wanted):
            opt, var = RMSprop(0.1, **options), new()
            for grad in grads:
                opt.apply_gradients([(grad, var)])
            return opt.gather(var, wanted)

        expected = one_before_the_others(gathered_alone)
        opt = RMSprop(0.1, communicator=comm, **options)
        for grad in grads:
            opt.apply_gradients([(grad if rank == 0 else None, ours)])
        before = ours.tobytes(), opt.known.slots[0].clocks.tobytes()
        pulled = opt.gather(ours, wanted)
        assert before == (ours.tobytes(), opt.known.slots[0].clocks.tobytes())
        assert (pulled == opt.gather(ours, wanted)).all()
        assert (pulled == expected).all()
    report("done")


def acting_alone(folder):
    """Do on one rank what all must do together."""
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
        RMSprop.load(f"{folder}/{rank}", [np.ones(3)], communicator=comm)
    except Exception as error:  # noqa: BLE001  # reported
        report(type(error).__name__)


def refused():
    first, second = np.ones((5, 2)), np.ones(3)
    opt = RMSprop(0.1, communicator=comm, check_finite=True)
    opt.apply_gradients([(first, first), (second, second)])
    before = first.tobytes(), second.tobytes(), opt.iterations
    grad = np.ones((5, 2))
    right = [(grad, first), (None, second)]
    other = np.ones(4)
    wrong = {
        "shape": [(np.ones((5, 3)), first)],
        "kind": [("x", first)],
        "no pair": [3],
        "index": [(IndexedSlices(np.ones((1, 2)), [5]), first)],
        "not finite": [(np.full((5, 2), np.nan), first)],
        "twice": [(grad, first), (grad, first)],
        "order": [(None, second), (grad, first)],
        "fewer": [(grad, first)],
        "none at all": [],
        "another": [(grad, first), (np.ones(4), other)],
    }
    for name, pairs in wrong.items():
        try:
            opt.apply_gradients(pairs if rank == 1 else right)
            report([name, "no error", ""])
        except Exception as error:  # noqa: BLE001  # reported
            report([name, type(error).__name__, str(error)])
        assert (first.tobytes(), second.tobytes(), opt.iterations) == before

    def report_error(name, pairs, optimizer=opt):
        try:
            optimizer.apply_gradients(pairs)
        except ValueError as error:
            report([name, type(error).__name__, str(error)])

    report_error("all none", [(None, first), (None, second)])
    opt.rho = 0.5 if rank else 0.9
    report_error("rho", right)
    opt.rho = 0.9
    opt.clipnorm = 1.0 + rank
    report_error("clipnorm", right)
    opt.clipnorm = None
    assert (first.tobytes(), second.tobytes(), opt.iterations) == before
    report_error("row norms", [(first, first)], RMSprop(communicator=comm, row_norm=1.0 + rank))
    apart = np.full(3, float(rank))
    report_error("other values", [(apart, apart)], RMSprop(communicator=comm))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.apply_gradients([(grad if rank else None, first), (None, second)])
    report([opt.iterations, [str(warning.message) for warning in caught]])
    assert opt.apply_gradients([]) == 2


def minimizing():
    asked = []

    def rate():
        asked.append(1)
        return 0.1

    var = np.array(10.0)
    opt = RMSprop(rate, communicator=comm)
    opt.minimize(lambda: (rank + 1) * var**2 / 2, [var], jac=lambda: [(rank + 1) * var])
    report([len(asked), float(opt.get_weights()[1])])


def loading(path):
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


def loading_amid_calls(path):
    """Go on, on all ranks, from a file that one process wrote with gradients that wait for a step."""
    var, expected, options = np.arange(5.0), np.arange(5.0), {"gradient_accumulation_steps": 2}
    opt, alone = RMSprop(0.1, **options), RMSprop(0.1)
    opt.apply_gradients([(np.full(5, 3.0), var)])
    if rank == 0:
        opt.save(path)
    comm.Barrier()
    again = RMSprop.load(path, [var], communicator=comm)
    again.apply_gradients([(np.full(5, rank + 1.0), var)])
    alone.apply_gradients([(np.full(5, (3.0 + size * (size + 1) / 2) / 2), expected)])
    again.apply_gradients([(np.ones(5), var)])
    try:
        again.save(path)
    except ValueError as error:
        report([bool(np.allclose(var, expected, rtol=1e-12)), again.iterations, str(error)])


def refusing_amid_calls():
    """Refuse a call on one rank that only adds gradients up, and one that takes the step."""
    options = {"check_finite": True, "gradient_accumulation_steps": 2}
    var = np.ones(3)
    opt = RMSprop(0.1, communicator=comm, **options)
    for iterations in (0, 1):
        try:
            opt.apply_gradients([(np.full(3, np.nan if rank == 1 else 1.0), var)])
        except Exception as error:  # noqa: BLE001  # reported
            report([type(error).__name__, opt.accumulated_calls])
        opt.apply_gradients([(np.ones(3), var)])
        assert opt.iterations == iterations
    try:
        RMSprop(0.1, communicator=comm, gradient_accumulation_steps=2 + rank).apply_gradients([(np.ones(3), var)])
    except ValueError as error:
        report(str(error))


def in_several_messages():
    messages.MESSAGE_ITEMS = 1000
    grad, ours, alone = np.arange(2500, dtype=np.float32), np.zeros(2500, np.float32), np.zeros(2500, np.float32)
    RMSprop(0.1, communicator=comm).apply_gradients([(grad, ours)])
    RMSprop(0.1).apply_gradients([(2 * grad, alone)])
    report(bool((ours == alone).all()))


def not_a_number():
    var = np.ones(4, np.float32)
    grad = np.array([np.nan, np.inf, -np.inf, 1], np.float32) * np.float32(1 if rank else -1)
    RMSprop(0.1, communicator=comm).apply_gradients([(grad, var)])
    report(len(set(comm.allgather(var.tobytes()))))


if __name__ == "__main__":
    run(globals())
