"""Calls of RMSprop.load with files that were changed."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from pathlib import Path

import checkpoint_files
import numpy as np
from hostile_configs import json_value
from hostile_source import check_marks, is_refused, little_memory
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop, schedules


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
