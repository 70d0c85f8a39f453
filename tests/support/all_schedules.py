"""Every schedule, once."""

from numba_rmsprop.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

ALL = [
    ExponentialDecay(0.1, 10, 0.5, staircase=True, name="e"),
    PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.1]),
    PolynomialDecay(0.1, 10, 0.01, power=2.0, cycle=True),
    InverseTimeDecay(0.1, 10, 0.5, staircase=True),
    CosineDecay(0.1, 10, 0.1, warmup_target=0.2, warmup_steps=5),
    CosineDecayRestarts(0.1, 10, 3.0, 0.5, 0.1),
]
