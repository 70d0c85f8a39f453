"""Word vectors from the documentation of NumPy and SciPy, or from any text, with exact sparse steps on all cores.

    python examples/word_vectors.py                      the documentation in your installed NumPy and SciPy
    python examples/word_vectors.py --text FILE          a text of yours, a sentence to a line
    python examples/word_vectors.py --compare            gensim's Word2Vec on the same text, beside it

Writes the vectors (safetensors), the vocabulary and a map of some words into the folder ``--out``. Interrupt it with
Ctrl-C or kill it: the same command goes on from the last checkpoint, to the same bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from parts.documentation_text import Text, read_documentation, read_file, related_words_auc
from parts.skip_gram import Buffers, Epoch, Options, expected_batches, start_tables, train_batch
from parts.table_forms import FORMS, options_of_form
from tqdm import tqdm

from numba_rmsprop import CheckpointManager, RMSprop, schedules

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

SHOWN = ["fft", "eigh", "sin", "median", "poisson", "interpolate", "csr_matrix", "minimize", "sort", "float64"]
COMMON = 2500
"""Neighbours are looked for among this many of the most frequent words, which a reader is likely to know."""


def main() -> None:
    """Read the text, train, and show what came out."""
    parser = make_parser(__doc__)
    parser.add_argument("--compare", action="store_true", help="also train gensim's Word2Vec (needs gensim)")
    arguments = parser.parse_args()
    options = options_of(arguments)
    text = read_text(arguments)
    vectors, seconds = train(text, options, arguments.out / "checkpoint", arguments.checkpoint_every)
    rows = [("numba_rmsprop", show(text, options, vectors, seconds, arguments))]
    if arguments.compare:
        rows += [("gensim", gensim_results(text, options)), ("gensim, file", gensim_results(text, options, file=True))]
    print_table(rows)
    print(f"vectors, vocabulary and map: {arguments.out}")
    print(json.dumps(rows[0][1]))


def show(
    text: Text, options: Options, vectors: NDArray[np.float32], seconds: float, arguments: argparse.Namespace
) -> dict[str, float]:
    """Write the vectors and what belongs to them, print some neighbours, and return the results."""
    results = {"words_per_second": round(len(text.words) * options.epochs / seconds), "seconds": round(seconds, 1)}
    if text.related:
        results["auc"] = round(related_words_auc(vectors, text.related), 4)
    safetensors.numpy.save_file({"vectors": vectors}, arguments.out / "vectors.safetensors")
    (arguments.out / "vocabulary.txt").write_text("\n".join(text.vocabulary) + "\n", encoding="utf8")
    shown = [word for word in arguments.words if word in text.vocabulary] or text.vocabulary[:10]
    families = {word: nearest(word, vectors, text.vocabulary, 6) for word in shown}
    for word, family in families.items():
        print(f"{word:>12}: {', '.join(family)}")
    draw_map(families, vectors, text.vocabulary, arguments.out / "map.png")
    return results


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return what reads the command line's options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, help="a text file, a sentence to a line (default: the documentation of NumPy and SciPy)")
    add("--out", type=Path, default=Path("demo"), help="folder for what is written (default: %(default)s)")
    add("--dim", type=int, default=64, help="numbers to a vector (default: %(default)s)")
    add("--epochs", type=int, default=5, help="passes over the text (default: %(default)s)")
    add("--window", type=int, default=5, help="words to either side, at most (default: %(default)s)")
    add("--negatives", type=int, default=5, help="random words to a pair (default: %(default)s)")
    add("--draws", type=int, default=10, help="random words that a word's pairs share (default: %(default)s)")
    add("--batch", type=int, default=1024, help="words to a step (default: %(default)s)")
    add("--sample", type=float, default=1e-3, help="words above this frequency are thinned out (default: %(default)s)")
    add("--min-count", type=int, default=5, help="leave out rarer words (default: %(default)s)")
    add("--learning-rate", type=float, default=0.01, help="falls linearly to 0 (default: %(default)s)")
    add("--rho", type=float, default=0.999, help="near 1, for the sake of rare words (default: %(default)s)")
    add("--seed", type=int, default=1, help="the same seed gives the same bits (default: %(default)s)")
    add("--form", choices=FORMS, default="float32", help="of tables and their state (default: %(default)s)")
    add("--checkpoint-every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    add("--words", nargs="+", default=SHOWN, help="words whose neighbours are shown")
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    """Return what to train."""
    options = Options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)})
    if options.dim < 2:
        raise SystemExit(f"--dim: expected 2 or more, got {options.dim}")
    return options


def read_text(arguments: argparse.Namespace) -> Text:
    """Return the text to train on."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("reading the text ...", flush=True)
    text = read_file(arguments.text, arguments.min_count) if arguments.text else read_documentation(arguments.min_count)
    if len(text.vocabulary) < 2:
        raise SystemExit(
            f"expected at least 2 words that occur {arguments.min_count} times, got {len(text.vocabulary)}"
        )
    print(f"{len(text.words):,} words, {len(text.vocabulary):,} different ones", flush=True)
    return text


def train(text: Text, options: Options, folder: Path, every: int) -> tuple[NDArray[np.float32], float]:
    """Return the trained vectors, and the seconds that training took, over all its runs."""
    state = Checkpoints(folder, text, options)
    vectors, contexts = start_tables(text, options)
    progress = np.zeros(3)  # epoch, batch, seconds: a variable that gets no gradients, and is saved with the others
    variables = [vectors, contexts, progress]
    opt = state.restore(variables)
    if opt is None:
        schedule = schedules.PolynomialDecay(options.learning_rate, expected_batches(text, options), 0.0)
        opt = RMSprop(schedule, rho=options.rho, epsilon=1e-6, **options_of_form(options.form, options.seed))
        opt.build(variables)
    else:
        print(f"going on from step {progress[1]:.0f} of epoch {progress[0] + 1:.0f}", flush=True)
    epoch, batch, seconds = int(progress[0]), int(progress[1]), progress[2]
    buffers = Buffers(options)
    compile_kernels(text, buffers, options)
    started = time.perf_counter() - seconds
    total = options.epochs * len(text.words)
    with tqdm(total=total, unit=" words", unit_scale=True, smoothing=0.05) as bar:
        for epoch_now in range(epoch, options.epochs):
            plan = Epoch(text, options, epoch_now)
            first = batch if epoch_now == epoch else 0
            share = len(text.words) / len(plan)
            bar.update(round(epoch_now * len(text.words) + first * share) - bar.n)
            for number, part in enumerate(plan.batches(first), first + 1):
                loss = train_batch(opt, vectors, contexts, part, buffers, options)
                bar.update(round(epoch_now * len(text.words) + number * share) - bar.n)
                if number % 50 == 0:
                    bar.set_postfix(epoch=epoch_now + 1, loss=f"{loss / max(1, part.pairs.sum()):.3f}", refresh=False)
                if number % every == 0:
                    state.save(opt, progress, epoch_now, number, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    state.remove()
    return vectors.astype(np.float32, copy=False), seconds


def compile_kernels(text: Text, buffers: Buffers, options: Options) -> None:
    """Take two steps on copies, so that the training is timed and not the compiler, which runs once a machine."""
    print("compiling (seconds the first time, then from the cache) ...", flush=True)
    tables = start_tables(text, options)
    opt = RMSprop(rho=options.rho, epsilon=1e-6, **options_of_form(options.form, options.seed))
    for _, part in zip(range(2), Epoch(text, options, 0).batches(0), strict=False):
        train_batch(opt, *tables, part, buffers, options)


class Checkpoints:
    """The checkpoints of a training, with the settings that it has."""

    def __init__(self, folder: Path, text: Text, options: Options) -> None:
        self.manager = CheckpointManager(folder, keep=2)
        settings = dataclasses.asdict(options) | {"words": len(text.words), "different": len(text.vocabulary)}
        path = folder / "settings.json"
        if not self.manager.latest():
            path.write_text(json.dumps(settings), encoding="utf8")
        elif json.loads(path.read_text(encoding="utf8")) != settings:
            raise SystemExit(f"{folder} holds a training with other settings or text; remove it, or use other --out")

    def save(self, opt: RMSprop, progress: NDArray[np.float64], *values: float) -> None:
        """Save everything, and how far the training is."""
        progress[:] = values
        self.manager.save(opt)

    def restore(self, variables: list[NDArray[Any]]) -> RMSprop | None:
        """Overwrite the variables with the last checkpoint, and return its optimizer; None if there is none."""
        paths = self.manager.latest()
        return RMSprop.load(paths, variables) if paths else None

    def remove(self) -> None:
        """Remove the files of a training that is over."""
        shutil.rmtree(self.manager.folder, ignore_errors=True)


def nearest(word: str, vectors: NDArray[np.float32], vocabulary: list[str], count: int) -> list[str]:
    """Return the common words whose vectors point most nearly the same way."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    order = np.argsort(-unit[:COMMON] @ unit[vocabulary.index(word)])
    return [vocabulary[i] for i in order[: count + 1] if vocabulary[i] != word][:count]


def draw_map(families: dict[str, list[str]], vectors: NDArray[np.float32], vocabulary: list[str], path: Path) -> None:
    """Draw words and their neighbours in the plane that shows most of the differences between the families."""
    numbers = {word: i for i, word in enumerate(vocabulary)}
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    members = {word: unit[[numbers[w] for w in [word, *family]]] for word, family in families.items()}
    centers = np.stack([points.mean(axis=0) for points in members.values()])
    middle = centers.mean(axis=0)
    spread = centers if len(centers) > 2 else np.concatenate(list(members.values()))
    plane = np.linalg.svd(spread - middle, full_matrices=False)[2][:2].T
    figure, axes = plt.subplots(figsize=(11, 8), layout="constrained")
    for color, (word, points) in enumerate(members.items()):
        x, y = ((points - middle) @ plane).T
        axes.scatter(x, y, s=12, color=f"C{color % 10}")
        for name, here in zip([word, *families[word]], zip(x, y, strict=True), strict=True):
            axes.annotate(
                name, here, xytext=(3, 2), textcoords="offset points", color=f"C{color % 10}",
                fontsize=11 if name == word else 8, weight="bold" if name == word else "normal",
            )  # fmt: skip
    axes.set_title("Words and their nearest neighbours, seen in the two directions in which the families differ most")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def gensim_results(text: Text, options: Options, *, file: bool = False) -> dict[str, float]:
    """Train gensim's Word2Vec with the same dimension, window, negatives, epochs and number of threads.

    From a file, whose parts its threads read without Python between them, or from sentences in memory.
    """
    import numba
    from gensim.models import Word2Vec

    print("training gensim ...", flush=True)
    longest = 10_000  # gensim leaves out what comes after that
    sentences = [s[i : i + longest] for s in text.sentences() for i in range(0, len(s), longest)]
    model = Word2Vec(
        vector_size=options.dim, window=options.window, negative=options.negatives, sample=options.sample,
        min_count=1, sg=1, seed=options.seed, workers=numba.get_num_threads(),
    )  # fmt: skip
    model.build_vocab(sentences)
    with tempfile.NamedTemporaryFile("w", encoding="utf8", suffix=".txt") as corpus:
        corpus.writelines(" ".join(sentence) + "\n" for sentence in sentences)
        corpus.flush()
        source = {"corpus_file": corpus.name} if file else {"corpus_iterable": sentences}
        counts = {"total_examples": len(sentences), "total_words": sum(map(len, sentences)), "epochs": options.epochs}
        started = time.perf_counter()
        model.train(**source, **counts)
        seconds = time.perf_counter() - started
    vectors = np.stack([model.wv[word] for word in text.vocabulary])
    results = {"words_per_second": round(len(text.words) * options.epochs / seconds), "seconds": round(seconds, 1)}
    return results | ({"auc": round(related_words_auc(vectors, text.related), 4)} if text.related else {})


def print_table(rows: list[tuple[str, dict[str, float]]]) -> None:
    """Print results beside one another; AUC: how often a listed relative is nearer than a random word."""
    print(f"\n{'':>14} {'AUC':>7} {'words/s':>9} {'seconds':>8}")
    for name, results in rows:
        print(f"{name:>14} {results.get('auc', '-'):>7} {results['words_per_second']:>9,} {results['seconds']:>8}")


if __name__ == "__main__":
    main()
