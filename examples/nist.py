"""NIST's certified problems of nonlinear regression, fitted by RMSprop and by SciPy's curve_fit.

The 27 data sets (https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml, each as a .dat file) come with two starts,
and with the parameters to eleven digits. Put them into a folder and hand it over with --data.

For these, Levenberg-Marquardt is the better tool, as the table shows: it knows how far to go, where RMSprop knows only
which way. They are here since they tell how far a first-order method comes, and whether what it says of itself is true.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from parts.nist_models import MODELS
from scipy.optimize import OptimizeWarning, curve_fit
from tqdm.auto import tqdm

from numba_rmsprop import curve_fit_many, schedules

STEPS = 100_000
OPTIONS = {
    "maxiter": STEPS,
    "learning_rate": schedules.ExponentialDecay(1e-3, STEPS, 1e-6),
    "rho": 0.99,
    "momentum": 0.99,
    "jac": "complex",
    "gtol": 1e-9,
}
"""For all problems. Momentum so near 1 since parameters that depend on each other make long, narrow valleys."""

TO_THE_LAST_DIGIT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "maxfev": 100_000}
"""For curve_fit, whose defaults end it after six or seven digits."""


@dataclass(frozen=True)
class Problem:
    """One data set with its certified values.

    Attributes
    ----------
    starts : ndarray, shape (2, parameters)
    certified : ndarray, shape (parameters,)
    errors : ndarray, shape (parameters,)
        The certified standard errors.
    x : ndarray, shape (points,), or a tuple of two
    y : ndarray, shape (points,)
    """

    starts: NDArray[np.float64]
    certified: NDArray[np.float64]
    errors: NDArray[np.float64]
    x: Any
    y: NDArray[np.float64]


def read_problem(path: Path) -> Problem:
    """Read one of NIST's files: 60 lines of header, then y and x."""
    lines = path.read_text(encoding="ascii").splitlines()
    matches = [re.match(r"\s*b\d+\s*=\s*(.*)", line) for line in lines[40:60]]
    table = np.array([[float(number) for number in match[1].split()] for match in matches if match])
    numbers = np.array([[float(number) for number in line.split()] for line in lines[60:] if line.strip()])
    y, x = numbers[:, 0], tuple(np.ascontiguousarray(column) for column in numbers[:, 1:].T)
    if path.stem == "Nelson":
        y = np.log(y)  # as its header says
    return Problem(table[:, :2].T.copy(), table[:, 2], table[:, 3], x if len(x) > 1 else x[0], y)


def digits(found: NDArray[np.float64], certified: NDArray[np.float64]) -> float:
    """Return how many digits of the worst parameter agree: the negative logarithm of its relative error, 0 to 11."""
    with np.errstate(invalid="ignore"):
        error = np.max(np.abs(found - certified) / np.abs(certified))
    return float(np.clip(-np.log10(error), 0.0, 11.0)) if 0 < error < np.inf else 11.0 * (error == 0)


def by_scipy(model: Any, problem: Problem, start: NDArray[np.float64]) -> float:
    """Return the digits that scipy.optimize.curve_fit finds, told to go on to the last one; 0 where it gives up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (OptimizeWarning, RuntimeWarning))
            found, _ = curve_fit(model.py_func, problem.x, problem.y, start, **TO_THE_LAST_DIGIT)
    except RuntimeError:  # not within its number of calls
        return 0.0
    return digits(found, problem.certified)


def compare(name: str, problem: Problem) -> list[dict[str, Any]]:
    """Fit a problem from both starts; return a row of the table for each."""
    begin = time.perf_counter()
    fits = curve_fit_many(MODELS[name], problem.x, np.array([problem.y] * 2), problem.starts, **OPTIONS)
    seconds = time.perf_counter() - begin
    return [
        {
            "problem": name,
            "start": k + 1,
            "digits": digits(fits.popt[k], problem.certified),
            "digits of errors": digits(np.sqrt(np.diag(fits.pcov[k])), problem.errors),
            "converged": bool(fits.success[k]),
            "steps": int(fits.nit[k]),
            "seconds, both starts": seconds,
            "curve_fit": by_scipy(MODELS[name], problem, problem.starts[k]),
        }
        for k in range(2)
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table: digits that agree with the certified values."""
    print(f"{'digits that agree':12} | start 1: RMSprop  curve_fit | start 2: RMSprop  curve_fit      steps")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        cells = [
            f"{row['digits']:15.1f}{'*' if row['converged'] else ' '} {row['curve_fit']:10.1f}"
            for row in (first, second)
        ]
        print(f"{first['problem']:17} | {' | '.join(cells)} {second['steps']:10,}")
    print("* it says that it has converged")
    for start in (1, 2):
        ours, theirs = (sum(row[who] >= 6 for row in rows if row["start"] == start) for who in ("digits", "curve_fit"))
        print(f"6 digits or more from start {start}: RMSprop {ours}, curve_fit {theirs} of {len(rows) // 2}")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with NIST's .dat files")
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="PROBLEM", help="some of: " + ", ".join(MODELS))
    parser.add_argument("--out", type=Path, help="a file for the table, as JSON")
    options = parser.parse_args()
    names = options.only or list(MODELS)
    missing = [name for name in names if not (options.data / f"{name}.dat").is_file()]
    if missing:
        parser.error(
            f"--data: expected a folder with {missing[0]}.dat; {len(missing)} of {len(names)} files are missing"
        )
    rows: list[dict[str, Any]] = []
    for name in tqdm(names, unit="problem"):
        rows += compare(name, read_problem(options.data / f"{name}.dat"))
    show(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
