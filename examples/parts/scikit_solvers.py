"""Two solvers of scikit-learn for the same model and rows, beside which the classifier example is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from .softmax_regression import Course, Options, Rows


def sgd(alpha: float, learnt: Rows, asked: Rows, options: Options) -> Course:
    """Train one class against the rest for as many epochs. One thread is faster here than two (``n_jobs``)."""
    from sklearn.linear_model import SGDClassifier

    # a generator: with a number, it would take the rows in the same order at every epoch
    model = SGDClassifier(loss="log_loss", alpha=alpha, random_state=np.random.RandomState(options.seed))
    course = Course()
    for _ in range(options.epochs):
        started = time.perf_counter()
        model.partial_fit(learnt.features, learnt.labels, classes=np.arange(learnt.classes))
        course.add(time.perf_counter() - started, model.score(asked.features, asked.labels))
    return course


def lbfgs(c: float, learnt: Rows, asked: Rows, options: Options) -> Course:
    """Train softmax regression until it has converged; an epoch is an iteration, which reads all rows at least once."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    course = Course()
    # BLAS works here on vectors alone, for which its threads wait for one another: two made it seven times slower.
    with threadpool_limits(1, user_api="blas"):
        started = time.perf_counter()
        model = LogisticRegression(C=c, max_iter=1000).fit(learnt.features, learnt.labels)
        seconds = time.perf_counter() - started
    course.add(seconds, model.score(asked.features, asked.labels), epochs=int(model.n_iter_[0]))
    return course


SOLVERS: dict[str, tuple[str, list[float], Callable[[float, Rows, Rows, Options], Course]]] = {
    "SGDClassifier": ("alpha", [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4], sgd),
    "LogisticRegression": ("C", [3, 10, 30, 100, 300, 1000], lbfgs),
}
"""The setting of each, what is tried for it, and how it is trained."""
