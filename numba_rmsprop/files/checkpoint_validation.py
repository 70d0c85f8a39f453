"""Checks of what a checkpoint says, before it is used: a checksum does not prove good intentions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray, describe
from ..gradients.sums import DENSE, ENTRIES, ROWS
from ..kernels.rule import Rule
from ..runtime.caller_warnings import warn
from ..settings.variable_options import AUTOMATIC
from ..state.any_optimizer import AnyOptimizer
from ..state.changed_rows import MAX_FLUSHES
from ..state.skipped_steps import MAX_RUNS
from ..state.slot_arrays import kind_of
from ..state.slots import CLOCK_LIMIT
from ..state.variable_names import is_text

MAX_AXES = 64
"""As many as NumPy allows."""

MAX_TEXT = 1 << 20
"""JSON takes up to thirty times its size once it is parsed; so no single text may be longer than this."""

ENTRY = {"name": str, "shape": list, "dtype": str, "steps": int, "floor": int, "custom_slots": list, "flushes": list}
"""Entries of a variable in a file, and their types."""

OPTIONAL: dict[str, Any] = {"since": None, "checksum": None, "rho_product": 1.0}
"""Entries that not all files have, and what stands for them."""


@dataclass(frozen=True)
class Contents:
    """The contents of a file: arrays mapped from it, and its metadata."""

    path: str | os.PathLike[str]
    tensors: dict[str, NDArray[Any]]
    identity: str
    follows: str
    run: str
    config: dict[str, Any]
    iterations: int
    accumulated_calls: int
    include_variables: bool
    variables: list[dict[str, Any]]
    weights: list[str]


def in_file(i: int, name: str) -> str:
    """Return what an array of the ``i``-th variable is called in a file."""
    return f"variables.{i}.{name}"


def parse(path: str | os.PathLike[str], tensors: dict[str, Any], metadata: dict[str, str]) -> Contents:
    """Return the contents of a file whose metadata has the right form.

    Raises
    ------
    ValueError
        If something is missing, or of another form.
    """

    def text(key: str) -> str:
        if key not in metadata:
            raise ValueError(f"{path}: expected {key!r} in the metadata, got {sorted(metadata)}")
        if len(metadata[key]) > MAX_TEXT:
            raise ValueError(f"{path}: expected at most {MAX_TEXT} characters of {key!r}, got {len(metadata[key])}")
        return metadata[key]

    def value(key: str, kind: type) -> Any:
        written = text(key)
        try:
            found = json.loads(written)
        except (ValueError, RecursionError) as error:  # a number may have too many digits
            raise ValueError(f"{path}: expected JSON for {key!r} in the metadata; {error}") from error
        if type(found) is not kind:
            raise ValueError(f"{path}: expected {kind.__name__} for {key!r} in the metadata, got {found!r:.100}")
        return found

    count, iterations = value("variables", int), value("iterations", int)
    if not (0 <= iterations < 2**63 and 0 <= count <= len(metadata)):
        raise ValueError(f"{path}: it cannot be that there are {iterations} iterations and {count} variables")
    variables = []
    for i in range(count):
        entry = value(f"variables.{i}", dict)
        wrong = {key: entry.get(key) for key, kind in ENTRY.items() if type(entry.get(key)) is not kind}
        if wrong:
            raise ValueError(f"{path}: expected {sorted(ENTRY)} of variables[{i}], got {wrong!r:.100}")
        if not all(is_text(name) and in_file(i, f"custom.{name}") in tensors for name in entry["custom_slots"]):
            raise ValueError(f"{path}: expected names as custom slots, got {entry['custom_slots']!a:.100}")
        if len(entry["shape"]) > MAX_AXES or len(entry["flushes"]) > MAX_FLUSHES:
            raise ValueError(f"{path}: expected at most {MAX_AXES} axes and {MAX_FLUSHES} flushes of variables[{i}]")
        if not is_text(entry["name"]) or type(entry.get("since", 0)) is not int:
            raise ValueError(f"{path}: expected a name and a number of steps of variables[{i}], got {entry!a:.100}")
        variables.append(OPTIONAL | {key: entry[key] for key in (*ENTRY, *OPTIONAL) if key in entry})
    if len({entry["name"] for entry in variables}) < count:
        raise ValueError(f"{path}: expected different names of variables, got {[e['name'] for e in variables]!a:.100}")
    weights = value("weights", list)
    for name in weights:
        if not is_text(name) or f"weights.{name}" not in tensors:
            raise ValueError(f"{path}: expected an array 'weights.{name}', got {sorted(tensors)}")
    return Contents(
        path=path,
        tensors=tensors,
        identity=text("identity"),
        follows=text("follows"),
        run=metadata.get("run", ""),
        config=value("config", dict),
        iterations=iterations,
        accumulated_calls=value("accumulated_calls", int) if "accumulated_calls" in metadata else 0,
        include_variables=value("include_variables", bool),
        variables=variables,
        weights=weights,
    )


def in_order(file: Contents, variables: Sequence[FloatArray] | Mapping[str, FloatArray]) -> list[FloatArray]:
    """Return variables in the order of a file: by their names, or as they are where the file has none.

    Raises
    ------
    ValueError
        If the file has names and the variables have none, or others.
    """
    names = [entry["name"] for entry in file.variables]
    if isinstance(variables, np.ndarray):
        variables = [variables]
    if not isinstance(variables, Mapping):
        called = [name for name in names if not AUTOMATIC.fullmatch(name)]
        if called:
            raise ValueError(
                f"{file.path}: the variables in it have names; expected them by name, as in "
                f"{{{called[0]!r}: array}}, got a sequence of {len(variables)}; the names are {names!r:.500}"
            )
        _warn_of_order(file)
        return list(variables)
    known = set(names)
    missing = [name for name in names if name not in variables]
    others = [name for name in variables if name not in known]
    if missing or others:
        raise ValueError(
            f"{file.path}: expected variables by the names in it, {names!r:.500}; missing: {missing!r:.500}, "
            f"and not in it: {others!r:.500}. Variables without a name go by 'variable 0' and so on"
        )
    return [variables[name] for name in names]


def _warn_of_order(file: Contents) -> None:
    """Warn where two variables of one kind came at different steps: no order of a call tells which is which."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in file.variables:
        other = first.setdefault((*entry["shape"], entry["dtype"]), entry)
        if None not in (entry["since"], other["since"]) and entry["since"] != other["since"]:
            warn(
                f"{file.path}: {other['name']} and {entry['name']} ({entry['dtype']}, shape {tuple(entry['shape'])}) "
                f"came after {other['since']} and {entry['since']} steps, and only that order tells them apart. Name "
                "them: opt.build({'users': users, 'items': items}) before saving, and load by names"
            )
            return


def check_contents(files: Sequence[Contents], opt: AnyOptimizer, variables: Sequence[FloatArray]) -> None:
    """Raise ValueError unless a file and its deltas fit an optimizer, and these variables.

    A kernel trusts clocks, runs and rows, so they must be such as a training run brings about.
    """
    expected = len(files[-1].variables)
    if len(variables) != expected:
        raise ValueError(f"{files[-1].path}: expected {expected} variables, got {len(variables)}")
    before: list[_Variable] = []
    limit = opt.gradient_accumulation_steps or 1
    for file in files:
        if not 0 <= file.accumulated_calls < limit:
            raise ValueError(
                f"{file.path}: expected fewer calls that wait for a step than gradient_accumulation_steps={limit}, got "
                f"{file.accumulated_calls}; load it with as many as it was saved with"
            )
        if not len(before) <= len(file.variables) <= expected:
            raise ValueError(f"{file.path}: has {len(file.variables)} variables, and other files {expected}")
        if file.include_variables != files[0].include_variables:
            raise ValueError(f"{file.path}: expected variables in all files, or in none")
        last = file is files[-1]
        found = [
            _Variable(file, i, var if last else _before_it_grew(file, i, var))
            for i, var in enumerate(variables[: len(file.variables)])
        ]
        for i, own in enumerate(found):
            own.check(opt, before[i] if i < len(before) else None)
        before = found


def _before_it_grew(file: Contents, i: int, var: FloatArray) -> FloatArray:
    """Return a stand-in for a variable with as many rows as an earlier file has of it, if these are fewer."""
    shape, now = file.variables[i]["shape"], np.shape(var)
    if now and shape and shape[1:] == list(now[1:]) and type(shape[0]) is int and 0 <= shape[0] < now[0]:
        return np.broadcast_to(np.zeros((), var.dtype), shape)
    return var


def _moves_values(opt: AnyOptimizer, dtype: np.dtype[Any], runs: NDArray[np.float64], step: int) -> bool:
    """Return whether skipped steps with the numbers of some runs move the value of a row whose slots are 0."""
    own = opt.new_slots(np.ones((1, 1), computed_in(dtype)), "a row")
    own.restore(np.zeros(1, np.int32), step, int(runs[0, 0]), runs)
    own.flush()
    return bool(own.var[0, 0] != 1)


class _Variable:
    """One variable in a file."""

    def __init__(self, file: Contents, i: int, var: FloatArray) -> None:
        self.file = file
        self.i = i
        self.var = var
        self.entry = file.variables[i]
        if list(np.shape(var)) != self.entry["shape"] or str(getattr(var, "dtype", None)) != self.entry["dtype"]:
            raise ValueError(
                f"{file.path}: expected variables[{i}] ({self.entry['dtype']}, shape {tuple(self.entry['shape'])}), "
                f"got {describe(f'variables[{i}]', np.asarray(var))}; to go on in another dtype, load into an array "
                "of this one and call opt.rebind(array, array.astype(dtype))"
            )

    def has(self, name: str) -> bool:
        return in_file(self.i, name) in self.file.tensors

    def tensor(self, name: str, dtype: Any, shape: tuple[int, ...] | None) -> NDArray[Any]:
        """Return an array, which must be there, of this dtype and shape."""
        full = in_file(self.i, name)
        found = self.file.tensors.get(full)
        if found is None:
            raise ValueError(f"{self.file.path}: expected an array {full!r}, got {sorted(self.file.tensors)}")
        if (dtype is not None and found.dtype != dtype) or (shape is not None and found.shape != shape):
            raise ValueError(
                f"{self.file.path}: expected {full!r} of shape {shape} ({np.dtype(dtype)}), "
                f"got {found.shape} ({found.dtype})"
            )
        return found

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{self.file.path}: variables[{self.i}] has {what}, which no training run brings about")

    def check(self, opt: AnyOptimizer, before: _Variable | None) -> None:
        """Check all that the file holds of the variable; ``before`` is what the file before it says, if it does."""
        steps, floor, exact = self.entry["steps"], self.entry["floor"], opt.exact
        if not 0 <= floor <= steps < CLOCK_LIMIT:
            self.refuse(f"{steps} steps and floor {floor}")
        shape = self.var.shape
        if before is not None and len(before.var.shape) and len(before.var) > len(self.var):
            self.refuse(f"fewer rows than in {before.file.path}")
        if self.has("rows"):
            shape = (self._check_rows(opt, before), *shape[1:])
        for slot in opt.slot_names:
            kind = kind_of(slot, opt.rule, self.var.shape, self.var.dtype, opt.form)
            self.tensor(slot, kind[1], (*shape[: self.var.ndim and 1], *kind[0][1:]))
        if self.file.include_variables:
            self.tensor("value", self.var.dtype, shape)
        if self.has("clocks"):
            if not self.var.ndim:
                self.refuse("clocks without rows")
            clocks = self.tensor("clocks", np.int32, shape[:1])
            if clocks.size and not (clocks.min() >= 0 and clocks.max() <= steps):
                self.refuse(f"clocks from {clocks.min()} to {clocks.max()} after {steps} steps")
        self._check_runs(opt.rule, "runs", floor, steps, needed=exact and floor < steps)
        product = self.entry["rho_product"]
        if type(product) is not float or not 0 <= product <= 1 or (product < 1 and not opt.corrects_bias):
            self.refuse(f"a product of rho of {product!r:.100}")
        self._check_sum()
        if set(self.entry["custom_slots"]) & set(opt.slot_names):
            self.refuse(f"added slots {self.entry['custom_slots']}")

    def _check_sum(self) -> None:
        """Check the sum of gradients that wait for a step."""
        dtype, shape = computed_in(self.var.dtype), self.var.shape
        if self.has(DENSE):
            self.tensor(DENSE, dtype, shape)
        for (places, values), count, width in ((ROWS, shape[:1], math.prod(shape[1:])), (ENTRIES, (self.var.size,), 1)):
            if self.has(places):
                found = self.tensor(places, np.int64, None)
                if not shape or found.ndim != 1 or len(np.unique(found)) < len(found):
                    self.refuse(f"{places} of shape {found.shape}, or not all different,")
                self.tensor(values, dtype, (len(found), width))
                if len(found) and not (found.min() >= 0 and found.max() < count[0]):
                    self.refuse(f"{places} from {found.min()} to {found.max()}")
        if any(map(self.has, (DENSE, ROWS[0], ENTRIES[0]))) and not self.file.accumulated_calls:
            self.refuse("a sum of gradients of no calls")

    def _check_rows(self, opt: AnyOptimizer, before: _Variable | None) -> int:
        """Check the rows of a delta, and the flushes before them; return how many rows there are."""
        if before is None or self.var.ndim == 0 or before.entry["steps"] > self.entry["steps"]:
            raise ValueError(f"{self.file.path}: expected all rows of variables[{self.i}], got some")
        rows = self.tensor("rows", np.int64, None)
        if rows.ndim != 1 or (
            len(rows) and (rows[0] < 0 or rows[-1] >= len(self.var) or not (rows[1:] > rows[:-1]).all())
        ):
            self.refuse("rows that are not in order, or out of range")
        flushes = self.entry["flushes"]
        floor, earliest = before.entry["floor"], before.entry["steps"]
        for j, step in enumerate(flushes):
            if type(step) is not int or not earliest <= step <= self.entry["steps"]:
                self.refuse(f"flushes at steps {flushes}")
            runs = self._check_runs(opt.rule, f"flush.{j}", floor, step, needed=True)
            if not self.file.include_variables and (opt.drifts or _moves_values(opt, self.var.dtype, runs, step)):
                self.refuse("flushes that move values, without the values")
            floor = earliest = step
        return len(rows)

    def _check_runs(self, rule: Rule, name: str, floor: int, steps: int, *, needed: bool) -> NDArray[np.float64]:
        """Return runs of hyperparameters, which must reach back to the floor where rows may be behind."""
        runs = self.tensor(name, np.float64, None)
        if runs.ndim != 2 or runs.shape[1] != 1 + len(rule.skipped) or len(runs) > MAX_RUNS:
            self.refuse(f"runs of shape {runs.shape}")
        begins = runs[:, 0]
        right = (
            bool(np.isfinite(begins).all())
            and bool((begins[1:] > begins[:-1]).all())
            and bool((begins == np.floor(begins)).all())
            and (not len(runs) or (begins[0] >= 0 and begins[-1] < max(steps, 1)))
            and all(
                bool(((low <= column) & (column <= high)).all())  # which NaN is not
                for column, (low, high) in zip(runs[:, 1:].T, rule.skipped.values(), strict=True)
            )
        )
        if not right or (needed and not (len(runs) and begins[0] <= floor)):
            self.refuse(f"runs {runs[:3].tolist()} before step {steps}, its floor being {floor}")
        return runs
