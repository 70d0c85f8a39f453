"""Write optax_trajectories.json: what optax makes of a few steps with each combination of its options.

Run it where jax and optax are: ``make .venv-peers/installed``, and then
``.venv-peers/bin/python tests/support/optax_trajectories.py``.
"""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

OPTIONS = {
    "momentum": [None, 0.9],
    "nesterov": [False, True],
    "centered": [False, True],
    "bias_correction": [False, True],
    "initial_scale": [0.0, 1.0],
    "eps_in_sqrt": [False, True],
}
STEPS, SHAPE, RATE, DECAY, EPS = 6, (4, 2), 0.05, 0.9, 1e-3


def gradients():
    """Return gradients of which the rows 1 and 3 are 0 at times, and row 0 always is."""
    grads = np.random.default_rng(5).standard_normal((STEPS, *SHAPE))
    grads[:, 0] = 0
    grads[1:4, 1] = 0
    grads[:-1, 3] = 0
    return grads


def trajectory(options, dtype):
    """Return the parameter after each step."""
    transformation = optax.rmsprop(RATE, decay=DECAY, eps=EPS, **options)
    param = jax.numpy.asarray(np.arange(8.0).reshape(SHAPE) / 4, dtype)
    state = transformation.init(param)
    found = []
    for grad in gradients().astype(dtype):
        updates, state = transformation.update(jax.numpy.asarray(grad), state, param)
        param = optax.apply_updates(param, updates)
        found.append(np.asarray(param, np.float64).tolist())
    return found


def main():
    """Write the file."""
    cases = []
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        if options["nesterov"] and options["momentum"] is None:
            continue
        cases.append({"options": options, **{dtype: trajectory(options, dtype) for dtype in ("float64", "float32")}})
    found = {
        "optax": optax.__version__,
        "jax": jax.__version__,
        "learning_rate": RATE,
        "rho": DECAY,
        "epsilon": EPS,
        "gradients": gradients().tolist(),
        "cases": cases,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
