"""Link prediction: embeddings of a knowledge graph's entities and relations, with exact sparse steps on all cores.

    python examples/knowledge_graph.py DATA_DIR                    ComplEx, defaults for any graph
    python examples/knowledge_graph.py DATA_DIR --model distmult   real numbers in place of complex ones

DATA_DIR has train.txt, valid.txt and test.txt, in each line a head, a relation and a tail with tabs between them. The
sets that papers measure on come so: WN18RR from https://github.com/TimDettmers/ConvE (WN18RR.tar.gz), CoDEx from
https://github.com/tsafavi/codex (data/triples/codex-s, -m, -l).

After every few epochs, the valid triples are asked for, in both directions and filtered; the embeddings that do best
are asked about the test triples, once. Writes these (safetensors), the names of their rows, and a figure into the
folder ``--out``, and one line of JSON. Interrupt it with Ctrl-C or kill it: the same command goes on from the last
checkpoint, to the same bits, which do not depend on the number of threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import safetensors.numpy
from parts.bilinear import Model, Options
from parts.embedding_optimizers import OPTIMIZERS
from parts.link_training import Training
from parts.options_and_files import number_from
from parts.ranking import ranks, summary
from parts.resumable_training import DivergedError
from parts.table_forms import FORMS
from parts.threads import threads
from parts.triples import PARTS, Graph, GraphError, read_graph

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

NAMES = {field.name for field in dataclasses.fields(Options)}
MEASURES = ("mrr", "hits@1", "hits@3", "hits@10")


def main() -> None:
    """Train, show what came out, and end with one line of JSON."""
    arguments = parse_arguments()
    try:
        results = run(arguments)
    except (GraphError, DivergedError) as error:
        raise SystemExit(str(error)) from None
    except MemoryError as error:
        raise SystemExit(f"{error}; take a smaller --rank, --batch or --negatives") from None
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on from the last checkpoint") from None
    print(f"{'':>6} {'MRR':>7} {'Hits@1':>7} {'Hits@3':>7} {'Hits@10':>8}")
    print(f"{'valid':>6} {results['valid_mrr']:>7.4f}")
    print(f"{'test':>6} " + " ".join(f"{results[f'test_{name}']:>7.4f}" for name in MEASURES))
    print(f"embeddings, names of their rows, and a figure: {arguments.out}")
    print(json.dumps(results))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the graph, train, ask about the test triples, and write what came out.

    Raises
    ------
    GraphError, DivergedError, MemoryError
        As :func:`read_graph`, :meth:`Training.run` and :func:`check_memory` do.
    """
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out: expected a folder to write to, got {arguments.out}: {error.strerror}") from None
    graph = read_graph(arguments.data)
    print_sizes(graph)
    given = {name: value for name, value in vars(arguments).items() if name in NAMES and value is not None}
    options = Options(**default_options(graph, arguments.batch) | given)
    with threads() as pool:
        training = Training(graph, options, arguments.out / "checkpoint", pool)
        training.run(arguments.checkpoint_every)
        model = training.best()
        tested = summary(ranks(model, graph, training.answers, graph.test, pool))
    results = training.results() | {f"test_{name}": round(value, 4) for name, value in tested.items()}
    write(arguments.out, graph, model, training, results)
    training.remove_checkpoints()
    return results


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options in ``words``, or on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    below_1 = number_from(0, float, 0.99999)
    whole, number, positive = number_from(1, int), number_from(0, float), number_from(1e-9, float)
    add("data", type=Path, metavar="DATA_DIR", help="folder with train.txt, valid.txt and test.txt")
    add("--out", type=Path, default=Path("demo/graph"), help="folder for what is written (default: %(default)s)")
    add("--model", choices=["complex", "distmult"], default="complex", help="(default: %(default)s)")
    add("--rank", type=whole, default=128, help="numbers to a row (default: %(default)s)")
    add("--negatives", type=whole, help="random entities to a batch (default: 512, or all of up to 4,096)")
    add("--batch", type=whole, default=512, help="triples to a step, in both directions (default: %(default)s)")
    add("--answers", type=whole, default=32, help="right answers to ask a question with (default: %(default)s)")
    add("--epochs", type=number_from(1, int, 1e6), help="passes, at most (default: to 5,500 steps, at least 22)")
    add("--learning-rate", type=positive, default=0.01, help="falls linearly to 0 (default: %(default)s)")
    add("--rho", type=below_1, default=0.999, help="near 1, for rare rows (default: %(default)s)")
    add("--n3", type=number, help="weight of the N3 penalty (default: by how many triples an entity has)")
    add("--dropout", type=below_1, default=0.2, help="of what is asked (default: %(default)s)")
    add("--init", type=positive, default=0.01, help="standard deviation of the start (default: %(default)s)")
    add("--optimizer", choices=OPTIMIZERS, default="exact", help="RMSprop, or one of PyTorch's (default: %(default)s)")
    add("--form", choices=FORMS, default="float32", help="of tables and their state (default: %(default)s)")
    add("--every", type=whole, default=5, help="epochs between looks at the valid triples (default: %(default)s)")
    # At a high learning rate it may long get no better, and still does when the rate falls.
    add("--patience", type=whole, default=8, help="looks without a better one before the end (default: %(default)s)")
    add("--seed", type=number_from(0, int), default=1, help="the same seed gives the same bits (default: %(default)s)")
    add("--checkpoint-every", type=whole, default=1000, help="steps between checkpoints (default: %(default)s)")
    return parser.parse_args(words)


def default_options(graph: Graph, batch: int) -> dict[str, float]:
    """Return what suits a graph, of the options that should depend on it.

    The rarer the entities, the larger the N3 penalty: on WN18RR, where an entity answers 4.3 questions, 0.1 did better
    than 0.07 or 0.2; on CoDEx-S, where it answers 32, 0.004 to 0.012 were about as good, and 0.02 worse.
    """
    entities, questions = len(graph.entities), 2 * len(graph.train)
    return {
        "negatives": entities if entities <= 4096 else 512,
        "epochs": max(22, -(-5500 // -(-questions // batch))),
        "n3": 0.4 * (entities - len(graph.unseen())) / questions,
    }


def print_sizes(graph: Graph) -> None:
    """Say what was read."""
    sizes = ", ".join(
        f"{len(getattr(graph, part)):,} to {what}"
        for part, what in zip(PARTS, ("learn", "choose by", "test"), strict=True)
    )
    print(f"{len(graph.entities):,} entities, {len(graph.relations):,} relations; triples: {sizes}", flush=True)
    unseen = graph.unseen()
    if len(unseen):
        print(f"{len(unseen):,} entities occur in no triple to learn: they are asked for all the same", flush=True)


def write(out: Path, graph: Graph, model: Model, training: Training, results: dict[str, float]) -> None:
    """Write the embeddings, the names of their rows, and the figure."""
    tables = {"entities": model.entities, "relations": model.relations}
    safetensors.numpy.save_file(tables, out / "embeddings.safetensors")
    names = {"entities": graph.entities, "relations": graph.relations}
    (out / "names.json").write_text(json.dumps(names), encoding="utf8")
    draw(training, results, out / "valid_mrr.png")


def draw(training: Training, results: dict[str, float], path: Path) -> None:
    """Draw how soon the valid triples are answered how well."""
    asked = training.course[training.course[:, 0] > 0]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(asked[:, 1], asked[:, 2], marker="o", markersize=4)
    best = asked[np.argmax(asked[:, 2])]
    axes.plot(
        *best[1:],
        marker="o",
        color="C1",
        linestyle="",
        label=f"best, after epoch {best[0]:.0f}: test MRR {results['test_mrr']:.3f}",
    )
    axes.set(
        title="How soon the valid triples are answered how well", xlabel="seconds of training", ylabel="filtered MRR"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
