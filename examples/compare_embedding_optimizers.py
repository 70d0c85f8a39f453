"""An example with one optimizer after the other: how well it learns, and how long its steps take.

    python examples/compare_embedding_optimizers.py DATA_DIR                  the knowledge graph's
    python examples/compare_embedding_optimizers.py DATA --recommender        the recommender's

Needs PyTorch (``pip install torch``). Each optimizer takes, of its learning rates in ``RATES``, the one that does best
on the valid part with the first of ``--seeds``, and trains with this one from the other seeds, too. RMSprop on the
dense gradient takes that of exact RMSprop, which it is to agree with. All else is the same for all: the model, the
batches, the candidates, the penalty, and that the rate falls linearly to 0. The seconds are those of the optimizer's
steps alone; those of RMSprop on the dense gradient have the making of this gradient in them.

Prints a table, and draws a figure into the folder ``--out``. Interrupt it with Ctrl-C or kill it: the same command goes
on where it was. All other options are those of ``knowledge_graph.py``, or of ``recommender.py``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import knowledge_graph
import numba
import numpy as np
import recommender
import torch
from parts.interactions import InteractionsError
from parts.options_and_files import replacing
from parts.resumable_training import DivergedError
from parts.triples import GraphError

Results = dict[str, float]

RATES = {
    "exact": (0.003, 0.01, 0.03, 0.1, 0.3),
    "lazy": (0.003, 0.01, 0.03, 0.1, 0.3),
    "rowwise": (0.003, 0.01, 0.03, 0.1, 0.3),
    "adagrad": (0.03, 0.1, 0.3, 1.0, 3.0),
    "sparse-adam": (0.0003, 0.001, 0.003, 0.01, 0.03),
}
NAMES = {
    "exact": "RMSprop, exact",
    "lazy": "RMSprop, lazy",
    "rowwise": "RMSprop, exact, row-wise state",
    "dense": "RMSprop, dense gradient",
    "adagrad": "torch Adagrad",
    "sparse-adam": "torch SparseAdam",
}
OPTIONS = {name: ["--optimizer", name] for name in NAMES} | {"rowwise": ["--form", "rowwise"]}


class Example(NamedTuple):
    """An example that is compared.

    Attributes
    ----------
    program : module
        The example.
    tuning : list of str
        Options with which learning rates are chosen.
    chosen_by, measured : str, tuple of str
        The measure by which they are, and those that are told.
    """

    program: Any
    tuning: list[str]
    chosen_by: str
    measured: tuple[str, ...]


SECONDS = "optimizer_seconds_per_epoch"
GRAPH = Example(knowledge_graph, [], "valid_mrr", ("valid_mrr", "test_mrr"))
RECOMMENDER = Example(recommender, ["--valid", "0.1"], "recall@20", ("recall@20", "ndcg@20"))


def main() -> None:
    """Tune and train with each optimizer, and show what came out."""
    arguments, others = parse_arguments()
    # Imported above, before Numba starts threads: if it came later, its own would be slower.
    torch.set_num_threads(numba.get_num_threads())
    try:
        example = RECOMMENDER if arguments.recommender else GRAPH
        tuned, trained = compare(example, arguments, others)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on from the last checkpoint") from None
    except (GraphError, InteractionsError) as error:
        raise SystemExit(str(error)) from None
    print_table(example, trained)
    draw(example, tuned, trained, arguments.out / "optimizers.png")
    print(f"figure: {arguments.out}")
    print(json.dumps(trained))


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the command line's options, and those of ``knowledge_graph.py``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="what the example reads")
    parser.add_argument("--recommender", action="store_true", help="compare on recommender.py")
    parser.add_argument("--out", type=Path, default=Path("demo/optimizers"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: %(default)s)")
    arguments, others = parser.parse_known_args()
    varied = {"--optimizer", "--learning-rate", "--seed", "--form", "--valid"} & {
        word.partition("=")[0] for word in others
    }
    if varied:
        parser.error(f"expected no {', '.join(sorted(varied))}: that is what is compared")
    return arguments, others


def compare(
    example: Example, arguments: argparse.Namespace, others: list[str]
) -> tuple[dict[str, dict[float, float]], dict[str, list[Results]]]:
    """Return how well each optimizer does at each learning rate, and all results at the best one."""

    def trial(optimizer: str, rate: float, seed: int, *options: str) -> Results:
        return train(example, arguments, optimizer, rate, seed, [*others, *options])

    first, *more = arguments.seeds
    tuned = {
        name: {rate: trial(name, rate, first, *example.tuning)[example.chosen_by] for rate in rates}
        for name, rates in RATES.items()
    }
    best = {name: max(found, key=found.__getitem__) for name, found in tuned.items()}
    best["dense"] = best["exact"]
    return tuned, {name: [trial(name, best[name], seed) for seed in (first, *more)] for name in NAMES}


def train(
    example: Example, arguments: argparse.Namespace, optimizer: str, rate: float, seed: int, others: list[str]
) -> Results:
    """Return the results of a training; if it was done before, those that it had."""
    part = "-valid" if "--valid" in others else ""
    out = arguments.out / f"{optimizer}-{rate:g}-{seed}{part}"
    settings = [
        *(str(arguments.data.resolve()), *OPTIONS[optimizer]),
        *("--learning-rate", str(rate), "--seed", str(seed), *others),
    ]
    path = out / "results.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf8"))
        if found["settings"] != settings:
            raise SystemExit(f"{out} holds a training with other settings; remove it, or use other --out")
        return found["results"]
    print(f"{NAMES[optimizer]}, learning rate {rate:g}, seed {seed}", flush=True)
    try:
        results = example.program.run(example.program.parse_arguments([*settings, "--out", str(out)]))
    except DivergedError as error:
        print(error, flush=True)
        results = {"learning_rate": rate, "seed": seed} | dict.fromkeys((*example.measured, SECONDS), 0.0)
    with replacing(path) as new:
        new.write_text(json.dumps({"settings": settings, "results": results}), encoding="utf8")
    return results


def print_table(example: Example, trained: dict[str, list[Results]]) -> None:
    """Print the mean of all seeds, and how far they lie apart."""
    print(f"| optimizer | learning rate | {' | '.join(example.measured)} | seconds of its steps per epoch |")
    print("|---" * (3 + len(example.measured)) + "|")
    for name, results in trained.items():
        cells = [NAMES[name], f"{results[0]['learning_rate']:g}"]
        for measure in example.measured:
            found = np.array([one[measure] for one in results])
            cells.append(f"{found.mean():.4f} ({found.min():.4f} - {found.max():.4f})")
        cells.append(f"{np.median([one[SECONDS] for one in results]):.3f}")
        print(f"| {' | '.join(cells)} |")


def draw(example: Example, tuned: dict[str, dict[float, float]], trained: dict[str, list[Results]], path: Path) -> None:
    """Draw how well each optimizer does at each learning rate, and how long its steps take."""
    plt = knowledge_graph.plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=[3, 2], layout="constrained")
    for name, found in tuned.items():
        left.plot(*zip(*found.items(), strict=True), marker="o", markersize=4, label=NAMES[name])
    measure = example.chosen_by
    left.set(title=f"{measure} by learning rate", xlabel="learning rate at the start", ylabel=measure, xscale="log")
    left.grid(alpha=0.3)
    left.legend()
    seconds = [np.median([one[SECONDS] for one in results]) for results in trained.values()]
    bars = right.barh([NAMES[name] for name in trained], seconds, color="0.7")
    right.bar_label(bars, fmt=" %.2f")
    right.invert_yaxis()
    right.set(title="The optimizer's steps in an epoch", xlabel="seconds")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
