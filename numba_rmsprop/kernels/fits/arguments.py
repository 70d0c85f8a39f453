"""The arguments of many fits in compiled code, as named tuples."""

from __future__ import annotations

from typing import Any, NamedTuple

COST, TRIANGLE = 0, 1
"""What to evaluate of a fit: the cost and its gradient, or the triangle of the residuals' Jacobian."""


class Functions(NamedTuple):
    """Compiled functions, or None."""

    cost: Any
    """:func:`~.slopes.objective_cost` or :func:`~.curves.curve_cost`."""
    slopes: Any
    """A function of :mod:`~.slopes`."""
    fun: Any
    jac: Any
    loss: Any
    """A function of :data:`~.curves.LOSSES`; None where the fit is no least squares."""


class Lines(NamedTuple):
    """Arrays with one line for each fit, or with one line for all."""

    scale: Any
    """Typical sizes of the parameters. The sign does not count, and 0 stands for 1."""
    lower: Any
    upper: Any


class FitNumbers(NamedTuple):
    """The numbers of all steps."""

    learning_rates: Any
    """Of each step, shape (maxiter,); or of all, shape (1,)."""
    highest_rate: Any
    first: Any
    """:class:`~numba_rmsprop.kernels.rmsprop.Numbers` of the first step, in the dtype of ``x``."""
    clipvalue: Any
    """Infinity for no clipping; in the dtype of ``x``."""
    clipnorm: Any
    """Infinity for no clipping."""
    weight_decay: Any


class Results(NamedTuple):
    """The results of all fits, one line or one number for each."""

    x: Any
    """The starts, until a fit replaces its own."""
    fun: Any
    nit: Any
    status: Any
    triangles: Any
    """See :func:`~.curves.curve_cost`; shape (fits, parameters, parameters), or None."""


class SlopeScratch(NamedTuple):
    """The part of a worker's memory that costs and slopes need.

    It is a tuple of its own because LLVM does not inline every function that takes it, and to pass all of the memory
    took 10 ns a step.
    """

    scale: Any
    lower: Any
    upper: Any
    gradient: Any
    shifted: Any
    """``x`` as complex numbers, for complex steps; or None."""
    point_slopes: Any
    """Derivatives of the model at one point."""
    squares: Any
    """For least squares: the squared lengths of the Jacobian's columns, and then that of the residuals; or None."""
    complex_step: Any
    relative_step: Any


class Scratch(NamedTuple):
    """The memory of one worker. Arrays have shape (parameters,), and the variable and its slots (1, parameters)."""

    slopes: SlopeScratch
    x: Any
    state: Any
    """The variable that RMSprop steps, ``x / scale``, and its slots: see :mod:`~numba_rmsprop.kernels.state`."""
    best: Any
    progress: Any
    """See :func:`~.stopping.judge`."""
    current: Any
    """The index of the fit, and how many steps it has taken, to know where a function has raised."""
