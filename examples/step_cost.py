"""What a step costs: the README's numbers, on your machine.

python examples/step_cost.py
NUMBA_CACHE_DIR=$(mktemp -d) python examples/step_cost.py    the first line, with nothing compiled yet
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from numba_rmsprop import IndexedSlices, RMSprop

ROWS, COLUMNS, INDICES = 1_000_000, 64, 4096


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Print the first steps' times, then medians of steps taken in turn."""
    rng = np.random.default_rng(0)
    small = np.zeros((ROWS // 1000, COLUMNS), np.float32)
    for count in (2, 500):
        grad = IndexedSlices(np.ones((count, COLUMNS), np.float32), np.arange(count))
        taken = seconds(lambda grad=grad: RMSprop().apply_gradients([(grad, small)]))
        print(f"first step on {count:>3} rows: {taken:.2f} s")

    zipf = rng.zipf(1.2, 10 * INDICES) - 1
    indices = rng.permutation(ROWS)[zipf[zipf < ROWS][:INDICES]]
    grad = IndexedSlices(rng.standard_normal((INDICES, COLUMNS), np.float32), indices)
    zero_filled = np.zeros((ROWS, COLUMNS), np.float32)
    np.add.at(zero_filled, indices, grad.values)
    tables = [np.ones((ROWS, COLUMNS), np.float32) for _ in range(3)]
    plain, with_momentum, dense = RMSprop(rho=0.99), RMSprop(rho=0.99, momentum=0.9), RMSprop(rho=0.99)
    calls: dict[str, Callable[[], object]] = {
        "sparse step": lambda: plain.apply_gradients([(grad, tables[0])]),
        "gather, and sparse step with momentum": lambda: (
            with_momentum.gather(tables[1], indices),
            with_momentum.apply_gradients([(grad, tables[1])]),
        ),
        "dense step": lambda: dense.apply_gradients([(zero_filled, tables[2])]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(16):
        for name, call in calls.items():
            call()
            times[name].extend(seconds(call) for _ in range(5))
    for name, taken_each in times.items():
        print(f"{name:>38}: {1000 * np.median(taken_each[5:]):8.3f} ms")


if __name__ == "__main__":
    main()
