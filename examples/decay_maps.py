"""A map of decay times from a series of images, as in T2 mapping by MRI: one small fit to each pixel, all in one call.

    python examples/decay_maps.py                      200 x 200 pixels, 24 echoes: a million points
    python examples/decay_maps.py --outliers 0.02      some points are spoilt: least squares beside a robust loss

Each pixel's echoes decay as ``amplitude * exp(-t / tau)``, with normal noise. The images are made here, so the truth is
known. SciPy's curve_fit, in a loop over a sample of the pixels, starts at the same points and has the same derivatives;
its time for all pixels is extrapolated from the sample. It runs on one thread, and needs no compiling. Where there is
hardly more signal than noise (``--noise 0.3``), a third of the fits here do not converge, and nearly all of SciPy's do.

Writes the maps (safetensors) and a figure into the folder ``--out``, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numba
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from parts.options_and_files import number_from
from PIL import Image
from scipy import ndimage, optimize, stats
from tqdm import tqdm

from numba_rmsprop import curve_fit_many

mpl.use("Agg")  # a picture in a file needs no screen
import matplotlib.pyplot as plt

LAST_ECHO = 240.0
"""When the last echo comes, in ms; the others are evenly spaced before it."""

GROUND = 0.75, 90.0
REGIONS = (
    (0.0, 0.0, 0.92, 0.75, 0.9, 70.0),
    (-0.35, 0.0, 0.35, 0.22, 1.0, 160.0),
    (0.35, 0.05, 0.30, 0.20, 0.6, 45.0),
    (0.02, 0.48, 0.22, 0.12, 0.8, 110.0),
    (0.0, -0.45, 0.16, 0.16, 1.1, 35.0),
    (-0.4, 0.02, 0.12, 0.08, 1.1, 200.0),
)
"""Amplitude and decay time (ms) around the ellipses; and of each its centre, its half axes, and these two."""

SPIKE = 15.0
"""How far a spoilt point is off, in standard deviations of the noise."""

RHO = 0.999
STEPS = {"rho": RHO, "learning_rate": 2.0 * (1.0 - RHO) ** 0.5, "momentum": 0.5, "maxiter": 2000}
"""The first step is 2 of :func:`typical_sizes` long. With rho this near to 1, the mean square does not forget the first
slopes, so that steps shrink as the slopes do, and no schedule is needed. Rate and momentum were found by trying."""

GTOL = 1e-4
"""Under a thousandth of a standard error from the minimum, roughly (``largest_difference`` tells)."""


def decay(t: Any, amplitude: Any, tau: Any) -> Any:
    """Return the signal at time ``t``."""
    return amplitude * np.exp(-t / tau)


def decay_slopes(t: Any, amplitude: Any, tau: Any) -> Any:
    """Return its derivatives by amplitude and tau."""
    rest = np.exp(-t / tau)
    return rest, amplitude * rest * t / tau**2


compiled_decay, compiled_slopes = numba.njit(decay), numba.njit(decay_slopes)


def main() -> None:
    """Make the images, fit every pixel, and show what came out."""
    arguments = parse_arguments()
    numba.set_num_threads(arguments.threads)
    truth = phantom(arguments.size)
    times = LAST_ECHO * np.arange(1, arguments.echoes + 1) / arguments.echoes
    rng = np.random.default_rng(arguments.seed)
    images = make_images(truth, times, arguments.noise, arguments.outliers, rng)
    started = time.perf_counter()
    start = log_linear(times, images)
    results: dict[str, Any] = {
        "pixels": len(images),
        "points": images.size,
        "threads": arguments.threads,
        "seconds_start": round(time.perf_counter() - started, 3),
        "start_median_error_percent": error_percent(start, truth),
    }
    fits = {}
    for loss in ["linear", "soft_l1"] if arguments.outliers else ["linear"]:
        fits[loss], told = fit_timed(times, images, start, loss)
        results[loss] = told | {"median_error_percent": error_percent(fits[loss].popt, truth)}
    sample = rng.permutation(len(images))[: arguments.sample]
    results["scipy"] = compare(times, images, start, fits["linear"], sample)
    show(arguments.out, truth, times, images, fits, results)
    print(json.dumps(results))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    threads = numba.config.NUMBA_NUM_THREADS
    add("--size", type=number_from(2, int, 5000), default=200, help="pixels along each side (default: %(default)s)")
    add("--echoes", type=number_from(3, int, 1000), default=24, help="images of the series (default: %(default)s)")
    add("--noise", type=number_from(1e-6, float, 1), default=0.02, help="its standard deviation (default: %(default)s)")
    add("--outliers", type=number_from(0, float, 0.2), default=0.0, help="share of spoilt points (default: none)")
    add("--seed", type=number_from(0, int), default=1, help="the same seed gives the same bits (default: %(default)s)")
    add("--threads", type=number_from(1, int, threads), default=threads, help="default: NUMBA_NUM_THREADS, all cores")
    add("--sample", type=number_from(1, int), default=400, help="pixels that SciPy fits (default: %(default)s)")
    add("--out", type=Path, default=Path("demo"), help="folder for what is written (default: %(default)s)")
    return parser.parse_args()


def phantom(size: int) -> NDArray[np.float64]:
    """Return each pixel's true amplitude and decay time, shape (pixels, 2)."""
    y, x = np.meshgrid(np.linspace(1, -1, size), np.linspace(-1, 1, size), indexing="ij")
    truth = np.stack([GROUND[0] + 0.1 * x, GROUND[1] + 20.0 * y], axis=-1)
    for left, up, width, height, *inside in REGIONS:
        distance = np.hypot((x - left) / width, (y - up) / height)
        weight = 1 / (1 + np.exp(20 * (distance - 1)))  # no edge is sharp
        truth += weight[..., np.newaxis] * (inside - truth)
    return truth.reshape(-1, 2)


def make_images(
    truth: NDArray[np.float64], times: NDArray[np.float64], noise: float, outliers: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the echoes of each pixel, shape (pixels, echoes)."""
    signal = truth[:, :1] * np.exp(-times / truth[:, 1:])
    images = signal + rng.normal(0.0, noise, signal.shape)
    spoilt = rng.random(signal.shape) < outliers
    images[spoilt] += SPIKE * noise * rng.choice([-1.0, 1.0], np.count_nonzero(spoilt))
    return images


def log_linear(times: NDArray[np.float64], images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the amplitude and decay time of the straight line through the logarithms of each pixel's echoes.

    The echoes are first replaced by running medians of three, which a spoilt point hardly moves. The weights are their
    squares, since noise in a small one shifts its logarithm by more; those at or below 0 have none. Decay times are
    held within a twentieth of the first echo time and 20 times the last.
    """
    smooth = ndimage.median_filter(images, (1, 3), mode="nearest")
    tiny = np.finfo(np.float64).tiny
    weights = np.maximum(smooth, 0.0) ** 2
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), tiny)
    logs = np.log(np.maximum(smooth, tiny))
    middle = weights @ times
    centred = times - middle[:, np.newaxis]
    slope = (weights * centred * logs).sum(axis=1) / np.maximum((weights * centred**2).sum(axis=1), tiny)
    rate = np.clip(-slope, 0.05 / times[-1], 20 / times[0])
    return np.column_stack([np.exp((weights * logs).sum(axis=1) + rate * middle), 1 / rate])


def typical_sizes(
    times: NDArray[np.float64], images: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return by how much the noise makes each parameter uncertain, were the other one known; and the noise's size.

    The noise is that of all pixels. What a pixel's own residuals say would be much too large where the start is bad,
    and the first step would then lead far away.
    """
    amplitude, tau = start[:, :1], start[:, 1:]
    residuals = images - decay(times, amplitude, tau)
    # 1.48 medians of the absolute value are a standard deviation where noise is normal; outliers hardly move them.
    noise = 1.4826 * float(np.median(np.abs(residuals)))
    lengths = [np.sqrt((slope**2).sum(axis=1)) for slope in decay_slopes(times, amplitude, tau)]
    return noise / np.stack(lengths, axis=1), noise


def fit(times: Any, images: Any, start: Any, loss: str, progress: bool = False) -> Any:
    """Fit every pixel."""
    x_scale, noise = typical_sizes(times, images, start)
    return curve_fit_many(
        compiled_decay,
        times,
        images,
        start,
        jac=compiled_slopes,
        x_scale=x_scale,
        loss=loss,
        f_scale=noise,  # the linear loss has no use for it
        gtol=GTOL,
        progress=progress,
        **STEPS,
    )


def fit_timed(times: Any, images: Any, start: Any, loss: str) -> tuple[Any, dict[str, float]]:
    """Fit every pixel, after a first call with a few that compiles; return the fits, and what is to be told of them."""
    print(f"compiling ({loss}) ...", flush=True)
    with timed() as first_call:
        fit(times, images[:4], start[:4], loss)
    with timed() as whole:
        fits = fit(times, images, start, loss, progress=True)
    if (fits.status == 99).any():  # Ctrl-C
        raise SystemExit(f"interrupted: {np.count_nonzero(fits.status != 99)} of {len(images)} pixels were fitted")
    told = {
        "seconds_first_call": round(first_call[0], 2),
        "seconds": round(whole[0], 2),
        "converged": float(fits.success.mean()),
        "median_steps": float(np.median(fits.nit)),
        "most_steps": int(fits.nit.max()),
    }
    return fits, told


@contextmanager
def timed() -> Iterator[list[float]]:
    """Give a list that holds the seconds that the block took, once it has ended."""
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def compare(times: Any, images: Any, start: Any, fits: Any, sample: NDArray[np.int64]) -> dict[str, float]:
    """Fit a sample of the pixels in a loop with SciPy."""

    def slopes(t: Any, amplitude: Any, tau: Any) -> Any:
        return np.stack(decay_slopes(t, amplitude, tau), axis=1)

    # With NumPy's exp: compiled functions, called from Python with 24 numbers, took as long.
    popt = np.full((len(sample), 2), np.nan)
    with timed() as loop:
        for row, i in enumerate(tqdm(sample, desc="scipy.optimize.curve_fit", unit="fit")):
            try:
                popt[row], _ = optimize.curve_fit(decay, times, images[i], start[i], jac=slopes)
            except RuntimeError:  # it has not converged
                continue
    difference = np.abs(popt - fits.popt[sample]) / standard_errors(fits)[sample]
    return {
        "sample": len(sample),
        "converged": float(np.isfinite(popt).all(axis=1).mean()),
        "largest_difference": float(f"{np.nanmax(difference):.2g}"),
        "seconds_extrapolated": round(loop[0] / len(sample) * len(images), 1),
    }


def standard_errors(fits: Any) -> NDArray[np.float64]:
    """Return each parameter's reported standard error."""
    return np.sqrt(np.diagonal(fits.pcov, axis1=1, axis2=2))


def error_percent(parameters: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Return the median error of the decay time, in percent of the true one."""
    return round(float(100 * np.median(np.abs(parameters[:, 1] / truth[:, 1] - 1))), 3)


def show(out: Path, truth: Any, times: Any, images: Any, fits: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the maps and the figure, and print what was measured."""
    out.mkdir(parents=True, exist_ok=True)
    size = round(len(truth) ** 0.5)
    maps = {}
    for loss, found in fits.items():
        for k, name in enumerate(["amplitude", "tau"]):
            maps[f"{loss}.{name}"] = found.popt[:, k].reshape(size, size).copy()
            maps[f"{loss}.{name}_error"] = standard_errors(found)[:, k].reshape(size, size).copy()
        ratios = (found.popt[:, 1] - truth[:, 1]) / standard_errors(found)[:, 1]
        # 0.68 if the reported errors are right
        results[loss]["within_one_standard_error"] = round(float(np.mean(np.abs(ratios) < 1)), 3)
    safetensors.numpy.save_file(maps, out / "decay_maps.safetensors")
    draw(truth, times, images, fits, out / "decay_maps.png")
    for loss in fits:
        told = results[loss]
        print(
            f"{loss}: {told['seconds']} s ({told['seconds_first_call']} s before, to compile), "
            f"{100 * told['converged']:g} % converged, {told['median_steps']:g} steps (median), "
            f"decay times {told['median_error_percent']:g} % off (median)"
        )
    told = results["scipy"]
    print(
        f"scipy.optimize.curve_fit in a loop: {told['seconds_extrapolated']} s, extrapolated from {told['sample']} "
        f"pixels; parameters differ by {told['largest_difference']:g} standard errors at most"
    )
    print(f"maps and a figure: {out}")


def draw(truth: Any, times: Any, images: Any, fits: dict[str, Any], path: Path) -> None:
    """Draw true and fitted map, the error and what was reported of it, and three pixels."""
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.6), layout="constrained")
    size = round(len(truth) ** 0.5)
    loss, found = list(fits.items())[-1]  # the robust one, where there are two
    true, fitted, reported = truth[:, 1], found.popt[:, 1], standard_errors(found)[:, 1]
    top = 1.1 * true.max()
    width = np.percentile(reported, 98)
    what = "" if len(fits) == 1 else f", {loss}"
    for axis, values, title, options in [
        (axes[0, 0], true, "True decay time, ms", {"vmin": 0, "vmax": top}),
        (axes[0, 1], fitted, f"Fitted, ms{what}", {"vmin": 0, "vmax": top}),
        (axes[0, 2], fitted - true, f"Error, ms{what}", {"vmin": -2 * width, "vmax": 2 * width, "cmap": "RdBu_r"}),
        (axes[1, 2], reported, f"Reported standard error, ms{what}", {"vmin": 0, "vmax": width}),
    ]:
        colours = mpl.colormaps[options.pop("cmap", "viridis")].resampled(48)  # so that a palette can hold them
        picture = axis.imshow(values.reshape(size, size), cmap=colours, **options)
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(picture, ax=axis, shrink=0.9)
    fine = np.linspace(0, times[-1], 200)
    for share in (0.05, 0.5, 0.95):
        i = np.argsort(true)[int(share * (len(true) - 1))]
        (line,) = axes[1, 0].plot(fine, decay(fine, *found.popt[i]), label=f"tau {fitted[i]:.0f} ms")
        axes[1, 0].plot(times, images[i], ".", color=line.get_color())
    axes[1, 0].set(title=f"Three of {len(images):,} pixels{what}", xlabel="time, ms", ylabel="signal")
    axes[1, 0].legend()
    bins = np.linspace(-4, 4, 61)
    for name, each in fits.items():
        ratios = (each.popt[:, 1] - true) / standard_errors(each)[:, 1]
        axes[1, 1].hist(ratios, bins, density=True, histtype="step" if what else "bar", alpha=0.7, label=name)
    axes[1, 1].plot(bins, stats.norm.pdf(bins), "k--", label="normal")
    axes[1, 1].set(title="Error / reported standard error", yticks=[])
    axes[1, 1].legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    with Image.open(path) as picture:  # noise makes large files, a third of the size with a palette
        picture.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE).save(path)


if __name__ == "__main__":
    main()
