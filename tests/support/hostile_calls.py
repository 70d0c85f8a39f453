"""Calls that a hostile or broken program might make, for Hypothesis (test_hostile_calls.py) and a fuzzer (fuzz.py).

Each target takes a :class:`Source`, which makes all choices. It fails unless each call is carried out, or refused with
a documented kind of error and every byte unchanged.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import traceback
import tracemalloc
import warnings
from pathlib import Path

import all_schedules
import checkpoint_files
import numba
import numpy as np
import scipy.sparse
from optimizer_internals import all_slots, has_marked_rows, state_of

from numba_rmsprop import IndexedSlices, RMSprop, schedules

REFUSALS = (TypeError, ValueError, IndexError, FloatingPointError, UserWarning, RuntimeWarning)
FORMATS = ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")
NUMBERS = (0.0, -0.0, 1.0, -1.5, 0.1, 1e-3, 1e-30, 5e-324, 1e30, 1e300, -1e300, np.inf, -np.inf, np.nan)
INTEGERS = (0, 1, -1, 2, 3, 7, 63, 64, 127, 1024, -(2**31), 2**31 - 1, 2**31, 2**32, 2**53, -(2**63), 2**63 - 1)
DTYPES = ("f4", "f8", "i4", "i8", "u1", "u8", "f2", "g", "c8", "?", ">f4", "O", "S3", "M8[s]")
WORDS = (
    "",
    "rms",
    "momentum",
    "nan",
    "exact",
    "lazy",
    "RMSprop",
    "function",
    "__doc__",
    "np",
    "math",
    "abc",
    *dir(schedules),
)
MEMORY_LIMIT = 100_000_000
"""Bytes; no call on the few elements here needs so many."""


class Source:
    """Choices, each made by calling ``integer(low, high)``."""

    def __init__(self, integer):
        self.integer = integer

    def flag(self):
        return bool(self.integer(0, 1))

    def rarely(self, one_in=8):
        # a fuzzer without bytes left, and Hypothesis when it shrinks, choose 0
        return self.integer(0, one_in - 1) == one_in - 1

    def choose(self, options):
        options = tuple(options)
        return options[self.integer(0, len(options) - 1)]

    def number(self):
        return self.choose(NUMBERS) if self.rarely(4) else self.integer(-16, 16) / 8

    def any_integer(self):
        return self.choose(INTEGERS) if self.rarely(4) else self.integer(-2, 8)

    def length(self, most):
        return self.integer(0, most)

    def shape(self):
        return tuple(self.length(5) for _ in range(self.integer(0, 3)))

    def dtype(self):
        return np.dtype(self.choose(DTYPES)) if self.rarely() else np.dtype(self.choose(DTYPES[:2]))

    def array(self, shape, dtype):
        """Return an array of a few different values, in some memory layout."""
        numbers = [self.number() for _ in range(4)]
        try:
            array = np.resize(np.array(numbers, dtype), shape)
        except (OverflowError, TypeError, ValueError):  # infinity is no integer, and a number no date
            array = np.zeros(shape, dtype)
        return self.arranged(array)

    def arranged(self, array):
        how = self.integer(0, 4)
        if how == 1:
            return np.asfortranarray(array)
        if how == 2 and array.ndim:
            return np.repeat(array, 2, axis=-1)[..., ::2]
        if how == 3 and array.ndim:
            return np.flip(np.flip(array).copy())
        if how == 4 and not array.dtype.hasobject:
            raw = np.zeros(array.nbytes + 1, np.uint8)
            shifted = np.ndarray(array.shape, array.dtype, raw[1:])
            shifted[...] = array
            return shifted
        return array


def is_one_of_ours(error):
    """Return whether a check has raised an error, and not an access out of bounds in a kernel."""
    inside = any(f"{os.sep}kernels{os.sep}" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return not inside and (not isinstance(error, IndexError) or "indices[" in str(error))


def is_refused(call, memory, errors):
    """Make a call; return whether it was refused, which must leave the result of ``memory()`` as it was."""
    before, refusal = memory(), None
    try:
        call()
    except errors as error:
        refusal = error
    if refusal is None:
        return False
    if not is_one_of_ours(refusal):
        raise AssertionError("raised by no check") from refusal
    if memory() != before:
        raise AssertionError("a refused call has written") from refusal
    return True


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT, f"{peak} bytes allocated"


@contextlib.contextmanager
def numerics(source):
    """Turn warnings and floating-point errors into exceptions at times, as programs may."""
    # as plain Python, kernels would raise them too
    strict = source.rarely(4) and not numba.config.DISABLE_JIT
    with warnings.catch_warnings(), np.errstate(all="raise" if strict else "ignore"):
        warnings.simplefilter("error" if strict else "ignore")
        yield


def check_marks(opt):
    """Each call must remove the marks by which kernels look for duplicates."""
    assert not any(has_marked_rows(opt, i) for i in range(len(all_slots(opt))))


# Gradients


def settings(source, variants):
    """Return an optimizer's arguments, some of them beyond what float32 holds."""
    momentum, centered = source.choose(variants)
    chosen = {"momentum": 0.9 * momentum, "centered": centered}
    unusual = {
        "learning_rate": lambda: source.choose([0.1, 0.0, 1e300, 5e-324, schedules.ExponentialDecay(0.1, 1, 1e200)]),
        "rho": lambda: source.choose([0.0, 1.0, 0.5, lambda: 0.5]),
        "epsilon": lambda: source.choose([0.0, 1e300, 5e-324]),
        "decay": lambda: source.choose([0.5, 1e300]),
        "sparse_update": lambda: "lazy",
        "epsilon_in_sqrt": source.flag,
        "weight_decay": lambda: source.choose([0.1, 1.0, 1e300]),
        "check_finite": source.flag,
        "clipvalue": lambda: source.choose([0.5, 0.0, 1e300]),
        source.choose(["clipnorm", "global_clipnorm"]): lambda: source.choose([0.5, 0.0, 5e-324]),
    }
    return chosen | {name: make() for name, make in unusual.items() if source.rarely(5)}


def view(source, arena, shape, dtype):
    """Return an array with arbitrary strides within ``arena``, or a separate one if they do not fit."""
    offset = source.integer(0, 256) * (1 if source.rarely() else 4)
    strides = tuple(4 * source.integer(-8, 8) for _ in shape)
    try:
        return np.ndarray(shape, dtype, arena, offset, strides)
    except ValueError:
        return np.ones(shape, dtype)


class Subclass(np.ndarray):
    pass


def variable(source, arena, dtypes):
    shape, dtype = source.shape(), source.dtype() if source.rarely(16) else np.dtype(source.choose(dtypes))
    kind = source.integer(0, 9)
    if kind < 6:
        return source.arranged(np.ones(shape, dtype)) if dtype.kind == "f" else source.array(shape, dtype)
    if kind < 8 and not dtype.hasobject:
        return view(source, arena, shape, dtype)
    if kind == 8 and source.rarely(4):
        return source.choose([np.ma.ones(shape), np.ones(3).view(Subclass), [1.0], 1.0, None, np.float32(1)])
    array = np.ones(shape, dtype if dtype.kind == "f" else "f8")
    array.flags.writeable = not source.rarely(3)
    return array


def gradient(source, arena, var):
    """Return a gradient of ``var``, or something that is nearly one."""
    if not isinstance(var, np.ndarray) or source.rarely(32):
        return source.choose([None, "gradient", {}, [[1.0], [1.0, 2.0]], object(), np.ma.ones(3), var, RMSprop])
    shape = source.shape() if source.rarely(16) else var.shape
    dtype = source.dtype() if source.rarely(16) else var.dtype
    kind = source.integer(0, 7)
    if kind < 2 or not shape:
        values = source.array(shape, dtype)
        return source.choose([values, values.tolist(), None]) if source.rarely() else values
    if kind == 2 and not dtype.hasobject:
        return view(source, arena, shape, dtype)
    if kind < 5:
        return slices(source, arena, shape, dtype)
    return sparse(source, shape, dtype)


def row_numbers(source, n, rows):
    """Return row indices, nearly always within bounds."""
    most = max(rows - 1, 0)
    return [source.any_integer() if source.rarely(32) else source.integer(0, most) for _ in range(n)]


def slices(source, arena, shape, dtype):
    n = source.length(6)
    values = (
        view(source, arena, (n, *shape[1:]), dtype)
        if source.rarely(6) and not dtype.hasobject
        else source.array((n, *shape[1:]), dtype)
    )
    indices = np.array(row_numbers(source, n, shape[0]), np.int64)
    if source.rarely():
        indices = indices.astype(source.choose(["i4", "u8", "u1", "i8", ">i8", "f8", "?"]))
    if source.rarely(16):
        values, indices = source.choose([(values[1:], indices), (values, indices[1:]), (values, indices[:, None])])
    dense_shape = source.choose([shape, (*shape, 1), list(shape), (2**70,)]) if source.rarely() else None
    made = IndexedSlices(values, source.arranged(indices), dense_shape)
    if source.rarely(16):  # NumPy lets an array change its shape in the hands of others
        with contextlib.suppress(AttributeError, ValueError):
            target = source.choose([made.values, made.indices])
            target.resize(source.shape(), refcheck=False) if source.flag() else setattr(target, "shape", (-1, 1))
    return made


def sparse(source, shape, dtype):
    """Return a sparse array or matrix, sometimes with arrays that were changed behind its back."""
    n, form = source.length(8), source.choose(FORMATS)
    if len(shape) == 1 and source.flag():
        shape = source.choose([(1, *shape), (*shape, 1)])
    coords = [[source.integer(0, length - 1) for _ in range(n if all(shape) else 0)] for length in shape]
    data = np.resize(source.array((4,), dtype), len(coords[0]))
    made = scipy.sparse.coo_array((data, tuple(coords)), shape)
    if made.ndim == 2:
        made = scipy.sparse.coo_matrix(made) if source.rarely() else made
        made = made.asformat(form, **({"blocksize": blocks(source, shape)} if form == "bsr" and all(shape) else {}))
    elif made.ndim == 1 and form in ("csr", "dok"):
        made = made.asformat(form)
    if source.rarely(3):
        for _ in range(source.integer(1, 3)):
            tamper(source, made)
    return made


def blocks(source, shape):
    return tuple(source.choose([k for k in range(1, n + 1) if n % k == 0]) for n in shape)


PARTS = {
    "csr": ("indptr", "indices", "data"),
    "csc": ("indptr", "indices", "data"),
    "bsr": ("indptr", "indices", "data"),
    "coo": ("coords", "data"),
    "dia": ("offsets", "data"),
    "lil": ("rows", "data"),
    "dok": ("_dict",),
}


def tamper(source, grad):
    """Change one of the arrays of a sparse array, as SciPy allows, or replace it."""
    name = source.choose(PARTS[grad.format])
    part = getattr(grad, name)
    if name == "_dict":
        part[tuple(source.any_integer() for _ in grad.shape)] = source.number()
    elif name == "coords":
        changed = [tampered(source, axis) if source.flag() else axis for axis in part]
        grad.coords = tuple(changed[: source.integer(0, 3)]) if source.rarely() else tuple(changed)
    elif grad.format == "lil" and isinstance(part, np.ndarray) and part.size:
        lines = part if source.flag() else part.copy()
        lines[source.integer(0, len(lines) - 1)] = [source.any_integer() for _ in range(source.length(4))]
        setattr(grad, name, lines[: source.integer(0, len(lines))] if source.rarely() else lines)
    else:
        setattr(grad, name, tampered(source, part))


def tampered(source, part):
    """Return a replacement of ``part``: nearly always the array itself, with another number in it."""
    if not isinstance(part, np.ndarray) or not part.ndim:
        return part
    how = source.integer(0, 7)
    if how == 7 and source.flag():
        return source.choose([None, [], [0, 1], np.array(1), np.zeros((2, 2), part.dtype), part.tolist()])
    if how == 6:
        return source.arranged(part.astype(source.dtype()) if part.dtype.kind in "iuf" else part.copy())
    if how == 5:
        return part[: source.length(max(len(part), 1))]
    if how == 4:
        return np.concatenate([part, part[-1:]])
    if part.size and part.flags.writeable and part.dtype.kind in "iu":
        with contextlib.suppress(OverflowError):
            part.flat[source.integer(0, part.size - 1)] = source.any_integer()
    return part


def own_arrays(grad):
    """Return the arrays of a gradient, which a call must not change."""
    if isinstance(grad, IndexedSlices):
        return [grad.values, grad.indices]
    if scipy.sparse.issparse(grad):
        found = [getattr(grad, name) for name in PARTS[grad.format]]
        found += found[0] if grad.format == "coo" else []
        return [array for array in found if isinstance(array, np.ndarray)]
    return [grad] if isinstance(grad, np.ndarray) else []


VARIANTS = [(momentum, centered) for momentum in (False, True) for centered in (False, True)]


def gradients(source, variants=VARIANTS, dtypes=("f4", "f8"), most_calls=5):
    """Call ``apply_gradients`` of one optimizer some times."""
    arena = np.ones(2048, np.uint8).view("f4").view(np.uint8)
    try:
        opt = RMSprop(**settings(source, variants))
        variables = [variable(source, arena, dtypes) for _ in range(source.integer(1, 3))]
    except (TypeError, ValueError):  # settings that exclude each other
        return
    arrays = [var for var in variables if isinstance(var, np.ndarray)]
    for _ in range(source.integer(1, most_calls)):
        chosen = [var for var in variables if not source.rarely()]
        try:
            pairs = [(gradient(source, arena, var), var) for var in chosen]
        except (TypeError, ValueError, IndexError, NotImplementedError):  # of IndexedSlices or of SciPy
            continue
        if source.rarely(24):
            pairs = source.choose([pairs + pairs, [pair[:1] for pair in pairs], None, dict.fromkeys("ab"), [None]])
        if source.rarely(16):
            source.choose(arrays or [np.ones(1)]).flags.writeable = False
        one_step(source, opt, pairs, [*arrays, arena])


def one_step(source, opt, pairs, arrays):
    known = [pair for pair in pairs if isinstance(pair, tuple) and len(pair) == 2] if isinstance(pairs, list) else []
    given = [array for grad, _ in known for array in own_arrays(grad)]
    mine = [array for array in given if not any(np.may_share_memory(array, other) for other in arrays)]
    before, read_only = [array.copy() for array in arrays], [array.tobytes() for array in mine]

    def call():
        with numerics(source):
            opt.apply_gradients(pairs)

    refused = is_refused(call, lambda: state_of(opt, arrays), REFUSALS)
    check_marks(opt)
    assert read_only == [array.tobytes() for array in mine], "a gradient was changed"
    if not refused:
        check_untouched(opt, known, arrays, before)


def check_untouched(opt, pairs, arrays, before):
    """Check that other variables, gaps between strides and rows that were left out keep their bits."""
    plain = "momentum" not in opt.get_slot_names() and not opt.weight_decay
    old = dict(zip(map(id, arrays), before, strict=True))
    steps = [(var, touched_rows(grad, var) if plain else ..., var.copy()) for grad, var in pairs if grad is not None]
    for var, rows, _ in steps:
        var[rows] = old[id(var)][rows]
    assert [array.tobytes() for array in arrays] == [array.tobytes() for array in before], "more was written"
    for var, _, new in steps:
        var[...] = new


def touched_rows(grad, var):
    touched = np.zeros(var.shape[:1], bool)
    if isinstance(grad, IndexedSlices):
        touched[grad.indices.astype(np.int64)] = True
    elif not scipy.sparse.issparse(grad):
        touched[...] = True
    elif var.ndim == 1:
        touched[grad.tocoo().coords[int(np.argmax(grad.shape))].astype(np.int64)] = True  # no indices may be floats
    else:
        flat = grad if grad.ndim == 2 else grad.reshape((len(var), -1) if var.size else (len(var), 0))
        touched[:] = np.diff(flat.tocsr().indptr) > 0
    return touched


# Weights


def weights(source, variants=VARIANTS):
    """Call ``set_weights`` of an optimizer with rows that are behind."""
    momentum, centered = source.choose(variants)
    opt = RMSprop(0.1, momentum=0.9 * momentum, centered=centered, weight_decay=0.1 * source.flag())
    variables = [np.ones((4, 2), "f4"), np.ones((2, 3)), np.ones((), "f4")][: source.integer(0, 3)]
    opt.build(variables)
    for var in variables[:2]:
        opt.apply_gradients([(IndexedSlices(np.ones((1, var.shape[1]), var.dtype), [1]), var)])
        opt.apply_gradients([(IndexedSlices(np.ones((1, var.shape[1]), var.dtype), [0]), var)])
    if source.rarely():
        opt.add_weight("total", (2,), source.choose(["f4", "i4", "?"]))
    for _ in range(source.integer(1, 3)):
        given = [some_weight(source, array) for array in opt.get_weights()]
        if source.rarely():
            given = source.choose([given[1:], [*given, 1.0], given[:1], None, 5, iter(given), opt.weights[::-1]])

        def call(given=given):
            with numerics(source):
                opt.set_weights(given)

        is_refused(call, lambda: state_of(opt, variables), REFUSALS)
        opt.get_weights()


def some_weight(source, array):
    if not source.rarely(4):
        return array
    if array.ndim == 0 and source.flag():
        return source.choose([source.any_integer(), source.number(), np.uint64(2**63), "5", True, 2**70, None, 2.5])
    dtype = source.dtype() if source.flag() else array.dtype
    return source.array(source.shape() if source.rarely(4) else array.shape, dtype)


# Config


def config(source):
    """Call ``from_config`` with a config some parts of which were replaced."""
    made = {
        name: source.choose(VALUES[name]) if name in VALUES and source.rarely(3) else value
        for name, value in RMSprop().get_config().items()
    }
    made["learning_rate"] = schedule_config(source) if source.flag() else made["learning_rate"]
    for _ in range(source.integer(0, 3)):
        name = source.choose((*made, "lr", *WORDS)) if source.rarely() else source.choose(made or [""])
        made[name] = json_value(source, 3)
    given = json_value(source, 3) if source.rarely(24) else made
    opts = []
    with little_memory():
        refused = is_refused(lambda: opts.append(RMSprop.from_config(given)), lambda: None, (TypeError, ValueError))
    if not refused:
        opt = opts[0]
        text = json.dumps(opt.get_config())
        assert json.dumps(RMSprop.from_config(json.loads(text)).get_config()) == text
        take_a_step(source, opt)


VALUES = {
    "rho": [0.0, 1.0, 0.5],
    "momentum": [0.0, 0.9],
    "epsilon": [None, 0.0],
    "centered": [True],
    "sparse_update": ["lazy"],
    "epsilon_in_sqrt": [True, False],
    "clipvalue": [1.0],
    "clipnorm": [1.0],
    "decay": [0.1],
}


def json_value(source, depth):
    kind = source.integer(0, 8 if depth else 6)
    if kind == 0:
        return source.choose([None, True, False])
    if kind == 1:
        return source.any_integer()
    if kind in (2, 3):
        return source.number()
    if kind == 4:
        return source.choose(WORDS)
    if kind == 5:
        return source.choose([10**400, -(10**400), "5", "1e400", [], {}])
    if kind == 6:
        return schedule_config(source) if depth else 0.5
    if kind == 7:
        return [json_value(source, depth - 1) for _ in range(source.length(4))]
    return {source.choose(WORDS): json_value(source, depth - 1) for _ in range(source.length(3))}


def schedule_config(source):
    schedule = source.choose(all_schedules.ALL)
    made = {"class_name": type(schedule).__name__, "config": schedule.get_config()}
    for _ in range(source.integer(0, 3)):
        made["config"][source.choose(made["config"])] = json_value(source, 1)
    if source.rarely():
        made[source.choose(["class_name", "config", "function"])] = json_value(source, 1)
    if source.rarely(16):
        del made[source.choose(made)]
    return made


def take_a_step(source, opt):
    """Take a step, which is refused if the schedule gives no valid rate."""
    var = np.ones(3)
    opt.iterations = source.choose([0, 1, 12, 10**6, 2**40])
    is_refused(lambda: opt.apply_gradients([(np.ones(3), var)]), lambda: state_of(opt, [var]), (TypeError, ValueError))


# Files


@functools.cache
def saved_files():
    """Return files of several kinds of optimizers, with their variables; some rows are behind."""
    one_run = RMSprop(0.1, momentum=0.9), [np.ones((5, 2), "f4")]
    runs = RMSprop(schedules.CosineDecay(0.1, 10), centered=True, weight_decay=0.1), [np.ones((3, 2)), np.ones(())]
    extras = RMSprop(0.1), [np.ones((4, 1))]
    for opt, variables in (one_run, runs):
        for t in range(6):
            grad = IndexedSlices(np.ones((1, 2), variables[0].dtype), [t % 3])
            opt.apply_gradients([(grad, variables[0]), *((np.ones(()), var) for var in variables[1:])])
    extras[0].add_slot(extras[1][0], "average", "ones")
    extras[0].add_weight("total", (2,))
    with tempfile.TemporaryDirectory() as folder:
        return [
            (files_of(opt, variables, Path(folder), include), variables)
            for opt, variables in (one_run, runs, extras)
            for include in (False, True)
        ]


def files_of(opt, variables, folder, include_variables):
    """Return the bytes of a file and of a delta, with a step and a flush between them."""
    opt.save(folder / "base", include_variables=include_variables)
    grad = IndexedSlices(np.ones((1, *variables[0].shape[1:]), variables[0].dtype), [1])
    opt.apply_gradients([(grad, variables[0])])
    opt.flush()
    opt.apply_gradients([(grad, variables[0])])
    opt.save_delta(folder / "delta")
    return [(folder / name).read_bytes() for name in ("base", "delta")]


def load(source):
    """Call ``RMSprop.load`` on files with changed bytes, or with changed tensors and metadata."""
    contents, variables = source.choose(saved_files())
    copies = [var.copy() for var in variables]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("base", "delta")[: source.integer(1, 2)]]
        for path, content in zip(paths, contents, strict=False):
            path.write_bytes(content)
        path = source.choose(paths)
        if source.flag():
            path.write_bytes(mutated(source, path.read_bytes()))
        else:
            checkpoint_files.forge(path, functools.partial(forge, source))
        loaded = []
        with little_memory():
            refused = is_refused(
                lambda: loaded.append(RMSprop.load(paths, copies)),
                lambda: [var.tobytes() for var in copies],
                (ValueError, TypeError, OSError),
            )
    if not refused:
        use(source, loaded[0], copies)


def use(source, opt, variables):
    """Step and read with an optimizer whose file was accepted."""
    for var in variables:
        rows = [0, 1] if var.ndim else None
        grad = np.ones(()) if rows is None else IndexedSlices(np.ones((2, *var.shape[1:]), var.dtype), rows)
        for call in (
            lambda var=var, rows=rows: opt.gather(var, rows),
            lambda var=var, grad=grad: opt.apply_gradients([(grad, var)]),
            opt.flush,
            opt.get_weights,
        ):
            is_refused(call, lambda: state_of(opt, variables), (TypeError, ValueError))
    check_marks(opt)


def mutated(source, content):
    changed = bytearray(content)
    for _ in range(source.integer(0, 4)):
        place = source.integer(0, max(len(changed) - 1, 0))
        kind = source.integer(0, 5)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place:place] = bytes([source.integer(0, 255)]) * source.integer(1, 9)
        elif changed:
            changed[place] = source.integer(0, 255)
    return bytes(changed)


def forge(source, tensors, metadata):
    """Change the tensors and metadata of a file, as a program would that knows the format."""
    for _ in range(source.integer(1, 3)):
        if source.flag():
            forge_tensor(source, tensors)
        else:
            forge_metadata(source, metadata)


SPECIAL = *(f"variables.0.{name}" for name in ("rms", "clocks", "runs", "rows", "flush.0", "value")), "weights.x", "x"


def forge_tensor(source, tensors):
    name = source.choose(sorted(tensors) or ["none"])
    tensor = tensors.get(name, np.zeros(3))
    how = source.integer(0, 5)
    if how == 0:
        tensors.pop(name, None)
    elif how == 1:
        tensors[source.choose(SPECIAL)] = tensor
    elif how == 2:
        tensors[name] = tensor.astype(source.choose(["f4", "f8", "i4", "i8", "u1", "f2", "?"]))
    elif how == 3:
        tensors[name] = np.resize(tensor, source.shape())
    elif tensor.size:
        changed = tensor.copy()
        place = source.integer(0, tensor.size - 1)
        with contextlib.suppress(OverflowError, ValueError):
            changed.reshape(-1)[place] = source.any_integer() if tensor.dtype.kind in "iu" else source.number()
        tensors[name] = changed


def forge_metadata(source, metadata):
    key = source.choose(sorted(metadata) or ["config"])
    how = source.integer(0, 5)
    if how == 0:
        metadata.pop(key, None)
    elif how == 1:
        metadata[key] = source.choose(["", "{", "[" * 100_000, "1e999", "0x10", "-1", "1_0", "9" * 5000, "NaN", "null"])
    elif how == 2:
        metadata[key] = json.dumps(json_value(source, 2))
    else:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            metadata[key] = json.dumps(json_with_a_change(source, json.loads(metadata[key])))


def json_with_a_change(source, value):
    """Return a JSON value with one of its leaves replaced or removed."""
    if isinstance(value, (list, dict)) and value and not source.rarely():
        key = source.choose(value if isinstance(value, dict) else range(len(value)))
        if source.rarely():
            del value[key]
        else:
            value[key] = json_with_a_change(source, value[key])
        return value
    return json_value(source, 1)


def quiet(target):
    """Return a target that runs without warnings about its own unusual numbers."""

    def run(source, **options):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            target(source, **options)

    return run


TARGETS = {target.__name__: quiet(target) for target in (gradients, weights, config, load)}
