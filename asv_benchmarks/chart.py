"""Draw six cases of a saved run of ratios.py: how many times longer other libraries take than numba_rmsprop.

python asv_benchmarks/chart.py [ratios.json] [ratios.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OURS, FUSED, LIMIT = "numba_rmsprop", "numba_rmsprop.torch fused", "limit"
CASES = {
    "dense, 1,000,000": "A dense step, 1,000,000 elements",
    "dense, 100 variables of 1,000": "A dense step, 100 variables of 1,000",
    "rows, 4,096 Zipf of 1,000,000 x 64": "4,096 rows of a table of 1,000,000 x 64",
    "rows, 65,536 Zipf of 1,000,000 x 64": "65,536 rows of a table of 1,000,000 x 64",
    "bags: 3,276 of 20": "Training in PyTorch, 3,276 bags of 20",
    "bags: 8 tables, 2,048 of 10": "The same with 8 tables, 2,048 bags of 10",
}
"""The cases that most people have, and what they are called; the table in docs/measured.md has all."""

NAMES = {
    "torch": "torch RMSprop",
    "torch foreach": "torch RMSprop, foreach",
    "optax": "optax, jitted",
    "tensorflow": "TensorFlow",
    "fbgemm Adagrad": "FBGEMM Adagrad",
    "fbgemm row-wise Adagrad": "FBGEMM row-wise Adagrad",
    "fbgemm row-wise RMSprop": "FBGEMM row-wise RMSprop",
    "torch SparseAdam": "torch SparseAdam",
}


def main() -> None:
    """Read, draw, save."""
    source, target = (*map(Path, sys.argv[1:]), HERE / "ratios.json", HERE / "ratios.png")[:2]
    run = json.loads(source.read_text(encoding="utf8"))
    results = {result["name"]: result["microseconds"] for result in run["results"]}
    chosen = [name for name in CASES if name in results] or list(results)[:6]
    figure, axes = plt.subplots(3, 2, figsize=(11, 6.4), layout="constrained")
    for panel, name in zip(axes.flat, chosen, strict=False):
        draw(panel, CASES.get(name, name), results[name])
    for panel in axes.flat[len(chosen) :]:
        panel.set_axis_off()
    figure.supxlabel("how many times longer a step takes", fontsize=9)
    figure.suptitle(title(run["machine"]), fontsize=8, color="0.4")
    figure.savefig(target, dpi=110)


def draw(panel: Any, name: str, microseconds: dict[str, float]) -> None:
    """Draw a case: a bar for each peer, and a line for us."""
    ours = microseconds.get(FUSED, microseconds.get(OURS))
    if ours is None:
        ours = next(iter(microseconds.values()))
    ratios = {NAMES[peer]: taken / ours for peer, taken in microseconds.items() if peer in NAMES}
    for place, (peer, ratio) in enumerate(sorted(ratios.items(), key=lambda item: -item[1])):
        color = "#4477aa" if ratio >= 1 else "#cc6677"
        panel.barh(place, ratio - 1, left=1, color=color, height=0.65)
        panel.text(
            max(ratio, 1) * 1.07, place, f"{ratio:.1f}" if ratio < 20 else f"{ratio:,.0f}", va="center", fontsize=8
        )
        panel.text(0.42, place, peer, va="center", ha="right", fontsize=8)
    panel.axvline(1, color="black", linewidth=1)
    panel.set_xscale("log")
    panel.set_xlim(0.5, 3 * max(2.0, *ratios.values()) if ratios else 2)
    panel.set_title(f"{name}: {micros(ours)} here", fontsize=8.5, loc="left", fontweight="bold")
    panel.set_yticks([])
    panel.minorticks_off()
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right", "left"]].set_visible(False)


def title(about: dict[str, Any]) -> str:
    """Return what the numbers depend on."""
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return f"{about['processor']}, {about['threads']} threads, Python {about['python']}: {versions}"


def micros(taken: float) -> str:
    """Return a time as people write it."""
    return f"{taken:,.0f} us" if taken < 1000 else f"{taken / 1000:,.1f} ms"


if __name__ == "__main__":
    main()
