"""The models of NIST's nonlinear regressions, each of one point and of the parameters b1, b2, ... as NIST has them."""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit
def bennett5(x, b1, b2, b3):
    """Compute Bennett5."""
    return b1 * (b2 + x) ** (-1 / b3)


@numba.njit
def saturation(x, b1, b2):
    """Compute Misra1a and BoxBOD."""
    return b1 * (1 - np.exp(-b2 * x))


@numba.njit
def chwirut(x, b1, b2, b3):
    """Compute Chwirut1 and Chwirut2."""
    return np.exp(-b1 * x) / (b2 + b3 * x)


@numba.njit
def danwood(x, b1, b2):
    """Compute DanWood."""
    return b1 * x**b2


@numba.njit
def enso(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    """Compute ENSO."""
    angle = 2 * math.pi * x
    year = b2 * np.cos(angle / 12) + b3 * np.sin(angle / 12)
    first = b5 * np.cos(angle / b4) + b6 * np.sin(angle / b4)
    return b1 + year + first + b8 * np.cos(angle / b7) + b9 * np.sin(angle / b7)


@numba.njit
def eckerle4(x, b1, b2, b3):
    """Compute Eckerle4."""
    return b1 / b2 * np.exp(-0.5 * ((x - b3) / b2) ** 2)


@numba.njit
def gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    """Compute Gauss1, Gauss2 and Gauss3."""
    peaks = b3 * np.exp(-(((x - b4) / b5) ** 2)) + b6 * np.exp(-(((x - b7) / b8) ** 2))
    return b1 * np.exp(-b2 * x) + peaks


@numba.njit
def cubics(x, b1, b2, b3, b4, b5, b6, b7):
    """Compute Hahn1 and Thurber."""
    return (b1 + x * (b2 + x * (b3 + x * b4))) / (1 + x * (b5 + x * (b6 + x * b7)))


@numba.njit
def kirby2(x, b1, b2, b3, b4, b5):
    """Compute Kirby2."""
    return (b1 + x * (b2 + x * b3)) / (1 + x * (b4 + x * b5))


@numba.njit
def lanczos(x, b1, b2, b3, b4, b5, b6):
    """Compute Lanczos1, Lanczos2 and Lanczos3."""
    return b1 * np.exp(-b2 * x) + b3 * np.exp(-b4 * x) + b5 * np.exp(-b6 * x)


@numba.njit
def mgh09(x, b1, b2, b3, b4):
    """Compute MGH09."""
    return b1 * x * (x + b2) / (x * (x + b3) + b4)


@numba.njit
def mgh10(x, b1, b2, b3):
    """Compute MGH10."""
    return b1 * np.exp(b2 / (x + b3))


@numba.njit
def mgh17(x, b1, b2, b3, b4, b5):
    """Compute MGH17."""
    return b1 + b2 * np.exp(-x * b4) + b3 * np.exp(-x * b5)


@numba.njit
def misra1b(x, b1, b2):
    """Compute Misra1b."""
    return b1 * (1 - (1 + b2 * x / 2) ** -2)


@numba.njit
def misra1c(x, b1, b2):
    """Compute Misra1c."""
    return b1 * (1 - (1 + 2 * b2 * x) ** -0.5)


@numba.njit
def misra1d(x, b1, b2):
    """Compute Misra1d."""
    return b1 * b2 * x / (1 + b2 * x)


@numba.njit
def nelson(x, b1, b2, b3):
    """Compute Nelson, whose y is a logarithm."""
    return b1 - b2 * x[0] * np.exp(-b3 * x[1])


@numba.njit
def rat42(x, b1, b2, b3):
    """Compute Rat42."""
    return b1 / (1 + np.exp(b2 - b3 * x))


@numba.njit
def rat43(x, b1, b2, b3, b4):
    """Compute Rat43."""
    return b1 / (1 + np.exp(b2 - b3 * x)) ** (1 / b4)


@numba.njit
def roszman1(x, b1, b2, b3, b4):
    """Compute Roszman1."""
    return b1 - b2 * x - np.arctan(b3 / (x - b4)) / math.pi


MODELS = {
    # of lower difficulty, as NIST has it
    "Misra1a": saturation,
    "Chwirut2": chwirut,
    "Chwirut1": chwirut,
    "Lanczos3": lanczos,
    "Gauss1": gauss,
    "Gauss2": gauss,
    "DanWood": danwood,
    "Misra1b": misra1b,
    # of average difficulty, as NIST has it
    "Kirby2": kirby2,
    "Hahn1": cubics,
    "Nelson": nelson,
    "MGH17": mgh17,
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Gauss3": gauss,
    "Misra1c": misra1c,
    "Misra1d": misra1d,
    "Roszman1": roszman1,
    "ENSO": enso,
    # of higher difficulty, as NIST has it
    "MGH09": mgh09,
    "Thurber": cubics,
    "BoxBOD": saturation,
    "Rat42": rat42,
    "MGH10": mgh10,
    "Eckerle4": eckerle4,
    "Rat43": rat43,
    "Bennett5": bennett5,
}
