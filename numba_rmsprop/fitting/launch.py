"""Independent fits, ready to run: the arrays of each worker, and the launch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.fits import loop as kernels
from ..kernels.fits.slopes import complex_steps
from ..kernels.fits.stopping import BEST, RAISED, STOPPED
from ..optimizer import RMSprop
from .limits import constants, has_momentum, learning_rates
from .shared_data import as_bounds, as_scale
from .workers import Workers

PADDING = 16
"""Elements at each end of a worker's arrays, so that no two workers write to one cache line."""


class Fits:
    """Independent fits that were checked and are ready to run.

    Parameters
    ----------
    functions : Functions
        What is called.
    x0 : ndarray, shape (fits, parameters)
        Where the fits start.
    data : tuple
        As :func:`numba_rmsprop.kernels.tuple_intrinsics.row_of` takes it.
    bounds, x_scale
        As :func:`~numba_rmsprop.minimize_many` takes them.
    name : str
        What messages call ``x0``.
    progress : str or None
        What the progress bar is called.
    """

    def __init__(
        self,
        functions: kernels.Functions,
        x0: FloatArray,
        data: tuple[Any, ...],
        *,
        bounds: Any,
        x_scale: Any,
        name: str = "x0",
        progress: str | None,
    ) -> None:
        self.functions = functions
        self.x0 = x0
        self.data = data
        self.workers = Workers(len(x0), progress)
        self._scale = as_scale(x_scale, x0)
        self._bounds = as_bounds(bounds, x0, name)
        self.spaces = [self._space() for _ in range(self.workers.count)]

    def run(self, optimizer: RMSprop, limits: kernels.Limits) -> kernels.Results:
        """Take the steps of all fits. Those that were not begun when Ctrl-C came have ``fun`` NaN."""
        fits, n = self.x0.shape
        results = kernels.Results(
            x=self.x0.copy(),
            fun=np.full(fits, np.nan),
            nit=np.zeros(fits, np.int64),
            status=np.full(fits, STOPPED, np.int8),
            triangles=np.full((fits, n, n), np.nan) if self.functions.loss else None,
        )
        rates, numbers = learning_rates(optimizer, limits.maxiter), constants(optimizer, self.x0.dtype)
        limits = limits._replace(highest_rate=float(rates.max()))
        scratch = [self._scratch(optimizer) for _ in self.spaces]

        def share(worker: int, counters: NDArray[np.int64], stop: NDArray[np.int64]) -> None:
            fixed = self.functions, self.data, self.spaces[worker], rates, numbers, limits, results
            try:
                kernels.run_fits(*fixed, scratch[worker], worker, counters, stop)
            except Exception:
                _keep_best(results, scratch[worker])
                raise

        self._share_out(share, scratch)
        for i in self.workers.errors:
            results.status[i] = RAISED
        return results

    def _share_out(self, share: Any, scratch: list[kernels.Scratch]) -> None:
        try:
            share(0, np.zeros((1, 8), np.int64), np.ones((1, 8), np.int64))  # compiles, and stops before the first fit
        except Exception as error:  # not only Numba's: NotImplementedError, for a comparison of complex numbers
            raise TypeError(f"the functions cannot be compiled for these arguments: {error}") from error
        self.workers.run(share, [own.current for own in scratch])

    def _array(self, dtype: Any = None) -> NDArray[Any]:
        n = self.x0.shape[1]
        return np.zeros(n + 2 * PADDING, dtype or self.x0.dtype)[PADDING : PADDING + n]

    def _space(self) -> kernels.Space:
        real = self.x0.dtype.type
        complex_type = np.complex64 if real == np.float32 else np.complex128
        return kernels.Space(
            self._scale,
            *self._bounds,
            shifted=self._array(complex_type) if self.functions.slopes is complex_steps else None,
            slopes=self._array(),
            lengths=np.zeros(self.x0.shape[1] + 1 + 2 * PADDING)[PADDING:-PADDING] if self.functions.loss else None,
            # Far below what a sum of squares can tell from 0, and a power of 2, so that dividing by it is exact.
            complex_step=real(2.0**-50 if real == np.float32 else 2.0**-330),
            relative_step=real(np.finfo(real).eps ** (1 / 3)),
        )

    def _scratch(self, optimizer: RMSprop) -> kernels.Scratch:
        return kernels.Scratch(
            x=self._array(),
            scaled=self._array()[np.newaxis],
            scale=self._array(),
            gradient=self._array(),
            best=self._array(),
            rms=self._array()[np.newaxis],
            mg=self._array()[np.newaxis] if optimizer.centered else None,
            momentum=self._array()[np.newaxis] if has_momentum(optimizer) else None,
            progress=np.zeros(3 + 2 * PADDING)[PADDING : PADDING + 3],
            current=np.zeros(2 + 2 * PADDING, np.int64)[PADDING : PADDING + 2],
        )


def _keep_best(results: kernels.Results, scratch: kernels.Scratch) -> None:
    """Write the best point of a fit in which a function raised, as those that end by themselves do."""
    i, lowest = scratch.current[0], scratch.progress[BEST]
    results.x[i] = scratch.best
    results.fun[i] = lowest if np.isfinite(lowest) else np.nan
    results.nit[i] = scratch.current[1]
