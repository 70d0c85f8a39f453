"""Example nist.py, on a file in NIST's format whose certified values come from SciPy."""

import json

import numpy as np
import pytest
from example_programs import run_example
from scipy.optimize import curve_fit


def danwood(x, b1, b2):
    return b1 * x**b2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a file of NIST's format: sixty lines of header, then the data."""
    x = np.linspace(1.3, 2.0, 8)
    y = danwood(x, 0.8, 3.5) + np.random.default_rng(0).normal(0.0, 0.02, x.size)
    starts = [1.0, 0.7], [5.0, 4.0]
    best, covariance = curve_fit(danwood, x, y, [0.8, 3.5], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    lines = ["NIST/ITL StRD", *[""] * 39, "        Start 1     Start 2           Parameter     Standard Deviation"]
    for k, (first, second) in enumerate(starts):
        error = np.sqrt(covariance[k, k])
        lines.append(f"  b{k + 1} =   {first}           {second}          {best[k]:.10E}  {error:.10E}")
    lines += [""] * (59 - len(lines)) + ["Data:   y               x"]
    lines += [f"      {a!r}      {b!r}" for a, b in zip(y.tolist(), x.tolist(), strict=True)]
    path = tmp_path_factory.mktemp("nist")
    (path / "DanWood.dat").write_text("\r\n".join(lines) + "\r\n", encoding="ascii")
    return path


def test_it_finds_the_certified_digits(folder, tmp_path):
    finished = run_example("nist.py", "--data", folder, "--only", "DanWood", "--out", tmp_path / "table.json")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((tmp_path / "table.json").read_text(encoding="utf8"))
    assert [row["start"] for row in rows] == [1, 2]
    for row in rows:
        assert row["converged"]
        assert row["digits"] > 7
        assert row["digits of errors"] > 5
        assert row["curve_fit"] > 5
    assert "from start 2: RMSprop 1, curve_fit 1 of 1" in finished.stdout


def test_missing_files_are_named(tmp_path):
    finished = run_example("nist.py", "--data", tmp_path)
    assert finished.returncode == 2
    assert "Misra1a.dat" in finished.stderr
    assert "27 of 27" in finished.stderr
