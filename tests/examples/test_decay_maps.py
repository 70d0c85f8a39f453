"""Example decay_maps.py: maps near the truth, the same bits for the same seed, and robustness against outliers."""

import json
import sys

import numba
import numpy as np
import pytest
import safetensors.numpy
from example_programs import EXAMPLES, run_example

THREADS = numba.config.NUMBA_NUM_THREADS
SIZES = "--size", "24", "--echoes", "12", "--sample", "20"


def run(out, *options):
    return run_example("decay_maps.py", "--out", out, *SIZES, "--threads", 2, *options, NUMBA_NUM_THREADS="2")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted")
    done = run(out)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import decay_maps

    return decay_maps


def test_the_maps_are_near_the_truth(fitted, example):
    out, results = fitted
    maps = safetensors.numpy.load_file(out / "decay_maps.safetensors")
    truth = example.phantom(24).reshape(24, 24, 2)
    for k, name in enumerate(["amplitude", "tau"]):
        ratios = (maps[f"linear.{name}"] - truth[..., k]) / maps[f"linear.{name}_error"]
        assert np.abs(ratios).max() < 7  # Student's t with 10 degrees of freedom, 576 times
        assert 0.8 < np.std(ratios) < 1.3
    assert results["pixels"] == 24 * 24
    assert results["points"] == 24 * 24 * 12
    assert results["linear"]["converged"] == 1
    assert results["linear"]["median_error_percent"] < results["start_median_error_percent"] < 10
    assert 0.5 < results["linear"]["within_one_standard_error"] < 0.8
    assert (out / "decay_maps.png").stat().st_size > 10_000


def test_scipy_finds_the_same(fitted):
    scipy = fitted[1]["scipy"]
    assert (scipy["sample"], scipy["converged"]) == (20, 1)
    assert scipy["largest_difference"] < 0.01  # in standard errors
    assert scipy["seconds_extrapolated"] > 0


@pytest.mark.long
def test_the_same_seed_gives_the_same_bits(fitted, tmp_path):
    done = run(tmp_path, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "decay_maps.safetensors").read_bytes() == (fitted[0] / "decay_maps.safetensors").read_bytes()


@pytest.mark.long
def test_a_robust_loss_minds_outliers_less(tmp_path):
    done = run(tmp_path, "--outliers", "0.05")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["soft_l1"]["median_error_percent"] < 0.8 * results["linear"]["median_error_percent"]
    assert min(results[loss]["converged"] for loss in ("linear", "soft_l1")) > 0.99
    maps = safetensors.numpy.load_file(tmp_path / "decay_maps.safetensors")
    assert {name.split(".")[0] for name in maps} == {"linear", "soft_l1"}


def test_the_start_is_the_curve_where_there_is_no_noise(example):
    truth, times = example.phantom(10), np.arange(1.0, 13.0) * 20
    images = example.make_images(truth, times, 1e-12, 0.0, np.random.default_rng(1))
    np.testing.assert_allclose(example.log_linear(times, images), truth, rtol=1e-9)


def test_the_start_of_a_dark_pixel_is_finite(example):
    times = np.arange(1.0, 13.0) * 20
    start = example.log_linear(times, np.stack([np.zeros(12), np.full(12, -0.1), np.arange(12.0)]))
    assert np.isfinite(start).all()
    assert (start > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--echoes", "2"], "argument --echoes: expected a number from 3 to 1000, got 2"),
        (["--outliers", "2"], "argument --outliers: expected a number from 0 to 0.2, got 2"),
        (["--noise", "nan"], "argument --noise: expected a number from 1e-06 to 1, got nan"),
        (["--threads", "0"], f"argument --threads: expected a number from 1 to {THREADS}, got 0"),
        (["--threads", str(THREADS + 1)], f"expected a number from 1 to {THREADS}, got {THREADS + 1}"),
        (["--sample", "0"], "argument --sample: expected a number from 1 to 1e+09, got 0"),
    ],
)
def test_wrong_options_are_refused(example, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["decay_maps.py", *options])
    with pytest.raises(SystemExit, match="2"):
        example.parse_arguments()
    assert message in capsys.readouterr().err
