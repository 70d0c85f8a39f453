"""Example sparse_classifier.py: the gradient, the words it keeps, the same bits for the same seed, Ctrl-C."""

import json
import os
import re
import signal

import numpy as np
import pytest
import safetensors.numpy
from example_programs import EXAMPLES, run_example, start_example
from processes import finish
from scipy.sparse import csr_array

from numba_rmsprop import RMSprop, SparseProduct

WORDS = {
    "cats": ["purr", "mouse", "whiskers", "climbs", "sofa", "night"],
    "dogs": ["bark", "bone", "leash", "fetches", "kennel", "postman"],
}
DOCSTRING = '''
def pet_{number}():
    """Animal {words} with us.

    As in pets.cats.from_dotted_name, pets and dogs and cats.

    See Also
    --------
    from_see_also : of {name}

    Notes
    -----
    Lives long.
    """
'''


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "pets"
    rng = np.random.default_rng(1)
    for name, words in WORDS.items():
        (folder / name).mkdir(parents=True)
        drawn = [" ".join(rng.permutation(words)[:4]) for _ in range(40)]
        texts = [DOCSTRING.format(number=i, words=text, name=name) for i, text in enumerate([*drawn, drawn[0]])]
        (folder / name / "animals.py").write_text("".join(texts), encoding="utf8")
    return folder


def arguments(packages, out, *options):
    return ["--packages", packages, "--out", out, "--fewest", "5", "--epochs", "2", "--batch", "16", *options]


def run(*options):
    return run_example("sparse_classifier.py", *arguments(*options))


@pytest.fixture(scope="module")
def trained(packages, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    done = run(packages, out)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


def test_the_same_seed_gives_the_same_bits(packages, trained, tmp_path):
    tables = [(trained[0] / "classifier.safetensors").read_bytes()]
    for out, seed in [("same", "1"), ("other", "2")]:
        done = run(packages, tmp_path / out, "--seed", seed)
        assert done.returncode == 0, done.stderr
        tables.append((tmp_path / out / "classifier.safetensors").read_bytes())
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_it_learns_and_shows_it(packages, trained):
    out, results = trained
    names = json.loads((out / "classifier.json").read_text(encoding="utf8"))
    assert names["classes"] == ["pets.cats", "pets.dogs"]
    around = ["animal", "with", "us", "as", "in", "and", "notes", "lives", "long"]
    assert sorted(names["words"]) == sorted([*WORDS["cats"], *WORDS["dogs"], *around])  # no word names the class
    weights = safetensors.numpy.load_file(out / "classifier.safetensors")["weights"]
    assert weights.shape == (len(names["words"]), 2)
    read = {line for path in packages.rglob("*.py") for line in path.read_text(encoding="utf8").splitlines()}
    assert results["docstrings"] == sum("Animal" in line for line in read)  # duplicates are dropped
    assert not results["interrupted"]
    assert results["numba_rmsprop"]["accuracy"] > 0.9  # the classes share no typical word
    assert results["numba_rmsprop"]["epochs"] == 2
    assert (out / "classifier.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "argument --batch: expected a number from 1 to 1e+09, got 0"),
        (["--rho", "nan"], "argument --rho: expected a number from 0 to 1, got nan"),
        (["--packages", "nowhere"], "argument --packages: expected a folder of a Python package, got nowhere"),
        (["--fewest", "1000"], "expected at least 2 subpackages with 1000 docstrings, got 0"),
    ],
)
def test_wrong_options_are_refused(packages, tmp_path, options, message):
    done = run(packages, tmp_path, *options)
    assert done.returncode in (1, 2)
    assert message in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process")
def test_an_interrupted_training_shows_what_it_has(packages, tmp_path):
    training = start_example("sparse_classifier.py", *arguments(packages, tmp_path, "--epochs", "1000000"))
    shown = b""
    while not re.search(rb"\w docstrings/s", shown):  # the progress bar; before the first batch, it shows "?"
        shown += os.read(training.stderr.fileno(), 1000) or pytest.fail(f"ended by itself: {shown}")
    training.send_signal(signal.SIGINT)
    done = finish(training)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["interrupted"]
    assert results["numba_rmsprop"]["accuracy"] > 0.9
    assert safetensors.numpy.load_file(tmp_path / "classifier.safetensors")["weights"].any()


class Noted:
    """Stand-in for the optimizer that keeps the gradients."""

    def multiply(self, matrix, var):
        return matrix @ var

    def apply_gradients(self, pairs):
        self.gradients = [grad for grad, _ in pairs]


def as_dense(gradient, var):
    if isinstance(gradient, SparseProduct):
        dense, slices = np.zeros_like(var), gradient.to_slices()
        np.add.at(dense, slices.indices, slices.values)
        return dense
    return gradient


@pytest.fixture
def regression(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from parts import softmax_regression

    return softmax_regression


def random_rows(regression, rng, documents, words):
    features = np.where(rng.random((documents, words)) < 0.3, rng.standard_normal((documents, words)), 0)
    return regression.Rows(csr_array(features.astype(np.float32)), rng.integers(0, 3, documents), 3)


def test_the_gradient_is_that_of_the_mean_loss(regression):
    rng = np.random.default_rng(1)
    rows = random_rows(regression, rng, 5, 8)
    features = rows.features = rows.features.astype(np.float64)
    model, noted = regression.Model(rows), Noted()
    model.weights, model.bias = rng.standard_normal((8, 3)), rng.standard_normal(3)

    def loss():
        scores = features @ model.weights + model.bias
        return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(5), rows.labels])

    regression.train_batch(noted, model, rows)
    touched = np.unique(noted.gradients[0].indices)
    np.testing.assert_array_equal(touched, np.flatnonzero((features.toarray() != 0).any(axis=0)))
    for var, gradient in zip((model.weights, model.bias), noted.gradients, strict=True):
        dense = as_dense(gradient, var)
        for place in np.ndindex(var.shape):
            before = var[place]
            var[place] = before + 1e-5
            above = loss()
            var[place] = before - 1e-5
            slope = (above - loss()) / 2e-5
            var[place] = before
            assert slope == pytest.approx(dense[place], abs=1e-8)


class Dense(RMSprop):
    """Optimizer that makes every gradient dense."""

    def apply_gradients(self, pairs):
        return super().apply_gradients([(as_dense(gradient, var), var) for gradient, var in pairs])


def test_the_training_is_that_with_dense_gradients(regression, monkeypatch):
    rows = random_rows(regression, np.random.default_rng(1), 40, 100)
    options = regression.Options(
        epochs=3, batch=4, learning_rate=0.05, momentum=0.9, weight_decay=0.1, rho=0.99, seed=1
    )
    sparse, dense = regression.Model(rows), regression.Model(rows)
    regression.train(sparse, rows, options)
    monkeypatch.setattr(regression, "RMSprop", Dense)
    regression.train(dense, rows, options)
    np.testing.assert_allclose(sparse.weights, dense.weights, rtol=1e-3, atol=1e-5)
