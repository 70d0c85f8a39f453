"""The knowledge-graph example with one optimizer after the other: how well it learns, and how long its steps take.

    python examples/compare_embedding_optimizers.py DATA_DIR

Needs PyTorch (``pip install torch``). Each optimizer takes, of its learning rates in ``RATES``, the one that answers
the valid triples best with the first of ``--seeds``, and trains with this one from the other seeds, too. RMSprop on the
dense gradient takes that of exact RMSprop, which it is to agree with. All else is the same for all: the model, the
batches, the candidates, the penalty, and that the rate falls linearly to 0. The seconds are those of the optimizer's
steps alone; those of RMSprop on the dense gradient have the making of this gradient in them.

Prints a table, and draws a figure into the folder ``--out``. Interrupt it with Ctrl-C or kill it: the same command goes
on where it was. All other options are those of ``knowledge_graph.py``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import knowledge_graph
import numba
import numpy as np
import torch
from parts.options_and_files import replacing
from parts.resumable_training import DivergedError
from parts.triples import GraphError

Results = dict[str, float]
MEASURED = ("valid_mrr", "test_mrr", "optimizer_seconds_per_epoch")

RATES = {
    "exact": (0.003, 0.01, 0.03, 0.1),
    "lazy": (0.003, 0.01, 0.03, 0.1),
    "adagrad": (0.03, 0.1, 0.3, 1.0),
    "sparse-adam": (0.001, 0.003, 0.01, 0.03),
}
NAMES = {
    "exact": "RMSprop, exact",
    "lazy": "RMSprop, lazy",
    "dense": "RMSprop, dense gradient",
    "adagrad": "torch Adagrad",
    "sparse-adam": "torch SparseAdam",
}


def main() -> None:
    """Tune and train with each optimizer, and show what came out."""
    arguments, others = parse_arguments()
    # Imported above, before Numba starts threads: if it came later, its own would be slower.
    torch.set_num_threads(numba.get_num_threads())
    try:
        tuned, trained = compare(arguments, others)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on from the last checkpoint") from None
    except GraphError as error:
        raise SystemExit(str(error)) from None
    print_table(trained)
    draw(tuned, trained, arguments.out / "optimizers.png")
    print(f"figure: {arguments.out}")
    print(json.dumps(trained))


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the command line's options, and those of ``knowledge_graph.py``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder with train.txt, valid.txt and test.txt")
    parser.add_argument("--out", type=Path, default=Path("demo/optimizers"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: %(default)s)")
    arguments, others = parser.parse_known_args()
    varied = {"--optimizer", "--learning-rate", "--seed"} & {word.partition("=")[0] for word in others}
    if varied:
        parser.error(f"expected no {', '.join(sorted(varied))}: that is what is compared")
    return arguments, others


def compare(
    arguments: argparse.Namespace, others: list[str]
) -> tuple[dict[str, dict[float, float]], dict[str, list[Results]]]:
    """Return the valid MRR of each optimizer at each learning rate, and all results at the best one."""

    def trial(optimizer: str, rate: float, seed: int) -> Results:
        return train(arguments.data, arguments.out, optimizer, rate, seed, others)

    first, *more = arguments.seeds
    tuned = {name: {rate: trial(name, rate, first)["valid_mrr"] for rate in rates} for name, rates in RATES.items()}
    best = {name: max(found, key=found.__getitem__) for name, found in tuned.items()}
    best["dense"] = best["exact"]
    return tuned, {name: [trial(name, best[name], seed) for seed in (first, *more)] for name in NAMES}


def train(data: Path, out: Path, optimizer: str, rate: float, seed: int, others: list[str]) -> Results:
    """Return the results of a training; if it was done before, those that it had."""
    out = out / f"{optimizer}-{rate:g}-{seed}"
    settings = [
        str(data.resolve()),
        "--optimizer",
        optimizer,
        "--learning-rate",
        str(rate),
        "--seed",
        str(seed),
        *others,
    ]
    path = out / "results.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf8"))
        if found["settings"] != settings:
            raise SystemExit(f"{out} holds a training with other settings; remove it, or use other --out")
        return found["results"]
    print(f"{NAMES[optimizer]}, learning rate {rate:g}, seed {seed}", flush=True)
    try:
        results = knowledge_graph.run(knowledge_graph.parse_arguments([*settings, "--out", str(out)]))
    except DivergedError as error:
        print(error, flush=True)
        results = {"learning_rate": rate, "seed": seed} | dict.fromkeys(MEASURED, 0.0)
    with replacing(path) as new:
        new.write_text(json.dumps({"settings": settings, "results": results}), encoding="utf8")
    return results


def print_table(trained: dict[str, list[Results]]) -> None:
    """Print the mean of all seeds, and how far they lie apart."""
    print("| optimizer | learning rate | valid MRR | test MRR (from - to) | seconds of its steps per epoch |")
    print("|---|---|---|---|---|")
    for name, results in trained.items():
        valid, test, seconds = (np.array([one[key] for one in results]) for key in MEASURED)
        print(
            f"| {NAMES[name]} | {results[0]['learning_rate']:g} | {valid.mean():.4f} | {test.mean():.4f} "
            f"({test.min():.4f} - {test.max():.4f}) | {np.median(seconds):.3f} |"
        )


def draw(tuned: dict[str, dict[float, float]], trained: dict[str, list[Results]], path: Path) -> None:
    """Draw how well each optimizer does at each learning rate, and how long its steps take."""
    plt = knowledge_graph.plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=[3, 2], layout="constrained")
    for name, found in tuned.items():
        left.plot(*zip(*found.items(), strict=True), marker="o", markersize=4, label=NAMES[name])
    left.set(
        title="Valid MRR by learning rate", xlabel="learning rate at the start", ylabel="filtered MRR", xscale="log"
    )
    left.grid(alpha=0.3)
    left.legend()
    seconds = [np.median([one["optimizer_seconds_per_epoch"] for one in results]) for results in trained.values()]
    bars = right.barh([NAMES[name] for name in trained], seconds, color="0.7")
    right.bar_label(bars, fmt=" %.2f")
    right.invert_yaxis()
    right.set(title="The optimizer's steps in an epoch", xlabel="seconds")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
