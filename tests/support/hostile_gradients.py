"""Calls of apply_gradients with gradients and variables that are nearly right."""

from __future__ import annotations

import contextlib

import numpy as np
import scipy.sparse
from hostile_source import REFUSALS, check_marks, is_refused, numerics
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct, schedules

FORMATS = ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")


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
    kind = source.integer(0, 8)
    if kind < 2 or not shape:
        values = source.array(shape, dtype)
        return source.choose([values, values.tolist(), None]) if source.rarely() else values
    if kind == 2 and not dtype.hasobject:
        return view(source, arena, shape, dtype)
    if kind < 5:
        return slices(source, arena, shape, dtype)
    if kind == 8:
        return product(source, shape, dtype)
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


def product(source, shape, dtype):
    """Return a product, sometimes with arrays that were changed behind its back."""
    n, examples = source.length(6), source.integer(1, 4)
    values = source.array((examples, *shape[1:]), dtype)
    weights = None if source.flag() else source.array((n,), dtype)
    indices = np.array(row_numbers(source, n, shape[0]), np.int64)
    sources = np.array([source.integer(0, examples - 1 + source.rarely(32)) for _ in range(n)], np.int64)
    made = SparseProduct.from_entries(values, source.arranged(indices), source.arranged(sources), weights)
    target = source.choose([made.sources, made.indices])
    if source.rarely(8) and target.size and target.flags.writeable:
        target[source.integer(0, target.size - 1)] = source.choose([-1, 7, 2**31 - 1])
    if source.rarely(16):
        with contextlib.suppress(AttributeError, ValueError):
            target = source.choose([made.sources, made.indices, made.values, made.weights])
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
    if isinstance(grad, IndexedSlices | SparseProduct):
        touched[grad.indices.astype(np.int64)] = True
    elif not scipy.sparse.issparse(grad):
        touched[...] = True
    elif var.ndim == 1:
        touched[grad.tocoo().coords[int(np.argmax(grad.shape))].astype(np.int64)] = True  # no indices may be floats
    else:
        flat = grad if grad.ndim == 2 else grad.reshape((len(var), -1) if var.size else (len(var), 0))
        touched[:] = np.diff(flat.tocsr().indptr) > 0
    return touched
