"""Draw a saved run of ratios.py: how many times longer each peer takes than numba_rmsprop.

python asv_benchmarks/chart.py [ratios.json] [ratios.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OURS, LIMIT = "numba_rmsprop", "limit"


def main() -> None:
    """Read, draw, save."""
    source, target = (*map(Path, sys.argv[1:]), HERE / "ratios.json", HERE / "ratios.png")[:2]
    run = json.loads(source.read_text(encoding="utf8"))
    bars = [
        (case["name"], peer, taken / case["microseconds"][OURS])
        for case in run["results"]
        for peer, taken in sorted(case["microseconds"].items(), key=lambda item: item[1])
        if OURS in case["microseconds"] and peer not in (OURS, LIMIT, "global_clipnorm")
    ]
    names = list(dict.fromkeys(name for name, _, _ in bars))
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.21 * (len(bars) + len(names))), layout="constrained")
    y, ticks = 0.0, []
    for name in names:
        axes.text(1.02, y, f"{name}: {micros(run, name)}", va="center", fontsize=8, fontweight="bold")
        for _, peer, ratio in (bar for bar in bars if bar[0] == name):
            y -= 1
            axes.barh(y, ratio - 1, left=1, color="#4477aa" if ratio >= 1 else "#cc6677", height=0.7)
            axes.text(
                max(ratio, 1) * 1.04, y, f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}", va="center", fontsize=7
            )
            ticks.append((y, peer))
        y -= 1.3
    axes.set_yticks([tick for tick, _ in ticks], [peer for _, peer in ticks], fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 4 * max(ratio for _, _, ratio in bars))
    axes.set_ylim(y, 1)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("time of a step, in steps of numba_rmsprop")
    about = run["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    figure.suptitle(
        f"{about['processor']}, {about['threads']} threads, Python {about['python']}\n{versions}", fontsize=7
    )
    figure.savefig(target, dpi=130)


def micros(run: dict[str, list[dict[str, dict[str, float]]]], name: str) -> str:
    """Return our own time of a case as people write it."""
    taken = next(case["microseconds"][OURS] for case in run["results"] if case["name"] == name)
    return f"{taken:,.1f} us" if taken < 1000 else f"{taken / 1000:,.1f} ms"


if __name__ == "__main__":
    main()
