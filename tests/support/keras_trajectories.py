"""Write keras_trajectories.json: what Keras makes of a few steps with averages and with accumulated gradients.

Run it where Keras and jax are: ``make .venv-peers/installed``, and then
``.venv-peers/bin/python tests/support/keras_trajectories.py``.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_X64"] = "1"

import keras

OPTIONS = {
    "momentum": [0.0, 0.9],
    "centered": [False, True],
    "weight_decay": [None, 0.1],
    "clipnorm": [None, 1.5],
}
KINDS = [
    {"use_ema": True, "ema_momentum": 0.9},
    {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    {"gradient_accumulation_steps": 3},
]
STEPS, SHAPE, RATE, RHO, EPS = 8, (4, 2), 0.05, 0.9, 1e-3


def gradients():
    """Return gradients of which the rows 1 and 3 are 0 at times, and row 0 always is."""
    grads = np.random.default_rng(7).standard_normal((STEPS, *SHAPE))
    grads[:, 0] = 0
    grads[1:5, 1] = 0
    grads[:-1, 3] = 0
    return grads


def trajectory(options, dtype):
    """Return the variable, its average and the number of iterations after each call."""
    keras.config.set_floatx(dtype)  # of the learning rate, too
    opt = keras.optimizers.RMSprop(RATE, rho=RHO, epsilon=EPS, **options)
    var = keras.Variable(np.arange(8.0).reshape(SHAPE) / 4, dtype=dtype)
    found = {"var": [], "average": [], "iterations": []}
    for grad in gradients().astype(dtype):
        opt.apply([keras.ops.convert_to_tensor(grad)], [var])
        found["var"].append(np.asarray(var, np.float64).tolist())
        if opt.use_ema:
            found["average"].append(np.asarray(opt._model_variables_moving_average[0], np.float64).tolist())
        found["iterations"].append(int(opt.iterations))
    return found


def main():
    """Write the file."""
    cases = []
    for kind, *values in itertools.product(KINDS, *OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True)) | kind
        cases.append({"options": options, **{dtype: trajectory(options, dtype) for dtype in ("float64", "float32")}})
    found = {
        "keras": keras.__version__,
        "learning_rate": RATE,
        "rho": RHO,
        "epsilon": EPS,
        "gradients": gradients().tolist(),
        "cases": cases,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
