"""Compile kernels ahead of the first step: ``python -m numba_rmsprop.compile``.

Numba compiles a kernel for the types of its first call, and keeps it in a folder for later processes. For an image of a
machine or a cluster, where every process would begin with that, this takes small steps and fits of the common kinds
beforehand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numba
import numpy as np
import scipy.sparse

from .arrays import storage
from .fitting.curve_fit_many import curve_fit_many
from .fitting.minimize_many import minimize_many
from .fitting.progress_bar import progress_bar
from .gradients.indexed_slices import IndexedSlices
from .gradients.sparse_product import SparseProduct
from .kernels.rows import step_rows
from .optimizer import RMSprop
from .runtime.launching import compile_loop

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "momentum+centered": {"momentum": 0.9, "centered": True},
    "averaged": {"use_ema": True},
    "averaged+momentum": {"use_ema": True, "momentum": 0.9},
    "rowwise": {"state": "rowwise"},
    "rowwise+momentum": {"state": "rowwise", "momentum": 0.9},
    "stochastic": {"rounding": "stochastic"},
    "rowwise+stochastic": {"state": "rowwise", "rounding": "stochastic"},
}
DTYPES = tuple(map(str, storage.DTYPES))
ROWS, COLUMNS = 2048, 8
"""A table of this size is launched on all threads, as large ones are."""

Step = tuple[str, Callable[..., object], tuple[Any, ...]]
"""What it is called, a function and its arguments."""


def numpy_steps(dtype: str, options: dict[str, Any]) -> Iterator[Step]:
    """Yield a step for each kind of gradient."""
    computed = storage.computed_in(np.dtype(dtype))
    table, ones = np.zeros((ROWS, COLUMNS), dtype), np.ones((ROWS, COLUMNS), computed)
    indices = np.arange(0, ROWS, 2)  # so that the other rows fall behind
    small = [(np.ones(3, computed), np.zeros(3, dtype)) for _ in range(2)]
    plain, clipped = RMSprop(**options), RMSprop(clipnorm=1.0, check_finite=True, **options)
    for opt, name in (clipped, ", clipped by norm and checked"), (plain, ""):
        yield f"dense{name}", opt.apply_gradients, ([(ones, table)],)
        yield f"small{name}", opt.apply_gradients, (small,)
        yield f"CSR{name}", opt.apply_gradients, ([(scipy.sparse.csr_array(ones), table)],)
        yield f"rows{name}", opt.apply_gradients, ([(IndexedSlices(ones[indices], indices), table)],)
    for name, weights in (("products", None), ("weighted products", ones[indices, 0])):
        product = SparseProduct.from_entries(ones, indices, indices, weights)
        yield name, plain.apply_gradients, ([(product, table)],)
        yield f"sums for {name}", plain.gather_sum, (table, indices, np.arange(len(indices)), weights)
    yield "gather", plain.gather, (table, indices + 1)
    yield "flush", plain.flush, ()


def fits(dtype: str) -> Iterator[Step]:
    """Yield fits, whose loop is the same for all functions."""

    @numba.njit
    def line(x: Any, slope: Any) -> Any:
        return slope * x

    @numba.njit
    def square(x: Any, row: Any) -> Any:
        return x[0] * x[0]

    points, start = np.ones((1, 3), dtype), np.ones((1, 1), dtype)
    yield "curve_fit_many", curve_fit_many, (line, points[0], points, start)
    yield "minimize_many", minimize_many, (square, start, ())


def torch_steps(dtype: str, options: dict[str, Any]) -> Iterator[Step]:
    """Yield a step of PyTorch's parameters: of an embedding with sparse gradients, and of a dense one."""
    import torch

    from .torch import RMSprop as TorchRMSprop

    table = torch.nn.Embedding(ROWS, COLUMNS, sparse=True, dtype=getattr(torch, dtype))
    dense = torch.nn.Parameter(torch.zeros(ROWS, COLUMNS, dtype=getattr(torch, dtype)))
    (table(torch.arange(ROWS)) * dense).sum().backward()
    options = {name: value for name, value in options.items() if name != "rounding"}  # it rounds to the nearest
    yield "PyTorch", TorchRMSprop([table.weight, dense], **options).step, ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the steps that the arguments ask for, with progress, and print where the compiled kernels are."""
    parser = argparse.ArgumentParser("python -m numba_rmsprop.compile", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="default: float32")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["plain", "momentum"], help="default: plain momentum"
    )
    parser.add_argument("--torch", action="store_true", help="also what a step of PyTorch's parameters needs")
    asked = parser.parse_args(arguments)
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        parser.error("nothing is compiled with NUMBA_DISABLE_JIT=1; unset it")
    kinds = [numpy_steps, torch_steps] if asked.torch else [numpy_steps]
    fitted = [dtype for dtype in asked.dtypes if np.dtype(dtype) in storage.COMPUTED]
    steps = [
        (f"{dtype}, {variant}: {name}", function, values)
        for dtype in asked.dtypes
        for variant in asked.variants
        for kind in kinds
        for name, function, values in kind(dtype, VARIANTS[variant])
    ]
    steps += [(f"{dtype}: {name}", call, values) for dtype in fitted for name, call, values in fits(dtype)]
    compile_loop()
    with progress_bar(find_spec("tqdm") is not None, total=len(steps), desc="compiling", unit="step") as bar:
        for name, function, values in steps:
            if bar is not None:
                bar.set_postfix_str(name)
            function(*values)
            if bar is not None:
                bar.update()
    kernel: Any = step_rows
    print(f"The compiled kernels lie in {kernel.stats.cache_path}")


if __name__ == "__main__":
    main()
