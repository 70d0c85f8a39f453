"""Recommendations: matrix factorisation with sampled softmax and exact sparse steps, on all cores.

    python examples/recommender.py DATA                  a folder with train.txt and test.txt, or one file
    python examples/recommender.py ratings.csv --split time

DATA is a file whose lines have a user, an item and, if there are any, a rating and a time, with ``::``, tabs, commas or
white space between them, as MovieLens's (<https://grouplens.org/datasets/movielens/>); or a folder with train.txt and
test.txt, as papers share them: in each line a user and all its items. Gowalla, on which many report, comes so from
<https://github.com/gusye1234/LightGCN-PyTorch> (data/gowalla).

All that is not held out is learnt. The held-out items are asked for once at the end, of all users and among all items
that a user does not have, and now and then of some users for the picture; nothing is chosen by them. ``--valid`` holds
out a part of what is learnt in their place, to choose settings by.

Writes the rows of users and items (safetensors), their names, and a figure into the folder ``--out``, prints what it
recommends to some users, and ends with one line of JSON. Interrupt it with Ctrl-C or kill it: the same command goes on
from the last checkpoint, to the same bits, which do not depend on the number of threads.
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
from parts.embedding_optimizers import OPTIMIZERS
from parts.interactions import Data, Interactions, InteractionsError, read_data
from parts.matrix_factors import Options
from parts.options_and_files import number_from
from parts.recommender_training import Training
from parts.resumable_training import DivergedError
from parts.table_forms import FORMS
from parts.threads import threads
from parts.top_items import Recommender, recall_and_ndcg

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

NAMES = {field.name for field in dataclasses.fields(Options)}

LEAST_EPOCHS, LEAST_STEPS = 160, 10_000
"""Passes over the data; over small data more, to so many steps."""


def main() -> None:
    """Train, show what came out, and end with one line of JSON."""
    arguments = parse_arguments()
    try:
        results = run(arguments)
    except (InteractionsError, DivergedError) as error:
        raise SystemExit(str(error)) from None
    except MemoryError as error:
        raise SystemExit(f"{error}; take a smaller --rank, --batch or --negatives") from None
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on from the last checkpoint") from None
    print(f"Recall@20 {results['recall@20']:.4f}, NDCG@20 {results['ndcg@20']:.4f} of {results['asked']}")
    print(f"rows, their names, and a figure: {arguments.out}")
    print(json.dumps(results))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the interactions, train, ask, and write what came out.

    Raises
    ------
    InteractionsError, DivergedError, MemoryError
        As :func:`read_data`, :meth:`Training.run` and :func:`check_memory` do.
    """
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out: expected a folder to write to, got {arguments.out}: {error.strerror}") from None
    data = read_data(arguments.data, arguments.split, arguments.test, arguments.min_rating, arguments.split_seed)
    train, asked, name = data.train, data.test, "test"
    if arguments.valid:
        train, asked = train.parted_by_user(arguments.valid, arguments.split_seed + 1)
        name = "valid"
    print(
        f"{len(data.users):,} users, {len(data.items):,} items; interactions: {len(train):,} to learn, {len(asked):,} "
        f"to ask ({name})",
        flush=True,
    )
    given = {name: value for name, value in vars(arguments).items() if name in NAMES and value is not None}
    options = Options(**default_options(train, arguments.batch) | given)
    with threads() as pool:
        training = Training(train, asked, len(data.items), options, arguments.out / "checkpoint", pool)
        training.run(arguments.checkpoint_every)
        recommender = training.recommender()
        recall, ndcg = recall_and_ndcg(recommender, asked, pool)
    found = {"asked": name, "recall@20": round(recall, 4), "ndcg@20": round(ndcg, 4)}
    results = training.results() | found
    show(data, recommender, asked)
    write(arguments.out, data, training, results)
    training.remove_checkpoints()
    return results


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options in ``words``, or on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    below_1 = number_from(0, float, 0.99999)
    whole, positive = number_from(1, int), number_from(1e-9, float)
    add("data", type=Path, metavar="DATA", help="file, or folder with train.txt and test.txt")
    add("--out", type=Path, default=Path("demo/recommender"), help="folder for what is written (default: %(default)s)")
    add("--split", choices=["user", "time"], default="user", help="how to hold out a part of one file: some items of "
        "each user, or the latest interactions (default: %(default)s)")  # fmt: skip
    add("--test", type=number_from(0.001, float, 0.9), default=0.2, help="the part (default: %(default)s)")
    add("--min-rating", type=float, default=-np.inf, help="leave out smaller ratings (default: take all)")
    add("--valid", type=below_1, default=0, help="hold out this part of what is learnt, and ask for it in place of the "
        "test part (default: %(default)s)")  # fmt: skip
    add("--split-seed", type=number_from(0, int), default=0, help="chooses what is held out (default: %(default)s)")
    add("--rank", type=whole, default=64, help="numbers to a row (default: %(default)s)")
    add("--batch", type=whole, default=128, help="users to a step (default: %(default)s)")
    add("--negatives", type=whole, default=1000, help="random items to a step (default: %(default)s)")
    add(
        "--epochs",
        type=number_from(1, int, 1e6),
        help=f"passes (default: {LEAST_EPOCHS}, or more to {LEAST_STEPS:,} steps)",
    )
    add("--learning-rate", type=positive, default=0.02, help="falls linearly to 0 (default: %(default)s)")
    add("--rho", type=below_1, default=0.999, help="near 1, for rare rows (default: %(default)s)")
    add("--temperature", type=positive, default=0.1, help="divides cosines (default: %(default)s)")
    add("--optimizer", choices=OPTIMIZERS, default="exact", help="RMSprop, or one of PyTorch's (default: %(default)s)")
    add("--form", choices=FORMS, default="float32", help="of tables and their state (default: %(default)s)")
    add("--every", type=whole, help="epochs between looks (default: a tenth of them)")
    add("--seed", type=number_from(0, int), default=1, help="the same seed gives the same bits (default: %(default)s)")
    add("--checkpoint-every", type=whole, default=2000, help="steps between checkpoints (default: %(default)s)")
    return parser.parse_args(words)


def default_options(train: Interactions, batch: int) -> dict[str, int]:
    """Return what suits some interactions, of the options that should depend on them."""
    steps = -(-int(np.count_nonzero(train.counts)) // batch)
    epochs = max(LEAST_EPOCHS, -(-LEAST_STEPS // steps))
    return {"epochs": epochs, "every": -(-epochs // 10)}


def show(data: Data, recommender: Recommender, asked: Interactions) -> None:
    """Print what is recommended to three users, with a star where it is among their held-out items."""
    users = np.flatnonzero(asked.counts)[:3]
    for user, top in zip(users, recommender.top(users, 10), strict=True):
        held = set(asked.of(np.array([user]))[0].tolist())
        words = ", ".join(data.items[item] + "*" * (item in held) for item in top.tolist() if item >= 0)
        print(f"user {data.users[user]}: {words}")


def write(out: Path, data: Data, training: Training, results: dict[str, Any]) -> None:
    """Write the rows, their names, and the figure."""
    safetensors.numpy.save_file(training.best_tables(), out / "rows.safetensors")
    (out / "names.json").write_text(json.dumps({"users": data.users, "items": data.items}), encoding="utf8")
    draw(training, results, out / "recall.png")


def draw(training: Training, results: dict[str, Any], path: Path) -> None:
    """Draw how soon how many of the held-out items are recommended."""
    looks = training.looks
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for column, name in enumerate(("Recall@20", "NDCG@20"), 2):
        end = results[name.lower()]
        axes.plot(looks[:, 1], looks[:, column], marker="o", markersize=4, label=f"{name}, at the end {end:.4f}")
    axes.set(title=f"How soon held-out items ({results['asked']}) are recommended", xlabel="seconds of training")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
