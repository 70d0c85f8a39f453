"""The memory and the launch of many fits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.fits.arguments import Functions, Lines, Results, Scratch, SlopeScratch
from ..kernels.fits.evaluator import evaluator_of
from ..kernels.fits.loop import run_fits
from ..kernels.fits.slopes import complex_steps
from ..kernels.fits.stopping import LOWEST, RAISED, STOPPED, StoppingRule
from ..kernels.jit import ONE_THREAD
from ..kernels.numba_cache import tell_if_slow
from ..optimizer import RMSprop
from ..runtime.launching import new_counters, threads_now
from .many_options import fit_numbers
from .progress_bar import load_tqdm, progress_bar
from .workers import run_workers

PADDING = 16
"""Elements at each end of a worker's arrays, so that no two workers write to one cache line."""


class ManyFits:
    """Independent fits, checked and ready to run.

    Parameters
    ----------
    functions : Functions
    x0 : ndarray, shape (fits, parameters)
        The starts.
    data : tuple
        See :func:`numba_rmsprop.kernels.tuple_intrinsics.row_of`.
    lines : Lines
    progress : str or None
        The name of the progress bar; None for no bar.

    Attributes
    ----------
    errors : dict
        What a function raised, by the index of the fit.
    """

    def __init__(
        self, functions: Functions, x0: FloatArray, data: tuple[Any, ...], lines: Lines, progress: str | None
    ) -> None:
        if progress is not None:
            load_tqdm()  # here, so that it does not fail after seconds of compiling
        self.functions = functions
        self.x0 = x0
        self.data = data
        self.lines = lines
        self.errors: dict[int, Exception] = {}
        self._progress = progress

    def run(self, optimizer: RMSprop, rule: StoppingRule) -> Results:
        """Run all fits. Those that Ctrl-C leaves out have ``fun`` NaN."""
        fits, n = self.x0.shape
        workers = 1 if ONE_THREAD else max(1, min(threads_now(), fits))
        numbers = fit_numbers(optimizer, rule.maxiter, self.x0.dtype)
        scratch = [self._scratch(optimizer) for _ in range(workers)]
        counters, stop = new_counters(workers), np.zeros((1, 8), np.int64)
        counters[:] = 0
        results = Results(
            x=self.x0.copy(),
            fun=np.full(fits, np.nan),
            nit=np.zeros(fits, np.int64),
            status=np.full(fits, STOPPED, np.int8),
            triangles=np.full((fits, n, n), np.nan) if self.functions.loss else None,
        )
        began = time.monotonic()
        try:
            evaluators = [evaluator_of(self.functions, self.data, each, results.triangles) for each in scratch]
        except Exception as error:  # not only Numba's: NotImplementedError, for a comparison of complex numbers
            raise TypeError(f"the functions cannot be compiled for these arguments: {error}") from error
        # The loop is compiled once for all functions, so it sees nothing that depends on them.
        fixed = self.lines, numbers, rule, results._replace(triangles=None)
        plain = [each._replace(slopes=each.slopes._replace(shifted=None)) for each in scratch]
        # Compiles, and returns before the first fit.
        run_fits(evaluators[0][0], *fixed, plain[0], 0, counters, np.ones_like(stop))
        tell_if_slow(began, "Functions to fit are compiled anew in each process.")

        def work(worker: int) -> None:
            while True:
                try:
                    with np.errstate(all="ignore"):  # like compiled code, for NUMBA_DISABLE_JIT
                        run_fits(evaluators[worker][0], *fixed, plain[worker], worker, counters, stop)
                except Exception as error:  # noqa: BLE001 - the user's functions may raise anything
                    self._note_error(error, results, scratch[worker])
                else:
                    return

        def ended() -> int:
            return int(np.count_nonzero(results.status != STOPPED))

        with progress_bar(self._progress is not None, total=fits, unit="fit", desc=self._progress) as bar:
            run_workers(work, workers, stop, bar, ended)
        return results

    def _note_error(self, error: Exception, results: Results, scratch: Scratch) -> None:
        """End the fit in which a function raised, with the best point before."""
        i, lowest = int(scratch.current[0]), scratch.progress[LOWEST]
        # The traceback holds the frames, and with them all data.
        self.errors[i] = error.with_traceback(None)
        results.x[i] = scratch.best
        results.fun[i] = lowest if np.isfinite(lowest) else np.nan
        results.nit[i] = scratch.current[1]
        results.status[i] = RAISED

    def _scratch(self, optimizer: RMSprop) -> Scratch:
        n, real = self.x0.shape[1], self.x0.dtype.type
        present = (slot in optimizer.slot_names for slot in optimizer.rule.slots)
        slots = [_padded(n, real)[np.newaxis] if there else None for there in present]
        complex_type = np.result_type(real, np.complex64)
        return Scratch(
            SlopeScratch(
                scale=_padded(n, real),
                lower=_padded(n, real),
                upper=_padded(n, real),
                gradient=_padded(n, real),
                shifted=_padded(n, complex_type) if self.functions.slopes is complex_steps else None,
                point_slopes=_padded(n, real),
                squares=_padded(n + 1, np.float64) if self.functions.loss else None,
                complex_step=complex_step_of(self.x0.dtype),
                relative_step=real(np.finfo(real).eps ** (1 / 3)),
            ),
            x=_padded(n, real),
            state=(_padded(n, real)[np.newaxis], *slots, None),
            best=_padded(n, real),
            progress=_padded(3, np.float64),
            current=_padded(2, np.int64),
        )


def complex_step_of(dtype: np.dtype[Any]) -> Any:
    """Return the step of slopes by complex steps.

    It is far below the rounding of a sum of squares, and a power of 2, so that dividing by it is exact.
    """
    return dtype.type(2.0**-50 if dtype == np.float32 else 2.0**-330)


def _padded(size: int, dtype: Any) -> NDArray[Any]:
    """Return zeros on cache lines of their own."""
    return np.zeros(size + 2 * PADDING, dtype)[PADDING : PADDING + size]
