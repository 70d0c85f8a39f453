"""How our steps compare with the peers', and with what the machine allows: medians of interleaved runs.

make bench          ours and the limits
make bench-peers    the peers too

The libraries of a case take turns, a block of a few calls each, so that the caches are as warm as in a training loop
and a slow spell of the machine falls on all of them. Each has a process of its own, which is idle while others work:
in one process, threads of one library spin for milliseconds after each call and take a core from the next.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
from benchmarks import bags, first_use, fits, lean, steps, torch_loop
from benchmarks.steps import (
    DELTA,
    DENSE,
    FOREACH,
    FULL,
    LIMIT,
    NUMPY,
    NUMPY_CLIP,
    OURS,
    OURS_TORCH,
    ROWS,
    SPARSE_ADAM,
    TORCH,
    Step,
)
from tqdm import tqdm

HERE = Path(__file__).parent
PACKAGES = ("numba", "numpy", "torch", "jax", "optax", "tensorflow_cpu", "tf_keras", "fbgemm_gpu-cpu")
BLOCK = 3
BLOCK_SECONDS = 0.02
PAUSE = 0.03
"""Seconds until threads of GNU OpenMP have stopped to spin, 14 ms after their last work."""
WITH_LIMIT = (OURS, LIMIT)


@dataclass
class Case:
    """What is compared: a name, and for each label a function that makes a step. Ratios are to the first label.

    Where a call takes more steps than one, ``steps`` tells how many, by which its time is divided.
    """

    name: str
    makers: dict[str, Callable[[], Step]]
    steps: dict[str, int] = field(default_factory=dict)


@dataclass
class Result:
    """A case's medians in microseconds."""

    name: str
    microseconds: dict[str, float]


def cases(large: bool) -> list[Case]:
    """Return every case."""
    found = [
        *(dense_case(f"dense, {n:,}", [n], DENSE) for n in (10, 1000, 1_000_000, 20_000_000)),
        dense_case("dense, 100 variables of 1,000", [1000] * 100, tuple(name for name in DENSE if name != LIMIT)),
        Case("dense, 20,000,000, clipped", {label: clipped_dense(norm) for label, norm in CLIPS.items()}),
    ]
    for columns in (64, 16):
        for entries, rows in ((4096, 100_000), (4096, 1_000_000), (65_536, 1_000_000), (500_000, 5_000_000)):
            indices = steps.unique(entries, rows)
            found.append(rows_case(f"rows, {entries:,} of {rows:,} x {columns}", (rows, columns), indices, WITH_LIMIT))
    peers = tuple(name for name in ROWS if name != LIMIT)
    for entries in (4096, 65_536):
        indices = steps.zipf(entries, 1_000_000)
        found.append(rows_case(f"rows, {entries:,} Zipf of 1,000,000 x 64", (1_000_000, 64), indices, peers))
        found.append(gather_case(entries, 64))
    found.append(Case("rows, 65,536 of 1,000,000 x 64, clipped", {k: clipped_rows(v) for k, v in CLIPS.items()}))
    found.append(hot_case(65_536))
    found.append(threads_case())
    growth = (100_000, 1_000_000, 10_000_000, *([100_000_000] if large else []))
    found.append(saving_case())
    found += fits_cases()
    found += torch_cases()
    found += bags_cases()
    found += lean_cases()
    found.append(Case("growth, 4,096 new rows of 16", {f"{rows:,} rows": growing(rows) for rows in growth}))
    return found


CLIPS = {OURS: None, "global_clipnorm": 1.0}


def dense_case(name: str, sizes: list[int], libraries: tuple[str, ...]) -> Case:
    """Return a case of dense steps."""
    return Case(name, {library: lambda library=library: steps.dense(library, sizes) for library in libraries})


def rows_case(name: str, shape: tuple[int, int], indices: Any, libraries: tuple[str, ...]) -> Case:
    """Return a case of sparse steps."""
    return Case(name, {library: lambda library=library: steps.rows(library, shape, indices) for library in libraries})


def gather_case(entries: int, columns: int) -> Case:
    """Return a case of rows that are only read."""
    indices = steps.unique(entries, 1_000_000)
    makers = {
        library: lambda library=library: steps.gather(library, (1_000_000, columns), indices)
        for library in (OURS, NUMPY, NUMPY_CLIP)
    }
    return Case(f"gather, {entries:,} of 1,000,000 x {columns}", makers)


def clipped_dense(norm: float | None) -> Callable[[], Step]:
    """Return a maker of dense steps with a global norm."""
    return lambda: steps.dense(OURS, [20_000_000], global_clipnorm=norm)


def clipped_rows(norm: float | None) -> Callable[[], Step]:
    """Return a maker of sparse steps with a global norm."""
    indices = steps.unique(65_536, 1_000_000)
    return lambda: steps.rows(OURS, (1_000_000, 64), indices, global_clipnorm=norm)


def hot_case(entries: int) -> Case:
    """Return a case of uniform indices, beside indices of which half are one row."""
    uniform = np.random.default_rng(0).integers(0, 1_000_000, entries)
    hot = np.where(np.arange(entries) % 2 == 0, 7, uniform)
    makers = {
        "uniform": lambda: steps.rows(OURS, (1_000_000, 64), uniform),
        "half one row": lambda: steps.rows(OURS, (1_000_000, 64), hot),
    }
    return Case(f"hot row, {entries:,} entries", makers)


def threads_case() -> Case:
    """Return a case of rows that lie in cache, on as many threads as there are, and on fewer."""
    indices = steps.unique(16_384, 20_000)

    def on(count: int) -> Step:
        step = steps.rows(OURS, (20_000, 64), indices)

        def limited() -> None:
            numba.set_num_threads(count)
            step()
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)

        return limited

    counts = [count for count in (16, 8, 4, 2, 1) if count <= numba.config.NUMBA_NUM_THREADS]
    return Case("threads, 16,384 of 20,000 x 64", {f"threads: {count}": lambda c=count: on(c) for count in counts})


def saving_case() -> Case:
    """Return a case of steps that are saved, in all or by what they have changed."""
    indices = steps.unique(10_000, 1_000_000)
    kinds = (DELTA, FULL)
    makers = {kind: lambda kind=kind: steps.saving(kind, (1_000_000, 64), indices)[0] for kind in kinds}
    return Case("a step on 10,000 of 1,000,000 x 64, saved", makers)


def fits_cases() -> list[Case]:
    """Return cases of fits, timed by the step and fit; a loop over torch takes so long that it takes fewer steps."""
    quadratic = {library: lambda library=library: fits.quadratic(library, 2000, 1000) for library in fits.QUADRATIC}
    sizes = {OURS: (2000, 200), fits.TORCH: (2, 50), fits.TORCH_BATCH: (2000, 5)}
    curves = {label: lambda label=label: fits.curves(label, *sizes[label]) for label in fits.CURVES}
    counts = [count for count in (16, 8, 4, 2, 1) if count <= numba.config.NUMBA_NUM_THREADS]
    threads = {f"threads: {count}": lambda count=count: fits.curves(OURS, 2000, 200, count) for count in counts}
    return [
        Case("fits, 5 parameters, one thread", quadratic, dict.fromkeys(quadratic, 2000 * 1000)),
        Case("fits, two decays to 24 points", curves, {label: n * count for label, (n, count) in sizes.items()}),
        Case("fits, two decays to 24 points, by threads", threads, dict.fromkeys(threads, 2000 * 200)),
    ]


def torch_cases() -> list[Case]:
    """Return cases of our optimizer for torch beside torch's own."""
    dense, peers = (OURS_TORCH, OURS, LIMIT, TORCH, FOREACH), (OURS_TORCH, OURS, SPARSE_ADAM, TORCH)
    many = tuple(name for name in dense if name != LIMIT)
    loops = {kind: lambda kind=kind: torch_loop.loop(kind, 1_000_000, 64, 4096) for kind in torch_loop.LOOPS}
    return [
        *(dense_case(f"torch: dense, {n:,}", [n], dense) for n in (1000, 1_000_000, 20_000_000)),
        dense_case("torch: dense, 100 parameters of 1,000", [1000] * 100, many),
        *(
            rows_case(f"torch: {n:,} Zipf of 1,000,000 x 64", (1_000_000, 64), steps.zipf(n, 1_000_000), peers)
            for n in (4096, 65_536)
        ),
        Case("torch: a loop, batches of 4,096 pairs, two tables of 1,000,000 x 64", loops),
    ]


def bags_cases() -> list[Case]:
    """Return cases of training steps with pooled embeddings, and of the optimizer's part of them beside its limit."""
    found = []
    for features, rows, count, size in BAGS:
        libraries = bags.TRAINING if features == 1 else bags.LARGE
        shape = (features, rows, count, size)
        makers = {library: lambda library=library, shape=shape: bags.training(library, *shape) for library in libraries}
        tables = "" if features == 1 else f"{features} tables, "
        found.append(Case(f"bags: {tables}{count:,} of {size}", makers))
        if features == 1:
            alone = {
                library: lambda library=library, shape=shape: bags.step_alone(library, *shape[1:])
                for library in WITH_LIMIT
            }
            found.append(Case(f"bags, the step alone: {count:,} of {size}", alone))
    return found


def lean_cases() -> list[Case]:
    """Return cases of tables in several forms, whose rows come from memory."""
    shapes = ((4096, 1_000_000), (65_536, 1_000_000), (4096, 5_000_000), (65_536, 5_000_000))
    return [
        Case(
            f"lean, {entries:,} of {rows:,} x 64",
            {label: lambda s=(label, (rows, 64), entries): lean.step(*s) for label in lean.LABELS},
        )
        for entries, rows in shapes
    ]


BAGS = [(1, 1_000_000, n // size, size) for n in (4096, 65_536) for size in (1, 10, 20)] + [(8, 1_000_000, 2048, 10)]
"""Features, the rows of each, and its bags and their size."""


def growing(rows: int) -> Callable[[], Step]:
    """Return a maker of steps on rows that are new each time."""
    return lambda: steps.fresh_rows((rows, 16), 4096)


class Worker:
    """A process that takes the steps of one library, case after case."""

    def __init__(self, label: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, label), daemon=True)
        self._process.start()

    def ask(self, *request: Any) -> Any:
        """Return its answer; raise NotImplementedError if it has not that library."""
        self._pipe.send(request)
        answer = self._pipe.recv()
        if isinstance(answer, NotImplementedError):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process, and give its memory back."""
        self._process.terminate()
        self._process.join()


def serve(pipe: Any, label: str) -> None:
    """Take steps as :func:`measure` asks for them: make one (large, case), or return the time of a block (calls)."""
    step: Step = tuple
    while True:
        request = pipe.recv()
        try:
            if len(request) == 2:
                step = tuple  # what it holds is let go before the next is made
                large, name = request
                step = next(case for case in cases(large) if case.name == name).makers[label]()
                step()
                pipe.send(max(BLOCK, min(100, int(BLOCK_SECONDS / seconds(step, 3)))))
            else:
                step()  # what the others have left in the caches is not its own
                pipe.send(seconds(step, *request))
        except NotImplementedError as error:
            pipe.send(error)


def measure(case: Case, rounds: int, *, large: bool) -> Result:
    """Return the medians of a case, its libraries in turn."""
    workers: dict[str, tuple[Worker, int]] = {}
    times: dict[str, list[float]] = {}
    try:
        for label in case.makers:
            worker = Worker(label)
            try:
                workers[label] = worker, worker.ask(large, case.name)
            except NotImplementedError as error:
                tqdm.write(f"{case.name}: no {label} ({error})")
                worker.stop()
        for _ in range(rounds):
            for label, (worker, calls) in workers.items():
                time.sleep(PAUSE)
                times.setdefault(label, []).append(worker.ask(calls))
    finally:
        for worker, _ in workers.values():
            worker.stop()
    return Result(
        case.name, {label: 1e6 * float(np.median(taken)) / case.steps.get(label, 1) for label, taken in times.items()}
    )


def seconds(step: Step, calls: int) -> float:
    """Return the mean time of a call in a block."""
    started = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - started) / calls


def show(result: Result) -> str:
    """Return a case as lines of a table."""
    baseline = next(iter(result.microseconds.values()))
    lines = [
        f"| {result.name if k == 0 else ''} | {label} | {taken:,.1f} | {taken / baseline:.2f} |"
        for k, (label, taken) in enumerate(result.microseconds.items())
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "threads": numba.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def processor() -> str:
    """Return the processor's name as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure, print the table, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each library")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--large", action="store_true", help="also a table of 100,000,000 rows, of 14 GB with its state"
    )
    parser.add_argument("--first-use", action="store_true", help="also how long the first step of a process takes")
    parser.add_argument("--out", type=Path, default=HERE / "bench.json", help="where to save the run")
    options = parser.parse_args()
    chosen = [case for case in cases(options.large) if options.only in case.name]
    results = []
    print("| case | library | us | ratio |\n|---|---|---|---|")
    for case in tqdm(chosen, unit="case"):
        results.append(measure(case, options.rounds, large=options.large))
        tqdm.write(show(results[-1]))
        # A saved run is whole after each case: one that is interrupted keeps what it has.
        run = {"machine": machine(), "results": [asdict(result) for result in results]}
        options.out.write_text(json.dumps(run, indent=1) + "\n", encoding="utf8")
        gc.collect()
    if options.first_use:
        for entries in (2, 4096):
            case_name = f"first sparse step, {entries:,} rows"
            print(f"{case_name}: {first_use.FirstStep().track_cold(entries):.2f} s, nothing compiled yet; ", end="")
            print(f"{first_use.FirstStep().track_cached(entries):.2f} s from Numba's cache")


if __name__ == "__main__":
    main()
