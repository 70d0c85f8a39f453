"""An optimizer's state in a file: all of it, or what has changed since the file before.

Arrays are named ``variables.{i}.{slot}``, ``variables.{i}.custom.{slot}``, ``variables.{i}.value`` and
``weights.{name}``; ``variables.{i}.clocks`` and ``variables.{i}.runs`` say how far behind the rows are. In a delta they
may hold some rows only, those that ``variables.{i}.rows`` lists, and a variable may have more rows than in the file
before. ``variables.{i}.flush.{j}`` are the runs by which a flush went that loading has to repeat.
``variables.{i}.sum.{what}`` is the sum of gradients that wait for a step, see :mod:`numba_rmsprop.gradients.sums`. The
rest stands in the metadata, as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray, describe
from ..gradients.sums import DENSE, ENTRIES, ROWS, Sum
from ..runtime.caller_warnings import warn
from ..runtime.whole_calls import check_undisturbed, has_changed, in_turn, mark, undisturbed
from ..state.any_optimizer import AnyOptimizer
from ..state.changed_rows import Changes, Saved
from ..state.known_variables import Accumulation
from ..state.slots import Slots
from .atomic_file import as_path
from .checkpoint_validation import Contents, check_contents, in_file, in_order, parse
from .safetensors_file import (
    DamagedCheckpointError,
    SomeRows,
    Tensor,
    checksum,
    map_tensors,
    write_tensors,
)

FORMAT = "numba_rmsprop"
FORMAT_VERSION = 1

Optimizer = TypeVar("Optimizer", bound=AnyOptimizer)
AnyPath: TypeAlias = str | os.PathLike[str]


def save(opt: AnyOptimizer, path: AnyPath, *, include_variables: bool, run: str | None = None) -> None:
    """Write a file that needs no other, of the run given or the one that the optimizer's last file was of."""
    in_turn(undisturbed, _write, opt, path, None, include_variables, run)


def save_delta(opt: AnyOptimizer, path: AnyPath) -> None:
    """Write a file that goes on from the last one."""
    in_turn(undisturbed, _write_delta, opt, path)


def _write_delta(opt: AnyOptimizer, path: AnyPath) -> None:
    before = opt.known.saved
    if before is None:
        raise ValueError("save_delta: expected a file to go on from, got none; call opt.save first")
    if os.path.realpath(as_path(path)) in before.paths:
        raise ValueError(f"{path}: expected a new file, got one that the delta would go on from")
    _write(opt, path, before, before.include_variables, before.run)


def load(
    cls: type[Optimizer],
    paths: Sequence[AnyPath],
    variables: Sequence[FloatArray] | Mapping[str, FloatArray],
    custom_objects: Mapping[str, Any] | None,
    slots_folder: AnyPath | None,
) -> Optimizer:
    """Return a new optimizer of class ``cls`` with the state in a file and its deltas."""
    return load_files(cls, [read(path) for path in paths], variables, custom_objects, slots_folder)


def load_files(
    cls: type[Optimizer],
    files: Sequence[Contents],
    variables: Sequence[FloatArray] | Mapping[str, FloatArray],
    custom_objects: Mapping[str, Any] | None,
    slots_folder: AnyPath | None = None,
) -> Optimizer:
    """Return a new optimizer of class ``cls`` with the state in files that :func:`read` has read."""
    if not files:
        raise ValueError("path: expected a file, or a file and its deltas in order, got no path")
    for i, file in enumerate(files):
        follows = files[i - 1].identity if i else ""
        if file.follows != follows:
            expected = f"the delta that was saved after {files[i - 1].path}" if i else "a file of RMSprop.save"
            raise ValueError(f"{file.path}: expected {expected}, got another; pass a file and its deltas in order")
    last = files[-1]
    opt = cls.from_config(last.config, custom_objects)
    opt.slots_folder = slots_folder
    variables = in_order(last, variables)
    check_contents(files, opt, variables)
    _warn_of_others(last, variables)
    opt.build(variables)
    if len(opt.known.slots) != len(variables):
        raise ValueError(f"{last.path}: expected {len(variables)} different variables, got one of them twice")
    for file in files:
        for i in range(len(file.variables)):
            _apply(file, i, opt.known.slots[i])
    for slots in opt.known.slots:
        slots.changes = Changes.since(slots.clocks, slots.floor, slots.steps)
    opt.known.accumulation = Accumulation(last.accumulated_calls, _sums(last, opt))
    opt.take_weights({name: last.tensors[f"weights.{name}"] for name in last.weights})
    opt.known.iterations = last.iterations
    opt.known.claim_none(last.variables)
    paths = tuple(os.path.realpath(file.path) for file in files)
    opt.known.saved = Saved(last.identity, last.include_variables, paths, last.run)
    return opt


def read(path: AnyPath) -> Contents:
    """Return what a file says, every byte checked; whether it makes sense is still to be seen.

    Raises
    ------
    DamagedCheckpointError
        If a byte is not as it was written, or it is no checkpoint.
    ValueError
        If a newer version of the library wrote it, or what it says makes no sense.
    """
    tensors, metadata = map_tensors(path, lambda metadata: _check_format(path, metadata))
    return parse(path, tensors, metadata)


def heading(path: AnyPath) -> dict[str, str]:
    """Return the metadata of a file, such as its ``identity`` and what it ``follows``; the header alone is checked."""
    metadata = map_tensors(path)[1]
    _check_format(path, metadata)
    return metadata


def _write(opt: AnyOptimizer, path: AnyPath, before: Saved | None, include_variables: bool, run: str | None) -> None:
    from .. import __version__

    path = as_path(path)
    since = mark()
    changed = [_rows_to_write(slots, before, include_variables) for slots in opt.known.slots]
    weights = opt.weights_in_file(changed)
    tensors: dict[str, Tensor] = {f"weights.{name}": array for name, array in weights.items()}
    identity = secrets.token_hex(16)
    if run is None:
        run = secrets.token_hex(16) if opt.known.saved is None else opt.known.saved.run
    calls, sums = opt.known.accumulation
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": __version__,
        "identity": identity,
        "follows": "" if before is None else before.identity,
        "run": run,
        "config": json.dumps(opt.get_config()),
        "iterations": str(opt.known.iterations),
        "include_variables": json.dumps(include_variables),
        "variables": str(len(opt.known.slots)),
        "weights": json.dumps(list(weights)),
        "accumulated_calls": str(calls),
    }
    for i, (slots, rows) in enumerate(zip(opt.known.slots, changed, strict=True)):
        tensors |= {in_file(i, name): tensor for name, tensor in _tensors(slots, rows, include_variables)}
        if slots in sums:
            tensors |= {in_file(i, name): array for name, array in sums[slots].arrays().items()}
        metadata[f"variables.{i}"] = json.dumps(
            {
                "name": slots.name,
                "since": slots.since,
                "shape": slots.var.shape,
                "dtype": str(slots.var.dtype),
                "steps": slots.steps,
                "floor": slots.floor,
                "custom_slots": list(slots.custom),
                "rho_product": slots.rho_product,
                "flushes": [] if rows is None else [step for step, _ in slots.changes.flushes],
                "checksum": None if include_variables else checksum(slots.var),
            }
        )
    parse(path, tensors, metadata)  # what could not be read again shall be found out now
    saved = Saved(identity, include_variables, (*(before.paths if before else ()), os.path.realpath(path)), run)
    none_yet = [Changes.since(slots.clocks, slots.floor, slots.steps) for slots in opt.known.slots]

    def mark_saved() -> None:
        opt.known.saved = saved
        for slots, changes in zip(opt.known.slots, none_yet, strict=False):
            # Where a signal handler has taken a step since, all rows may have changed.
            slots.changes = Changes() if has_changed(since) else changes
        opt.note_saved()

    write_tensors(path, tensors, metadata, partial(check_undisturbed, since), mark_saved)


def _warn_of_others(file: Contents, variables: Sequence[FloatArray]) -> None:
    """Warn of variables that are not in the file and do not have the values they had when it was saved."""
    wrong = [
        describe(f"variables[{i}]", var)
        for i, (entry, var) in enumerate(zip(file.variables, variables, strict=True))
        if entry["checksum"] is not None and entry["checksum"] != checksum(var)
    ]
    if wrong:
        warn(
            f"{file.path} holds no variables, and these do not have the values that they had when it was saved: "
            f"{', '.join(wrong)}; load those first, or save with include_variables=True, so that load writes them",
        )


def _rows_to_write(slots: Slots, before: Saved | None, include_variables: bool) -> NDArray[np.int64] | None:
    """Return the rows of a variable that a file after ``before`` must hold; None for all."""
    slots.check_process()
    slots.refuse_moved()
    changes = slots.changes
    # To repeat a flush is to move the values; those that are not in the file are the user's, who saved them moved.
    values_moved = bool(changes.flushes) and slots.values_fall_behind and not include_variables
    needs_all = before is None or changes.everything or slots.small or slots.var.ndim == 0 or values_moved
    return None if needs_all else changes.rows(slots.clocks)


def _tensors(slots: Slots, rows: NDArray[np.int64] | None, include_variables: bool) -> Iterator[tuple[str, Tensor]]:
    """Return what a file holds of a variable, all rows or those given."""
    by_row = {name: array for name, array in slots.arrays.items() if name not in slots.custom}
    if include_variables:
        by_row["value"] = slots.var
    if slots.clocks is not None:
        by_row["clocks"] = slots.clocks
    if rows is not None:
        yield "rows", rows
        for j, (_, runs) in enumerate(slots.changes.flushes):
            yield f"flush.{j}", runs
    for name, array in by_row.items():
        yield name, array if rows is None else SomeRows(array, rows)
    for name, array in slots.custom.items():
        yield f"custom.{name}", array
    yield "runs", slots.history.runs


def _sums(file: Contents, opt: AnyOptimizer) -> dict[Slots, Sum]:
    """Return the sums of gradients in a file."""
    found = {}
    for i, slots in enumerate(opt.known.slots):
        names = (DENSE, *ROWS, *ENTRIES)
        arrays = {name: file.tensors[in_file(i, name)] for name in names if in_file(i, name) in file.tensors}
        if arrays:
            found[slots] = Sum.of_arrays(arrays)
    return found


def _check_format(path: AnyPath, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DamagedCheckpointError(f"{path}: expected format {FORMAT}, got {metadata.get('format')}")
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        advice = "; a newer version of the library wrote it" if version.isdecimal() else ""
        raise ValueError(f"{path}: expected format version {FORMAT_VERSION}, got {version}{advice}")


def _apply(file: Contents, i: int, slots: Slots) -> None:
    """Bring a variable and its slots to the state of a file, from that of the file before it."""
    entry, tensors = file.variables[i], file.tensors
    targets = {name: array for name, array in slots.arrays.items() if name not in slots.custom}
    if file.include_variables:
        targets["value"] = slots.var
    everything = slice(*entry["shape"][:1]) if entry["shape"] else ...  # later files may have more rows
    rows: Any = everything
    if in_file(i, "rows") in tensors:
        rows = tensors[in_file(i, "rows")]
        for j, step in enumerate(entry["flushes"]):
            slots.restore(slots.make_clocks(), step, slots.floor, tensors[in_file(i, f"flush.{j}")])
            slots.flush()
    for name, array in targets.items():
        array[rows] = tensors[in_file(i, name)]
    if in_file(i, "clocks") in tensors:
        slots.make_clocks()[rows] = tensors[in_file(i, "clocks")]
    elif rows is everything:
        slots.clocks = None
    slots.custom = {name: np.array(tensors[in_file(i, f"custom.{name}")]) for name in entry["custom_slots"]}
    slots.product[()] = entry["rho_product"]
    slots.restore(slots.clocks, entry["steps"], entry["floor"], tensors[in_file(i, "runs")])
