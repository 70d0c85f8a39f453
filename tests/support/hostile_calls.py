"""Calls that a hostile or broken program might make, for Hypothesis (test_hostile_calls.py) and a fuzzer (fuzz.py).

Each target takes a :class:`Source`, which makes all choices. It fails unless each call is carried out, or refused with
a documented kind of error and every byte unchanged.
"""

import warnings

import numpy as np
from hostile_configs import config, weights
from hostile_files import load
from hostile_gradients import gradients
from hostile_source import Source

__all__ = ["TARGETS", "Source"]


def quiet(target):
    """Return a target that runs without warnings about its own unusual numbers."""

    def run(source, **options):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            target(source, **options)

    return run


TARGETS = {target.__name__: quiet(target) for target in (gradients, weights, config, load)}
