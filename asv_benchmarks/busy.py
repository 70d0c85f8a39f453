"""How long steps take beside other programs: median, mean and 99th percentile of each library, in turn.

make bench-busy

It starts the other programs itself: processes that are always busy. The libraries take turns of a quarter of a second,
in one process, until each has taken some thousands of steps, or its time is over. The ratio is that of the mean to the
mean on one thread in the same state.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.busy import CASES, ONE_THREAD, OtherPrograms
from benchmarks.steps import Step
from ratios import HERE, machine
from tqdm import tqdm

TURN = 0.25


def take_turn(step: Step, times: list[float], steps: int) -> None:
    """Take steps for a while, or as many as are left to take."""
    end = time.perf_counter() + TURN
    before = time.perf_counter()
    while before < end and len(times) < steps:
        step()
        now = time.perf_counter()
        times.append(now - before)
        before = now


def measure(case: str, programs: int, steps: int, seconds: float) -> dict[str, list[float]]:
    """Return for each library the median, the mean and the 99th percentile in microseconds, and how many steps."""
    maker, libraries = CASES[case]
    made: dict[str, Step] = {}
    for library in libraries:
        try:
            made[library] = maker(library)
        except NotImplementedError as error:
            tqdm.write(f"{case}: no {library} ({error})")
            continue
        for _ in range(3):
            made[library]()
    times: dict[str, list[float]] = {library: [] for library in made}
    others = OtherPrograms(programs)
    try:
        time.sleep(1.0)  # until they are all there
        end = time.monotonic() + seconds * len(made)
        while time.monotonic() < end and any(len(taken) < steps for taken in times.values()):
            for library, step in made.items():
                take_turn(step, times[library], steps)
    finally:
        others.stop()
    return {
        library: [1e6 * float(value) for value in (np.median(taken), np.mean(taken), np.percentile(taken, 99))]
        + [len(taken)]
        for library, taken in times.items()
    }


def show(case: str, programs: int, found: dict[str, list[float]]) -> str:
    """Return lines of a table."""
    return "\n".join(
        f"| {case} | {programs} | {library} | {median:,.0f} | {mean:,.0f} | {high:,.0f} "
        f"| {mean / found[ONE_THREAD][1]:.2f} | {count:,.0f} |"
        for library, (median, mean, high, count) in found.items()
    )


def main() -> None:
    """Measure, print the table, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, nargs="+", default=[0, 2, 4, 8], help="how many other programs")
    parser.add_argument("--steps", type=int, default=4000, help="steps of each library")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each library at most")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=HERE / "bench-busy.json", help="where to save the run")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    chosen = [(case, count) for case in CASES if options.only in case for count in options.programs]
    print("| step | other programs | library | median, us | mean | 99th percentile | mean / one thread | steps |")
    print("|---|---|---|---|---|---|---|---|")
    for case, programs in tqdm(chosen, unit="case"):
        found = measure(case, programs, options.steps, options.seconds)
        tqdm.write(show(case, programs, found))
        results.append({"name": case, "programs": programs, "libraries": found})
        options.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
