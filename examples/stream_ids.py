"""A stream of clicks whose users come and go: a row for each id, beside the hashing trick in the same memory.

    python examples/stream_ids.py

Each event is a user, an item, and whether the user clicked. The stream is made, with a fixed seed: the taste of a user
is a fixed function of its id, new users come at every step, and the longer ago one came, the rarer it gets (Zipf). A
logistic factorisation learns in one pass. It predicts each batch before it learns from it; the area under the ROC curve
of these predictions is what counts. Three tables of rows take part:

- ``keyed``: a KeyedTable that drops the rows that were not touched for longest, beyond ``--rows``;
- ``hashed``: as many rows, which ids share by their hash;
- ``all``: a KeyedTable that keeps every id.

Writes a figure and the numbers into the folder ``--out``. Ctrl-C ends the stream, and shows what it has come to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from parts.options_and_files import number_from, replacing
from tqdm import tqdm

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.keyed import KeyedTable, Uniform

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

FACTORS, ITEMS, BLOCK = 4, 5000, 50
"""Factors of the model, items, and steps to a point of the figure."""

TRAINING = {"learning_rate": 0.01, "rho": 0.999, "bias_correction": True}
FIRST = Uniform(-0.1, 0.1, FACTORS + 1, seed=1)
"""The first values of a row: factors, and last a bias."""


@dataclasses.dataclass
class Stream:
    """Events: users who come and go, items, and clicks."""

    batch: int
    arrivals: int
    seed: int = 0

    def events(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool]]:
        """Return keys of users and items, and the clicks of a step; even keys are users."""
        rng = np.random.default_rng([self.seed, step])
        newest = 1000 + self.arrivals * step
        users = 2 * scrambled(newest - zipf(rng, newest, self.batch))
        items = 2 * scrambled(zipf(rng, ITEMS, self.batch)) + 1
        ours, theirs = taste(users), taste(items)
        logits = 6 * (ours[:, 1:] * theirs[:, 1:]).sum(axis=1) + 3 * (ours[:, 0] + theirs[:, 0])
        return users, items, rng.random(self.batch) < 1 / (1 + np.exp(-logits))


def zipf(rng: np.random.Generator, count: int, size: int) -> NDArray[np.int64]:
    """Return numbers below ``count``, each about as often as 1 / (1 + number)."""
    return (count ** rng.random(size) - 1).astype(np.int64)


def scrambled(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return different ids of 61 bits for different numbers, as they come from a database."""
    return (numbers * 0x9E3779B97F4A7C1) % 2**61


def taste(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the true factors of users or items."""
    return Uniform(-0.7, 0.7, 4, seed=99)(keys)


class Hashed:
    """The hashing trick: a table of fixed size, in which ids share rows."""

    def __init__(self, rows: int) -> None:
        self._values = FIRST(np.arange(rows)).astype(np.float32)
        self._optimizer = RMSprop(**TRAINING)

    def __len__(self) -> int:
        return len(self._values)

    def _rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        return (keys * 0x5851F42D4C957F2D >> 20) % len(self)

    def gather(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of keys."""
        return self._optimizer.gather(self._values, self._rows(keys))

    def apply_gradients(self, keys: NDArray[np.int64], values: NDArray[np.float32]) -> int:
        """Take a step."""
        return self._optimizer.apply_gradients([(IndexedSlices(values, self._rows(keys)), self._values)])


def learn(table: KeyedTable | Hashed, keys: NDArray[np.int64], clicks: NDArray[np.bool]) -> NDArray[np.float32]:
    """Predict the clicks of a batch, and then take a step with them; return the predictions, as logits."""
    rows = table.gather(keys)
    users, items = rows.reshape(2, len(clicks), FACTORS + 1)
    logits = (users[:, :-1] * items[:, :-1]).sum(axis=1) + users[:, -1] + items[:, -1]
    errors = (1 / (1 + np.exp(-logits)) - clicks).astype(np.float32)[:, np.newaxis]
    grads = np.empty_like(rows).reshape(2, len(clicks), FACTORS + 1)
    grads[0, :, :-1], grads[1, :, :-1] = errors * items[:, :-1], errors * users[:, :-1]
    grads[:, :, -1:] = errors
    table.apply_gradients(keys, grads.reshape(rows.shape))
    return logits


def area(logits: NDArray[np.float32], clicks: NDArray[np.bool]) -> float:
    """Return the area under the ROC curve: how often a click has the higher logit than none."""
    order = np.argsort(logits, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    ones = int(clicks.sum())
    return float((ranks[clicks].sum() - ones * (ones + 1) / 2) / (ones * (len(clicks) - ones)))


def run(stream: Stream, steps: int, rows: int, *, progress: bool) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Go through the stream once; return the areas and numbers of rows of each table, and how many steps were taken."""
    tables: dict[str, KeyedTable | Hashed] = {
        "keyed": KeyedTable(FACTORS + 1, initializer=FIRST, **TRAINING),
        "hashed": Hashed(rows),
        "all": KeyedTable(FACTORS + 1, initializer=FIRST, **TRAINING),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"auc": [], "rows": [], "seconds": [0.0]} for name in tables}
    predicted: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tables}
    truth: list[NDArray[np.bool]] = []
    step = 0
    try:
        for step in tqdm(range(1, steps + 1), disable=not progress, unit="step"):
            users, items, clicks = stream.events(step)
            keys = np.concatenate([users, items])
            truth.append(clicks)
            for name, table in tables.items():
                began = time.perf_counter()
                predicted[name].append(learn(table, keys, clicks))
                if name == "keyed" and isinstance(table, KeyedTable) and len(table) > rows:
                    table.evict(max_rows=rows - rows // 10)
                found[name]["seconds"][0] += time.perf_counter() - began
            if step % BLOCK == 0:
                for name, table in tables.items():
                    found[name]["auc"].append(area(np.concatenate(predicted[name]), np.concatenate(truth)))
                    found[name]["rows"].append(len(table))
                    predicted[name].clear()
                truth.clear()
    except KeyboardInterrupt:
        print("\ninterrupted; this is what it has come to:", flush=True)
    return found, step


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw areas and rows over the steps."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    labels = {"keyed": "a row for each id, old ones evicted", "hashed": "hashing trick", "all": "all rows kept"}
    for name, label in labels.items():
        steps = BLOCK * np.arange(1, len(found[name]["auc"]) + 1)
        above.plot(steps, found[name]["auc"], label=label)
        below.plot(steps, found[name]["rows"], label=label)
    above.set_ylabel("AUC of predictions\nbefore learning")
    above.legend()
    below.set_ylabel("rows")
    below.set_yscale("log")
    below.set_xlabel("steps")
    with replacing(path) as new:
        figure.savefig(new, dpi=120, format="png")
    plt.close(figure)


def main() -> None:
    """Make the stream, go through it, and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=number_from(BLOCK, int), default=2000)
    parser.add_argument("--batch", type=number_from(16, int), default=4096, help="events of a step")
    parser.add_argument("--arrivals", type=number_from(1, int), default=500, help="new users of a step")
    parser.add_argument("--rows", type=number_from(100, int), default=50_000, help="of the table that evicts")
    parser.add_argument("--seed", type=number_from(0, int), default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write into")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stream = Stream(arguments.batch, arguments.arrivals, arguments.seed)
    print("compiling (seconds the first time, then from the cache) ...", flush=True)
    run(stream, 2, arguments.rows, progress=False)
    found, steps = run(stream, arguments.steps, arguments.rows, progress=True)
    draw(found, arguments.out / "stream_ids.png")
    late = {name: {key: series[len(series) // 2 :] for key, series in each.items()} for name, each in found.items()}
    results = {
        name: {
            "auc_in_second_half": round(float(np.mean(each["auc"])), 4) if each["auc"] else None,
            "rows": int(each["rows"][-1]) if each["rows"] else None,
            "seconds": round(found[name]["seconds"][0], 1),
        }
        for name, each in late.items()
    }
    print(json.dumps({"steps": steps, "events": steps * arguments.batch} | results))


if __name__ == "__main__":
    main()
