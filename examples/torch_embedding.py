"""Word vectors in PyTorch: numba_rmsprop.torch.RMSprop beside torch.optim.SparseAdam, on the same batches.

    python examples/torch_embedding.py                   the documentation in your installed NumPy and SciPy
    python examples/torch_embedding.py --text FILE       a text of yours, a sentence to a line
    python examples/torch_embedding.py --tune            first let each optimizer choose its learning rate (minutes)

The model of ``skip_gram.py``: two embeddings with sparse gradients, trained twice from the same start, a block of
steps with one optimizer and then with the other, so that both see the machine at the same pace. A twentieth of the
docstrings, which neither learns from, tells the loss. Seconds are those of the forward and backward passes and of the
optimizer; drawing batches and asking for the loss are not counted. With ``--tune``, each optimizer takes the learning
rate that does best, after as many epochs, on another twentieth of the docstrings; so were the defaults found.

Writes the tables (``checkpoint.pt``) and a figure into the folder ``--out``, and one line of JSON. Interrupt it with
Ctrl-C or kill it: the same command goes on from the last checkpoint, to the same bits, and shows the same again when it
is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

# PyTorch's threads, which spin while they wait for one another, lose their turn where other programs want the cores
# too. OpenMP reads this once, so it stands before the imports.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib as mpl
import numpy as np
import torch
from parts.documentation_text import Text, read_documentation, read_file
from parts.skip_gram import Epoch, Options
from parts.torch_skip_gram import Trial, as_tensors
from tqdm import tqdm

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

RATES = (0.003, 0.005, 0.01, 0.02, 0.03, 0.05)
"""What ``--tune`` tries."""

BLOCK = 40
"""How many steps one optimizer takes before it is the other's turn."""

ASKED = 10
"""Batches of what is held out that tell the loss."""


def main() -> None:
    """Read the text, train, and show what came out."""
    arguments = parse_arguments()
    names = {field.name for field in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in vars(arguments).items() if name in names})
    rates = {"RMSprop": arguments.learning_rate, "SparseAdam": arguments.adam_learning_rate}
    print("reading the text ...", flush=True)
    text = read_file(arguments.text, arguments.min_count) if arguments.text else read_documentation(arguments.min_count)
    learnt, choosing, asked = split(text, options.seed)
    print(f"{len(text.words):,} words, {len(text.vocabulary):,} different ones", flush=True)
    compile_kernels(learnt, options, arguments.momentum)
    every, momentum = arguments.checkpoint_every, arguments.momentum
    try:
        if arguments.tune:
            rates = tuned(learnt, choosing, options, momentum, arguments.out, every)
        trials = [Trial(name, learnt, options, rate, momentum) for name, rate in rates.items()]
        train(trials, learnt, asked, options, arguments.out, every)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on from the last checkpoint") from None
    results = {trial.name: trial.results(text) for trial in trials}
    draw(trials, arguments.out / "torch_embedding.png")
    print_table(results)
    print(f"checkpoint and figure: {arguments.out}")
    print(json.dumps(results))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, help="a text file, a sentence to a line (default: the documentation of NumPy and SciPy)")
    add("--out", type=Path, default=Path("demo/torch"), help="folder for what is written (default: %(default)s)")
    add("--dim", type=at_least_1, default=64, help="numbers to a vector (default: %(default)s)")
    add("--epochs", type=at_least_1, default=2, help="passes over the text (default: %(default)s)")
    add("--window", type=at_least_1, default=5, help="words to either side, at most (default: %(default)s)")
    add("--negatives", type=at_least_1, default=5, help="random words to a pair (default: %(default)s)")
    add("--draws", type=at_least_1, default=10, help="random words that a word's pairs share (default: %(default)s)")
    add("--batch", type=at_least_1, default=1024, help="words to a step (default: %(default)s)")
    add("--sample", type=float, default=1e-3, help="words above this frequency are thinned out (default: %(default)s)")
    add("--min-count", type=at_least_1, default=5, help="leave out rarer words (default: %(default)s)")
    add("--lr", "--learning-rate", type=float, default=0.005, dest="learning_rate",
        help="of RMSprop; falls linearly to 0 (default: %(default)s)")  # fmt: skip
    add("--adam-lr", type=float, default=0.02, dest="adam_learning_rate",
        help="of SparseAdam; falls linearly to 0 (default: %(default)s)")  # fmt: skip
    add("--rho", type=float, default=0.999, help="RMSprop's alpha; near 1, for rare words (default: %(default)s)")
    add("--momentum", type=float, default=0.0, help="of RMSprop (default: none)")
    add("--seed", type=int, default=1, help="the same seed gives the same bits (default: %(default)s)")
    add("--checkpoint-every", type=at_least_1, default=5,
        help=f"blocks of {BLOCK} steps between checkpoints (default: %(default)s)")  # fmt: skip
    add("--tune", action="store_true", help=f"choose each learning rate among {', '.join(map(str, RATES))}")
    return parser.parse_args()


def at_least_1(text: str) -> int:
    """Read a number, and refuse those below 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def split(text: Text, seed: int) -> tuple[Text, Text, Text]:
    """Return the sentences to learn from, those that choose learning rates, and those that tell the loss."""
    _, sentence, lengths = np.unique(text.starts, return_inverse=True, return_counts=True)
    part = np.random.default_rng(seed).choice(3, len(lengths), p=[0.9, 0.05, 0.05])
    parts = []
    for which in range(3):
        kept = part[sentence] == which
        before = np.concatenate([[0], np.cumsum(kept)])
        starts, ends = before[text.starts[kept]], before[text.ends[kept]]
        parts.append(dataclasses.replace(text, words=text.words[kept], starts=starts, ends=ends))
        if not len(starts):
            raise SystemExit(f"the text is too short: none of its {len(lengths)} sentences could be held out")
    return parts[0], parts[1], parts[2]


def train(trials: list[Trial], learnt: Text, asked: Text, options: Options, out: Path, every: int) -> None:
    """Train every trial on the same batches, in turn."""
    settings = dataclasses.asdict(options) | {"words": len(learnt.words), "different": len(learnt.vocabulary)}
    settings |= {trial.name: str(trial.optimizer.defaults) for trial in trials}
    epoch, block = restore(trials, settings, out)
    questions = [as_tensors(batch, options) for batch in islice(Epoch(asked, options, 0).batches(0), ASKED)]
    for trial in trials:
        if not trial.curve:
            trial.ask(questions)
    with tqdm(total=options.epochs * len(learnt.words), unit=" words", unit_scale=True, smoothing=0.05) as bar:
        for epoch_now in range(epoch, options.epochs):
            plan = Epoch(learnt, options, epoch_now)
            share = len(learnt.words) / len(plan)
            first = block if epoch_now == epoch else 0
            parts = (as_tensors(batch, options) for batch in plan.batches(first * BLOCK))
            for number, batches in enumerate(iter(lambda p=parts: list(islice(p, BLOCK)), []), first):
                for trial in trials if number % 2 else trials[::-1]:
                    trial.train(batches)
                    trial.ask(questions)
                bar.update(round(epoch_now * len(learnt.words) + (number * BLOCK + len(batches)) * share) - bar.n)
                losses = {trial.name: f"{trial.curve[-1][1]:.3f}" for trial in trials}
                bar.set_postfix(epoch=epoch_now + 1, **losses, refresh=False)
                if (number + 1) % every == 0:
                    save(trials, settings, out, (epoch_now, number + 1))
    save(trials, settings, out, (options.epochs, 0))


def save(trials: list[Trial], settings: dict[str, Any], out: Path, place: tuple[int, int]) -> None:
    """Save everything, and that the training is in epoch ``place[0]`` before block ``place[1]``."""
    found = {trial.name: trial.state_dict() for trial in trials}
    torch.save({"settings": settings, "place": place, "trials": found}, out / "checkpoint.new")
    os.replace(out / "checkpoint.new", out / "checkpoint.pt")  # a kill leaves the old one or the new one, whole


def restore(trials: list[Trial], settings: dict[str, Any], out: Path) -> tuple[int, int]:
    """Load the last checkpoint if there is one, and return where the training is."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "checkpoint.pt").exists():
        return 0, 0
    found = torch.load(out / "checkpoint.pt", weights_only=True)
    if found["settings"] != settings:
        raise SystemExit(f"{out} holds a training with other settings or text; remove it, or use other --out")
    for trial in trials:
        trial.load_state_dict(found["trials"][trial.name])
    epoch, block = found["place"]
    done = epoch == settings["epochs"]
    print(f"{out}: done" if done else f"going on from block {block + 1} of epoch {epoch + 1}", flush=True)
    return epoch, block


def compile_kernels(text: Text, options: Options, momentum: float) -> None:
    """Take two steps that are thrown away, so that the training is timed and not the compiler, which runs once."""
    print("compiling (seconds the first time, then from the cache) ...", flush=True)
    batches = [as_tensors(batch, options) for batch in islice(Epoch(text, options, 0).batches(0), 2)]
    for name in ("RMSprop", "SparseAdam"):
        trial = Trial(name, text, options, 0.01, momentum)
        trial.train(batches)
        trial.ask(batches)


def tuned(learnt: Text, choosing: Text, options: Options, momentum: float, out: Path, every: int) -> dict[str, float]:
    """Return for each optimizer the learning rate with the lowest loss on the sentences held out for that."""
    losses: dict[str, dict[float, float]] = {"RMSprop": {}, "SparseAdam": {}}
    for rate in RATES:
        print(f"trying learning rate {rate} ...", flush=True)
        trials = [Trial(name, learnt, options, rate, momentum) for name in losses]
        train(trials, learnt, choosing, options, out / f"rate-{rate}", every)
        for trial in trials:
            losses[trial.name][rate] = trial.curve[-1][1]
    for name, found in losses.items():
        print(f"{name:>12}: " + ", ".join(f"{rate} {loss:.4f}" for rate, loss in found.items()))
    return {name: min(found, key=found.__getitem__) for name, found in losses.items()}


def draw(trials: list[Trial], path: Path) -> None:
    """Draw how soon the loss falls how far, and where the time goes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), width_ratios=[3, 2], layout="constrained")
    for trial in trials:
        left.plot(*zip(*trial.curve, strict=True), marker=".", label=f"{trial.name}, learning rate {trial.rate:g}")
    left.set(title="Loss on held-out docstrings", xlabel="seconds of training", ylabel="loss of a pair")
    left.grid(alpha=0.3)
    left.legend()
    names = [trial.name for trial in trials]
    passes = [1000 * trial.passes / trial.steps for trial in trials]
    stepping = [1000 * trial.stepping / trial.steps for trial in trials]
    for heights, bottom, colour, what in [
        (passes, 0, "0.75", "forward and backward pass"),
        (stepping, passes, ["C0", "C1"], "optimizer.step()"),
    ]:
        bars = right.bar(names, heights, bottom=bottom, color=colour, width=0.8)
        right.bar_label(bars, [f"{what}\n{height:.1f} ms" for height in heights], label_type="center", fontsize=9)
    right.set(title="Time for one batch", ylabel="ms")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def print_table(results: dict[str, dict[str, float]]) -> None:
    """Print results beside one another; AUC: how often a listed relative is nearer than a random word."""
    print(f"\n{'':>12} {'lr':>6} {'held-out loss':>14} {'AUC':>7} {'seconds':>8}   ms: passes + step")
    for name, told in results.items():
        print(
            f"{name:>12} {told['learning_rate']:>6g} {told['held_out_loss']:>14.4f} {told.get('auc', '-'):>7} "
            f"{told['seconds']:>8.1f} {told['ms_forward_backward']:>11.1f} + {told['ms_step']:.1f}"
        )


if __name__ == "__main__":
    main()
