"""implicit's matrix factorisation (ALS and BPR), on the data and by the measures of recommender.py.

    python examples/compare_recommenders.py DATA

Needs implicit (``pip install implicit``). Each method takes, of the settings that are tried one after the other, those
with the best Recall@20 on a tenth of the training part that is held out; with them it learns the whole training part,
and is asked for the test part. Where the best of some numbers is at an edge, the search goes on beyond it. Prints a
table, and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import implicit.cpu.als
import implicit.cpu.bpr
import numba
import numpy as np
from parts.interactions import Interactions, InteractionsError, read_data
from parts.threads import threads
from parts.top_items import Recommender, recall_and_ndcg
from scipy.sparse import csr_array, csr_matrix
from tqdm import tqdm

Settings = dict[str, float]

STARTS: dict[str, Settings] = {
    "ALS": {"regularization": 0.1, "alpha": 4.0, "iterations": 15},
    "BPR": {"learning_rate": 0.05, "regularization": 0.01, "iterations": 100},
}
FACTORS: dict[str, float] = {"regularization": 4.0, "alpha": 3.0, "iterations": 2.0, "learning_rate": 2.0}
"""By what a setting is multiplied or divided to try another."""


def main() -> None:
    """Search, learn, and show what came out."""
    arguments = parse_arguments()
    try:
        data = read_data(arguments.data, "user", 0.2, -np.inf, 0)
    except InteractionsError as error:
        raise SystemExit(str(error)) from None
    items, found = len(data.items), {}
    print("| method | settings | Recall@20 | NDCG@20 | seconds, with asking |\n|---|---|---|---|---|")
    learnt, valid = data.train.parted_by_user(0.1, 1)  # as recommender.py --valid 0.1
    with threads() as pool:
        for name in arguments.methods:
            common = {"items": items, "arguments": arguments, "pool": pool}
            best, tried = search(partial(measure, name, train=learnt, asked=valid, **common), name)
            started = time.perf_counter()
            recall, ndcg = measure(name, best, train=data.train, asked=data.test, **common)
            seconds = time.perf_counter() - started
            found[name] = best | {"tried": tried, "recall@20": round(recall, 4), "ndcg@20": round(ndcg, 4)}
            found[name]["seconds"] = round(seconds, 1)
            settings = ", ".join(f"{key} {best[key]:g}" for key in best)
            print(f"| {name} | {settings} | {recall:.4f} | {ndcg:.4f} | {seconds:.1f} |", flush=True)
    print(json.dumps(found))


def parse_arguments() -> argparse.Namespace:
    """Return the options on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="what recommender.py reads")
    parser.add_argument("--methods", nargs="+", choices=STARTS, default=list(STARTS), help="(default: all)")
    parser.add_argument("--rank", type=int, default=64, help="numbers to a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    return parser.parse_args()


def search(measures: Callable[[Settings], tuple[float, float]], name: str) -> tuple[Settings, int]:
    """Return the settings with the best recall, one setting after the other, and how many were tried."""
    best = dict(STARTS[name])
    known: dict[tuple[float, ...], float] = {}

    def recall(settings: Settings) -> float:
        key = tuple(settings.values())
        if key not in known:
            known[key] = measures(settings)[0]
            bar.update()
            bar.set_postfix(best=f"{max(known.values()):.4f}", refresh=False)
        return known[key]

    with tqdm(desc=name, unit=" settings") as bar:
        before: Settings = {}
        while before != best:
            before = dict(best)
            for setting in best:
                for factor in (FACTORS[setting], 1 / FACTORS[setting]):
                    while recall(other := best | {setting: _times(best[setting], factor)}) > recall(best):
                        best = other
    return best, len(known)


def _times(value: float, factor: float) -> float:
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def measure(
    name: str,
    settings: Settings,
    *,
    train: Interactions,
    asked: Interactions,
    items: int,
    arguments: argparse.Namespace,
    pool: ThreadPoolExecutor,
) -> tuple[float, float]:
    """Learn with some settings; return Recall@20 and NDCG@20."""
    options: dict[str, Any] = settings | {
        "factors": arguments.rank,
        "random_state": arguments.seed,
        "num_threads": numba.get_num_threads(),
    }
    if name == "ALS":
        model = implicit.cpu.als.AlternatingLeastSquares(**options)
    else:
        model = implicit.cpu.bpr.BayesianPersonalizedRanking(**options)
    matrix = csr_matrix(
        csr_array((np.ones(len(train), np.float32), train.items, train.bounds), shape=(len(train.counts), items))
    )
    model.fit(matrix, show_progress=False)
    rows = Recommender(model.user_factors, model.item_factors, np.zeros(items, np.float32), train)
    return recall_and_ndcg(rows, asked, pool)


if __name__ == "__main__":
    main()
