"""A model of a step on a cluster of many ranks, fitted to the times that distributed.py measured on one machine.

    python asv_benchmarks/cluster_model.py runs.json --out docs/distributed.png

Measured, on two ranks of one machine: the time of computing for each entry and row, and of MPI for each message and
byte. Simulated, with the library's own functions: the rows that each rank asks of each other one, and the sums that
ranks pass on. Assumed: the time of a message and of a byte between machines (``--latency``, ``--bandwidth``).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from distributed import skewed_rows
from numpy.typing import NDArray
from scipy.optimize import nnls
from tqdm import tqdm

from numba_rmsprop.distributed.row_exchange import Request, link_format
from numba_rmsprop.distributed.row_layout import Layout
from numba_rmsprop.gradients.coalescing import chain_rows
from numba_rmsprop.kernels.row_dealing import link_ranks

mpl.use("Agg")
import matplotlib.pyplot as plt

LINK_BITS = 16

MEETING_BYTES = 32
"""Bytes that a rank sends each other one at the beginning of a call."""


@dataclass(frozen=True)
class Costs:
    """Seconds: for each step, for each entry of a rank's batch, for each row, message and byte."""

    step: float
    entry: float
    row: float
    message: float
    byte: float


@dataclass(frozen=True)
class Traffic:
    """Work and messages of a step, for the mean rank unless its comment says otherwise."""

    ranks: int
    entries: int
    unique: float
    busiest: float
    """Rows that the busiest owner is asked for."""
    remote: float
    pushed: float
    """Sums that are sent to another rank: the owner, or the rank that goes on from them."""
    hops: NDArray[np.int64]
    """Sums that each rank passes on to each other one; shape (ranks, ranks)."""


def main() -> None:
    """Fit, simulate, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="what distributed.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="where to draw")
    parser.add_argument("--rows", type=int, default=10**10, help="rows of the table (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=64, help="numbers to a row (default: %(default)s)")
    parser.add_argument("--entries", type=int, default=4096, help="of a rank's batch (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=2.0, help="us to a message (default: %(default)s)")
    parser.add_argument("--bandwidth", type=float, default=10.0, help="GB/s to and from a rank (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 125, 250, 500, 1000])
    arguments = parser.parse_args()
    runs = json.loads(arguments.runs.read_text(encoding="utf8"))
    costs = fit(runs["2"])
    check(runs)
    cluster = Costs(costs.step, costs.entry, costs.row, arguments.latency * 1e-6, 1e-9 / arguments.bandwidth)
    row_bytes = 4 * arguments.columns
    curves: dict[str, list[dict[str, float]]] = {"uniform": [], "skewed": []}
    for ranks in tqdm(arguments.ranks, desc="simulating"):
        for name, curve in curves.items():
            traffic = simulate(ranks, arguments.rows, arguments.entries, skewed=name == "skewed")
            curve.append({"ranks": ranks, **step_times(traffic, cluster, row_bytes)})
    print_predictions(curves, arguments.rows, row_bytes)
    print(f"rows asked of the busiest rank, in those of the mean: {curves['skewed'][-1]['busiest']:.2f}, if skewed")
    draw(curves, arguments)


def fit(cases: list[dict[str, Any]]) -> Costs:
    """Return costs, none below 0, that fit the cases on two ranks with the least relative errors."""
    computing = np.array([case["gather"] + case["push"] - case["in_mpi"] for case in cases])
    in_mpi = np.array([case["in_mpi"] for case in cases])
    of_computing = np.array([[1.0, case["entries"], case["unique"]] for case in cases])
    of_mpi = np.array([[case["messages"], case["bytes"]] for case in cases])
    step, entry, row = nnls(of_computing / computing[:, np.newaxis], np.ones(len(cases)))[0]
    message, byte = nnls(of_mpi / in_mpi[:, np.newaxis], np.ones(len(cases)))[0]
    costs = Costs(step, entry, row, message, byte)
    predicted = of_computing @ [step, entry, row] + of_mpi @ [message, byte]
    off = np.abs(predicted / (computing + in_mpi) - 1)
    print(
        f"fitted: {1e6 * step:.0f} us a step, {1e9 * entry:.0f} ns an entry, {1e9 * row:.0f} ns a row, "
        f"{1e6 * message:.1f} us a message, {1e-9 / byte:.2f} GB/s; "
        f"off by {100 * np.median(off):.0f} % (median), {100 * off.max():.0f} % at most"
    )
    return costs


def simulate(ranks: int, rows: int, entries: int, *, skewed: bool, seed: int = 0) -> Traffic:
    """Draw a batch for each rank, and return what would be sent."""
    layout = Layout(rows, ranks)
    counts = np.empty((ranks, ranks), np.int64)
    asked: list[NDArray[np.int64]] = []
    elsewhere: list[NDArray[np.bool]] = []
    repeats: list[NDArray[np.bool]] = []
    for rank in range(ranks):
        rng = np.random.default_rng([seed, rank, entries])
        draw = skewed_rows(rng, rows, entries) if skewed else rng.integers(0, rows, entries)
        request = Request(draw, layout)
        counts[rank] = request.counts
        asked.append(draw[request.order])
        elsewhere.append(np.repeat(np.arange(ranks), request.counts) != rank)
        repeats.append((request.wanted & 1).astype(bool))
    askers = np.repeat(np.arange(ranks, dtype=np.int32), counts.sum(axis=1))
    links = np.empty(len(askers), np.uint32)
    link_ranks(chain_rows(np.concatenate(asked))[1], askers, np.concatenate(repeats), LINK_BITS, links)
    targets = (links & (2**LINK_BITS - 1)).astype(np.int64) - 1
    hops = np.zeros((ranks, ranks), np.int64)
    np.add.at(hops, (askers[targets >= 0], targets[targets >= 0]), 1)
    return Traffic(
        ranks=ranks,
        entries=entries,
        unique=counts.sum() / ranks,
        busiest=counts.sum(axis=0).max(),
        remote=(counts.sum() - np.trace(counts)) / ranks,
        pushed=np.count_nonzero(np.concatenate(elsewhere) | (targets >= 0)) / ranks,
        hops=hops,
    )


def step_times(traffic: Traffic, costs: Costs, row_bytes: int) -> dict[str, float]:
    """Return the seconds that each part of a gather and a push takes, and the bytes that a rank sends."""
    others = traffic.ranks - 1
    # Two meetings and the exchanges of indices, rows and sums; in the order of the batch, also of links.
    exchanges = 5
    sent = traffic.remote * (row_bytes + 4) + traffic.pushed * row_bytes + 2 * MEETING_BYTES * others
    in_order = traffic.remote * np.dtype(link_format(traffic.ranks)[1]).itemsize
    served = max(traffic.unique, traffic.busiest)
    return {
        "computing": costs.step + costs.entry * traffic.entries + costs.row * served,
        "bytes": costs.byte * max(sent, traffic.busiest * (2 * row_bytes + 4)),
        "messages": costs.message * exchanges * others,
        "links": costs.message * others + costs.byte * in_order,
        "passing on": passing_time(traffic, costs, row_bytes),
        "sent": sent + in_order,
        "busiest": traffic.busiest / traffic.unique,
    }


def passing_time(traffic: Traffic, costs: Costs, row_bytes: int) -> float:
    """Return the seconds until the last rank has the sums that it goes on from: ranks wait for those before them."""
    ready = np.zeros(traffic.ranks)
    for rank in range(traffic.ranks):
        mine = traffic.hops[rank]
        if traffic.hops[:, rank].any():
            ready[rank] += costs.entry * traffic.hops[:, rank].sum()
        clock = ready[rank]
        for target in np.flatnonzero(mine):
            clock += costs.message + costs.byte * mine[target] * row_bytes
            ready[target] = max(ready[target], clock)
    return float(ready.max())


def check(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Compare simulated with counted bytes for every case that was measured."""
    off = [0.0]
    for cases in runs.values():
        for case in cases:
            if case["ranks"] == 1 or case["sum_order"] != "batch":
                continue
            draws = [
                simulate(case["ranks"], case["rows"], case["entries"], skewed=case["skewed"], seed=seed)
                for seed in range(20)
            ]
            sent = [step_times(traffic, Costs(0, 0, 0, 0, 0), 4 * case["columns"])["sent"] for traffic in draws]
            off.append(abs(np.mean(sent) / case["bytes"] - 1))
    print(f"bytes, simulated and counted on {', '.join(runs)} ranks: {100 * max(off):.1f} % apart at most")


def print_predictions(curves: dict[str, list[dict[str, float]]], rows: int, row_bytes: int) -> None:
    """Print a table in Markdown."""
    print(
        "| ranks | GB to a rank | rows | computing, ms | bytes | messages | links | passing on | step, ms | by rank |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, curve in curves.items():
        for at in curve:
            parts = ["computing", "bytes", "messages", "links", "passing on"]
            cells = " | ".join(f"{1e3 * at[part]:.2f}" for part in parts)
            total, by_rank = sum(at[part] for part in parts), sum(at[part] for part in parts[:3])
            print(
                f"| {at['ranks']:,} | {memory(rows, row_bytes) / at['ranks'] / 1e9:,.1f} | {name} | {cells} | "
                f"{1e3 * total:.1f} | {1e3 * by_rank:.1f} |"
            )


def memory(rows: int, row_bytes: int) -> float:
    """Return the bytes of a table's values, mean squares, clocks and marks."""
    return rows * (2 * row_bytes + 4 + 1 / 8)


def draw(curves: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Draw the parts of a step's time, and the memory of a rank's part of the table."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", sharex=True)
    parts = {
        "computing": "computing",
        "bytes": "bytes on the wire",
        "messages": "messages to each rank",
        "passing on": "ranks waiting for one another's sums",
    }
    for axis, (name, curve) in zip(axes, curves.items(), strict=False):
        ranks = [at["ranks"] for at in curve]
        by_rank = [sum(at[part] for part in ("computing", "bytes", "messages")) for at in curve]
        in_order = [total + at["links"] + at["passing on"] for total, at in zip(by_rank, curve, strict=True)]
        for part, label in parts.items():
            axis.plot(ranks, [1e3 * at[part] or np.nan for at in curve], label=label, linewidth=1)
        axis.plot(ranks, 1e3 * np.array(in_order), color="black", label='step, sum_order="batch"')
        axis.plot(ranks, 1e3 * np.array(by_rank), color="black", linestyle="--", label='step, sum_order="rank"')
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(0.05, 300)
        axis.set_xlabel("ranks (simulated)")
        axis.set_ylabel("ms for a gather and a push")
        axis.set_title(f"{arguments.entries:,} {name} rows to a rank")
    axes[0].legend(loc="upper left", fontsize=8)
    table = memory(arguments.rows, 4 * arguments.columns)
    ranks = np.array([at["ranks"] for at in curves["uniform"]])
    axes[2].loglog(ranks, table / ranks / 1e9, color="black")
    for limit in (64, 512):
        axes[2].axhline(limit, color="grey", linewidth=0.8, linestyle=":")
        axes[2].annotate(f"{limit} GB", (ranks[0], limit), xytext=(2, 2), textcoords="offset points", fontsize=8)
    axes[2].set_xlabel("ranks")
    axes[2].set_ylabel("GB to a rank")
    axes[2].set_title(f"Memory: {arguments.rows:,} x {arguments.columns}, float32")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
