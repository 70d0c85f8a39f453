"""To which subpackage of NumPy or SciPy a docstring belongs: logistic regression with SciPy's sparse gradients.

    python examples/sparse_classifier.py                 train, and ask about docstrings that were held out
    python examples/sparse_classifier.py --compare       scikit-learn on the same rows, beside it

``labelled_docstrings.py`` tells how the text was kept from giving the answer away. A fifth of the docstrings, drawn at
random, is held out. With ``--compare``, each solver first takes, of six settings, the one that does best on a fifth of
the others; then it learns from all of these.

Writes the weights (safetensors), the names of their rows and columns, and a figure into the folder ``--out``. Ctrl-C
ends the training, and shows what it has come to.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import safetensors.numpy
import scipy
from numpy.typing import NDArray
from parts.labelled_docstrings import Docstrings, read_labelled, split, tf_idf
from parts.options_and_files import number_from
from parts.scikit_solvers import SOLVERS
from parts.softmax_regression import Course, Model, Options, Rows, train
from tqdm import tqdm

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

OURS = "numba_rmsprop"
RATES, DECAYS = (0.03, 0.05, 0.1), (0.0, 0.01)
"""What ``--compare`` tries."""


def main() -> None:
    """Read the docstrings, train, and show what came out."""
    arguments = parse_arguments()
    if arguments.compare and importlib.util.find_spec("sklearn") is None:
        raise SystemExit("--compare needs scikit-learn: pip install scikit-learn")
    options = Options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)})
    print("reading the docstrings ...", flush=True)
    docstrings = read_labelled(arguments.packages, arguments.fewest)
    if len(docstrings.classes) < 2:
        raise SystemExit(
            f"expected at least 2 subpackages with {arguments.fewest} docstrings, got {len(docstrings.classes)}"
        )
    words, learnt, asked = make_rows(docstrings, options.seed)
    sizes = {"docstrings": len(docstrings.texts), "classes": len(docstrings.classes), "words": len(words)}
    print(", ".join(f"{count:,} {what}" for what, count in sizes.items()))
    if docstrings.too_few:
        print(f"left out, with fewer than {arguments.fewest} docstrings: {', '.join(docstrings.too_few)}")
    print("compiling (seconds the first time, then from the cache) ...", flush=True)
    train(Model(learnt), learnt[: 2 * options.batch], dataclasses.replace(options, epochs=1))

    model, courses = Model(learnt), {OURS: Course()}
    interrupted = False
    try:
        if arguments.compare:
            options = tuned(learnt, options)
        train_noted(model, learnt, asked, options, courses[OURS])
        if arguments.compare:
            compare(learnt, asked, options, courses)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted; this is what it has come to:", flush=True)
    results = {name: course.results() for name, course in courses.items()}
    results[OURS]["accuracy"] = round(accuracy(model, asked), 4)  # also after a part of an epoch
    show(arguments.out, words, docstrings.classes, model, asked, courses, results)
    print(json.dumps(sizes | {"largest_class": largest_class(asked), "interrupted": interrupted} | results))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    installed = [Path(package.__file__).parent for package in (np, scipy)]
    add("--packages", type=folder, nargs="+", default=installed, help="folders of others (default: NumPy and SciPy)")
    add("--fewest", type=number_from(1, int), default=50, help="docstrings to a class, at least (default: %(default)s)")
    add("--out", type=Path, default=Path("demo"), help="folder for what is written (default: %(default)s)")
    add("--epochs", type=number_from(1, int), default=10, help="passes over the docstrings (default: %(default)s)")
    add("--batch", type=number_from(1, int), default=128, help="docstrings to a step (default: %(default)s)")
    add("--learning-rate", type=number_from(0, float), default=0.05, help="falls linearly to 0 (default: %(default)s)")
    add("--momentum", type=number_from(0, float, 1), default=0.9, help="0 for none (default: %(default)s)")
    add("--weight-decay", type=number_from(0, float), default=0.0, help="of every word's row (default: %(default)s)")
    add("--rho", type=number_from(0, float, 1), default=0.99, help="near 1, for rare words (default: %(default)s)")
    add("--seed", type=number_from(0, int), default=1, help="the same seed gives the same bits (default: %(default)s)")
    add("--compare", action="store_true", help="tune, and also train scikit-learn's solvers (needs scikit-learn)")
    return parser.parse_args()


def folder(text: str) -> Path:
    """Return a folder that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder of a Python package, got {text}")
    return Path(text).resolve()


def make_rows(docstrings: Docstrings, seed: int) -> tuple[list[str], Rows, Rows]:
    """Return the words, the docstrings to learn from, and those to ask about."""
    learnt, asked = split(len(docstrings.texts), 0.2, seed)
    words, *features = tf_idf([docstrings.texts[i] for i in learnt], [docstrings.texts[i] for i in asked])
    labels, classes = docstrings.labels, len(docstrings.classes)
    return words, Rows(features[0], labels[learnt], classes), Rows(features[1], labels[asked], classes)


def accuracy(model: Model, rows: Rows) -> float:
    """Return the share of rows whose class is found."""
    return float(np.mean(model.answers(rows) == rows.labels))


def largest_class(rows: Rows) -> float:
    """Return the accuracy of always answering with the largest class."""
    return round(float(np.bincount(rows.labels).max() / len(rows)), 4)


def train_noted(model: Model, learnt: Rows, asked: Rows, options: Options, course: Course) -> None:
    """Train, with a progress bar, and note the accuracy after each epoch."""
    course.settings = {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    with tqdm(total=options.epochs * len(learnt), unit=" docstrings", unit_scale=True) as bar:
        train(model, learnt, options, bar.update, lambda seconds: course.add(seconds, accuracy(model, asked)))


def tuned(learnt: Rows, options: Options) -> Options:
    """Return the options with the learning rate and weight decay that do best on a fifth of the rows."""
    first, second = (learnt[part] for part in split(len(learnt), 0.2, options.seed))

    def held_out_accuracy(tried: Options) -> float:
        model = Model(first)
        train(model, first, tried)
        return accuracy(model, second)

    print(f"tuning {OURS} ...", flush=True)
    pairs = product(RATES, DECAYS)
    settings = [dataclasses.replace(options, learning_rate=rate, weight_decay=decay) for rate, decay in pairs]
    return max(settings, key=held_out_accuracy)


def compare(learnt: Rows, asked: Rows, options: Options, courses: dict[str, Course]) -> None:
    """Tune and train scikit-learn's solvers in the same way."""
    first, second = (learnt[part] for part in split(len(learnt), 0.2, options.seed))
    for name, (setting, values, fit) in SOLVERS.items():
        print(f"tuning and training {name} ...", flush=True)
        best = max(values, key=lambda value: fit(value, first, second, options).accuracy[-1])
        courses[name] = fit(best, learnt, asked, options)
        courses[name].settings = {setting: best}


def show(
    out: Path,
    words: list[str],
    classes: list[str],
    model: Model,
    asked: Rows,
    courses: dict[str, Course],
    results: dict[str, dict[str, float]],
) -> None:
    """Write the model and the figure, and print what it has learnt."""
    out.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({"weights": model.weights, "bias": model.bias}, out / "classifier.safetensors")
    (out / "classifier.json").write_text(json.dumps({"words": words, "classes": classes}), encoding="utf8")
    draw(classes, asked.labels, model.answers(asked), courses, out / "classifier.png")
    for name, column in zip(classes, model.weights.T, strict=True):
        print(f"{name:>18}: {', '.join(words[i] for i in np.argsort(-column)[:6])}")
    print(f"\n{'':>28} {'held-out accuracy':>18} {'epochs':>7} {'ms each':>8}  settings")
    print(f"{'always the largest class':>28} {largest_class(asked):>18.3f}")
    for name, line in results.items():
        settings = ", ".join(f"{setting} {value:g}" for setting, value in courses[name].settings.items())
        each = 1000 * line["seconds_per_epoch"]
        print(f"{name:>28} {line['accuracy']:>18.3f} {line['epochs']:>7} {each:>8.1f}  {settings}")
    print(f"weights, the names of their rows and columns, and a figure: {out}")


def draw(
    classes: list[str], labels: NDArray[np.int64], answers: NDArray[np.int64], courses: dict[str, Course], path: Path
) -> None:
    """Draw what is taken for what, and how soon how much is right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7), width_ratios=[5, 4], layout="constrained")
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, answers), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    left.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    left.set_yticks(range(len(classes)), classes)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            left.annotate(
                count, (j, i), ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 0.5 else "black"
            )
    left.set(
        title="Held-out docstrings: where they belong (rows), and the answers", ylabel="belongs to", xlabel="answer"
    )
    for name, course in courses.items():
        right.plot(course.seconds, 100 * np.array(course.accuracy), marker="o", markersize=4, label=name)
    right.set_title("How soon how much is right (a dot: after an epoch, or at the end)")
    right.set(xlabel="seconds of training", ylabel="right answers, % of held-out docstrings", xscale="log")
    right.grid(alpha=0.3)
    right.legend(loc="lower right")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
