"""Times and bytes of a sharded table's gather and step, beside those of an array of one process.

    mpiexec -n 2 python asv_benchmarks/distributed.py --out runs.json

Adds the results for this number of ranks to the file, which cluster_model.py reads. All cases take turns, with new
batches, and the result is the median over the turns of the slowest rank.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from tqdm import tqdm

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.distributed import ShardedTable

INDEX_BYTES = 4
"""Bytes of an index, as counted in the least that must be sent."""


def main() -> None:
    """Measure all cases in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to add to")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the table (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=64, help="numbers to a row (default: %(default)s)")
    parser.add_argument("--entries", type=int, nargs="+", default=[500, 2000, 8000, 32000], help="of a rank's batch")
    parser.add_argument("--turns", type=int, default=60, help="how often each case is measured (default: %(default)s)")
    arguments = parser.parse_args()
    comm = MPI.COMM_WORLD
    cases = [
        Case(comm, arguments.rows, arguments.columns, entries, skewed=skewed, order=order)
        for entries in arguments.entries
        for skewed in (False, True)
        for order in (["batch", "rank"] if comm.size > 1 else ["batch"])
    ]
    for _ in tqdm(range(arguments.turns + 3), disable=comm.rank > 0, desc=f"{comm.size} ranks"):
        for case in cases:
            case.measure()
    results = [case.results() for case in cases]
    if comm.rank == 0:
        runs = json.loads(arguments.out.read_text(encoding="utf8")) if arguments.out.exists() else {}
        runs[str(comm.size)] = results
        arguments.out.write_text(json.dumps(runs, indent=1), encoding="utf8")
        print_table(results)


def skewed_rows(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """Draw rows, of which row k comes about as often as 1 / (k + 1), as words, users and products do."""
    return np.minimum((rows + 1.0) ** rng.random(count), rows).astype(np.int64) - 1


class Case:
    """One size of batch, and one distribution of rows."""

    def __init__(self, comm: Any, rows: int, columns: int, entries: int, *, skewed: bool, order: str) -> None:
        self.comm = comm
        self.about = {"ranks": comm.size, "rows": rows, "columns": columns, "entries": entries}
        self.about |= {"skewed": skewed, "sum_order": order}
        self._rng = np.random.default_rng([comm.rank, entries])
        self._table = ShardedTable(comm, rows, columns, learning_rate=0.01, sum_order=order)
        self._local, self._opt = np.zeros((rows, columns), np.float32), RMSprop(0.01)
        self._grads = self._rng.standard_normal((entries, columns), np.float32)
        self._out = np.empty_like(self._grads)
        self._rows_here = np.zeros(rows, bool)
        self._rows_here[self._table.rows_here] = True
        self._turns: list[dict[str, float]] = []

    def measure(self) -> None:
        """Take one step with the table, and one with an array of this process."""
        rows, entries = self.about["rows"], self.about["entries"]
        draw = self._rng.integers(0, rows, entries), skewed_rows(self._rng, rows, entries)
        indices = draw[self.about["skewed"]]
        unique = np.unique(indices)
        remote = np.count_nonzero(~self._rows_here[unique])
        ranks = self._table.ranks
        self.comm.Barrier()
        before = ranks.bytes_sent, ranks.messages, ranks.seconds
        times = [time.perf_counter()]
        self._table.gather(indices, out=self._out)
        times.append(time.perf_counter())
        self._table.apply_gradients(indices, self._grads)
        times.append(time.perf_counter())
        after = ranks.bytes_sent, ranks.messages, ranks.seconds
        self.comm.Barrier()
        times.append(time.perf_counter())
        self._opt.gather(self._local, indices, out=self._out)
        times.append(time.perf_counter())
        self._opt.apply_gradients([(IndexedSlices(self._grads, indices), self._local)])
        times.append(time.perf_counter())
        sent, messages, in_mpi = (b - a for a, b in zip(before, after, strict=True))
        gather, push, _, local_gather, local_step = np.diff(times)
        row = self.about["columns"] * 4
        self._turns.append(
            {
                "gather": gather, "push": push, "local_gather": local_gather, "local_step": local_step,
                "in_mpi": in_mpi, "bytes": sent, "messages": messages, "unique": len(unique), "remote": remote,
                "least": remote * (2 * row + INDEX_BYTES),
            }
        )  # fmt: skip

    def results(self) -> dict[str, Any]:
        """Return the median times of the slowest rank, and the mean counts over ranks."""
        turns = self._turns[3:]  # the first ones compile
        medians = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
        means = {name: float(np.mean([turn[name] for turn in turns])) for name in turns[0]}
        everyone = self.comm.allgather((medians, means))
        timed = {name: max(of_one[name] for of_one, _ in everyone) for name in list(medians)[:5]}
        counted = {name: float(np.mean([of_one[name] for _, of_one in everyone])) for name in list(medians)[5:]}
        return self.about | timed | counted


def print_table(results: list[dict[str, Any]]) -> None:
    """Print the results as a table in Markdown."""
    print("| ranks | entries | rows | sums by | gather, ms | push, ms | local, ms | in MPI | bytes to the least |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in results:
        local = case["local_gather"], case["local_step"]
        share = case["in_mpi"] / (case["gather"] + case["push"])
        ratio = f"{case['bytes'] / case['least']:.3f}" if case["least"] else "-"
        print(
            f"| {case['ranks']} | {case['entries']:,} | {'skewed' if case['skewed'] else 'uniform'} | "
            f"{case['sum_order']} | {1e3 * case['gather']:.2f} | {1e3 * case['push']:.2f} | "
            f"{1e3 * local[0]:.2f} + {1e3 * local[1]:.2f} | {share:.0%} | {ratio} |"
        )


if __name__ == "__main__":
    main()
