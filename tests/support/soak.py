"""Take random steps of all variants for a long time, compare them with the dense algorithm, and watch the memory.

``python tests/soak.py --rows 10_000_000`` takes a few minutes and prints one line of JSON. It fails where the results
leave the dense ones, or the memory grows. The same seed takes the same steps.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from reference import Reference, densified
from tqdm import tqdm

from numba_rmsprop import IndexedSlices, RMSprop

TABLE, VECTOR = (400, 8), (30,)
MOST_ROWS = 4_000  # of a step: enough for a parallel launch, and for many duplicates
EPSILON = 1e-3
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
MOST_GROWTH_MB = 6.0
MOST_FILES = 5  # a file and its deltas
WARM_UP = 0.2  # of the rows: by then everything has been compiled and the allocator has settled
KINDS = ("rows", "csr", "coo", "dense")


class MismatchError(Exception):
    pass


def resident_mb():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


class Trainee:
    """Optimizer with a table and a vector, and beside it the dense algorithm."""

    def __init__(self, dtype, momentum, centered, rng):
        self.rng = rng
        self.dtype = np.dtype(dtype)
        self.with_momentum, self.centered = momentum, centered
        self.weight_decay = float(rng.choice([0.0, 0.1]))
        self.vars = [rng.standard_normal(shape).astype(dtype) for shape in (TABLE, VECTOR)]
        self.numbers = {"lr": 0.01, "rho": 0.9, "momentum": 0.9 if momentum else 0.0}
        self.opt = RMSprop(
            0.01,
            momentum=self.numbers["momentum"],
            epsilon=EPSILON,
            centered=centered,
            weight_decay=self.weight_decay,
        )
        self.opt.build(self.vars)
        self.reference = Reference(self.vars, momentum=momentum, centered=centered)
        self.worst = 0.0
        self.files = []

    def change_numbers(self):
        self.numbers["lr"] = self.opt.learning_rate = float(self.rng.choice([0.003, 0.01, 0.03]))
        self.numbers["rho"] = self.opt.rho = float(self.rng.choice([0.8, 0.9, 0.99]))
        if self.with_momentum:
            self.numbers["momentum"] = self.opt.momentum = float(self.rng.choice([0.3, 0.6, 0.9]))

    def step(self, kind, n):
        """Take one step with ``n`` rows, and return how many its gradient had."""
        grad, dense, rows = self.gradient(kind, n)
        vector = self.rng.standard_normal(VECTOR).astype(self.dtype)
        self.opt.apply_gradients([(grad, self.vars[0]), (vector, self.vars[1])])
        self.reference.step([dense, vector], epsilon=EPSILON, weight_decay=self.weight_decay, **self.numbers)
        return rows

    def gradient(self, kind, n):
        """Return a gradient as it is passed and zero-filled, and how many rows it has."""
        if kind == "dense":
            dense = self.rng.standard_normal(TABLE).astype(self.dtype)
            return dense, dense, len(dense)
        # from a part of the table, so that the other rows fall behind; one row of it is hot
        rows = self.rng.integers(0, self.rng.integers(1, TABLE[0], endpoint=True), n)
        rows[: n // 10] = rows[:1]
        if kind == "rows":
            values = self.rng.standard_normal((n, TABLE[1])).astype(self.dtype)
            return IndexedSlices(values, rows), densified(values, rows, TABLE), n
        rows = np.repeat(rows, 3)
        columns, values = self.rng.integers(0, TABLE[1], 3 * n), self.rng.standard_normal(3 * n).astype(self.dtype)
        dense = densified(values, (rows, columns), TABLE)
        grad = scipy.sparse.coo_array((values, (rows, columns)), TABLE)
        return (grad.tocsr() if kind == "csr" else grad), dense, len(np.unique(rows))

    def gather(self, n):
        """Compare some rows with the dense ones, and return how many."""
        indices = self.rng.integers(0, TABLE[0], n)
        rows = self.opt.gather(self.vars[0], indices)
        self.compare("gathered rows", rows, self.reference.vars[0][indices], self.reference.largest["vars"][0])
        return n

    def round_trip(self):
        weights = self.opt.get_weights()
        for array in self.opt.weights[1:]:
            array[...] = -1
        self.opt.set_weights(weights)

    def save_and_load(self, folder):
        """Go on from a file, or from one and its deltas, after the variables were lost."""
        if len(self.files) < MOST_FILES and self.files:
            self.files.append(folder / f"{len(self.files)}")
            self.opt.save_delta(self.files[-1])
        else:
            folder.mkdir(exist_ok=True)
            self.files = [folder / "0"]
            self.opt.save(self.files[0], include_variables=True)
        for var in self.vars:
            var.fill(np.nan)
        self.opt = RMSprop.load(self.files, self.vars)

    def check(self):
        self.opt.flush()
        for i, var in enumerate(self.vars):
            self.compare(f"variable {i}", var, self.reference.vars[i], self.reference.largest["vars"][i])
            for slot, name in (("rms", "rms"), ("momentum", "mom"), ("mg", "mg")):
                if slot in self.opt.get_slot_names():
                    largest = 0.0 if name == "rms" else self.reference.largest[name][i]
                    actual, expected = self.opt.get_slot(var, slot), getattr(self.reference, name)[i]
                    self.compare(f"{slot} of variable {i}", actual, expected, largest)

    def compare(self, what, actual, expected, largest):
        error = float(np.max(np.abs(actual - expected)) / max(largest, np.max(np.abs(expected))))
        self.worst = max(self.worst, error)
        if not error <= TOLERANCE[self.dtype.name]:
            raise MismatchError(
                f"{what} ({self.dtype}, momentum={self.with_momentum}, centered={self.centered}) is off by {error:.2g} "
                f"of its largest element after {self.opt.iterations} steps"
            )


def mixed_steps(trainees, rng, folder):
    """Yield, after every two steps, how many rows were touched or read; at first, all once with every trainee."""
    opening = [*itertools.product(trainees, KINDS, (MOST_ROWS, 100))]
    for turn in itertools.count():
        first = turn < len(opening)
        if first:
            trainee, kind, n = opening[turn]
        else:
            trainee, kind = trainees[rng.integers(len(trainees))], rng.choice(KINDS, p=[0.5, 0.2, 0.2, 0.1])
            n = int(rng.integers(kind != "rows", rng.choice([10, 100, MOST_ROWS, MOST_ROWS])))
        rows = trainee.step("rows", 5)
        if first or rng.random() < 0.1:
            trainee.change_numbers()
        rows += trainee.step(kind, n)
        if first or rng.random() < 0.2:
            rows += trainee.gather(max(1, n // 2))
        if first or rng.random() < 0.05:
            trainee.opt.flush()
        if first or rng.random() < 0.02:
            trainee.round_trip()
        if turn % 2 if first else rng.random() < 0.01:
            trainee.save_and_load(folder / str(trainees.index(trainee)))
        if first or rng.random() < 0.05:
            trainee.check()
        yield rows


def soak(most_rows, seed, minutes, folder):
    rng = np.random.default_rng(seed)
    variants = itertools.product((np.float32, np.float64), (False, True), (False, True))
    trainees = [Trainee(*variant, rng) for variant in variants]
    opening = len(trainees) * len(KINDS) * 2
    start, rows, warm = time.monotonic(), 0, None
    with tqdm(total=most_rows, unit="rows", unit_scale=True, mininterval=1) as bar:
        for turn, n in enumerate(mixed_steps(trainees, rng, folder), start=1):
            rows += n
            bar.update(n)
            if warm is None and turn >= opening and rows >= WARM_UP * most_rows:
                warm = resident_mb()
            if warm is not None and (rows >= most_rows or time.monotonic() - start > 60 * minutes):
                break
    for trainee in trainees:
        trainee.check()
    worst = {name: max(trainee.worst for trainee in trainees if trainee.dtype.name == name) for name in TOLERANCE}
    return {
        "rows": rows,
        "steps": 2 * turn,
        "worst_relative_error": worst,
        "rss_warm_mb": round(warm, 2),
        "rss_end_mb": round(resident_mb(), 2),
        "seconds": round(time.monotonic() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many rows to touch or read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="stop then, if there are rows left")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = soak(options.rows, options.seed, options.minutes, Path(folder))
        except MismatchError as error:
            sys.exit(f"{error} (seed {options.seed})")
    print(json.dumps(result))
    growth = result["rss_end_mb"] - result["rss_warm_mb"]
    if growth > MOST_GROWTH_MB:
        sys.exit(f"memory grew by {growth:.1f} MB after the warm-up; expected at most {MOST_GROWTH_MB}")


if __name__ == "__main__":
    main()
