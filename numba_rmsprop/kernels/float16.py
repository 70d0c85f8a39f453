"""Floats of 16 bits, which are stored and never computed with: bfloat16 in uint16, float16 in int16.

They are rounded to the nearest, to the even one of two that are as near; or at random, up with a probability that is
the share of the way there, so that the expectation is the number itself. Then steps that are smaller than half a unit
in the last place move a number as far as they should, on average, where rounding to the nearest would lose them all.
The random bits are the caller's: see :mod:`~numba_rmsprop.kernels.rounding`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

HALVES = (types.uint16, types.int16)


def width(dtype: Any) -> Any:
    """Return the type that elements of a dtype are computed in."""
    return types.float32 if dtype in HALVES else dtype


def _word(number: int) -> Any:
    return ir.Constant(ir.IntType(32), number)


def _real(number: float) -> Any:
    return ir.Constant(ir.FloatType(), number)


def widened(builder: Any, value: Any, dtype: Any) -> Any:
    """Emit what turns a stored value into one to compute with."""
    if dtype == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(value, ir.IntType(32)), _word(16)), ir.FloatType())
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
    return value


def narrowed_at_random(builder: Any, value: Any, dtype: Any, noise: Any) -> Any:
    """Emit what rounds a value to one of its neighbours; ``noise`` is 32 random bits."""
    bits = builder.bitcast(value, ir.IntType(32))
    if dtype == types.uint16:
        upper = builder.lshr(bits, _word(16))
        rounded = builder.lshr(builder.add(bits, builder.and_(noise, _word(0xFFFF))), _word(16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, builder.or_(upper, _word(0x40)), rounded), ir.IntType(16))
    # A float16 keeps 10 of the 23 bits behind the point; below 2**-14 its neighbours are 2**-24 apart.
    magnitude = builder.and_(bits, _word(0x7FFFFFFF))
    usual = builder.and_(builder.add(magnitude, builder.and_(noise, _word(0x1FFF))), _word(0xFFFFE000))
    units = builder.fmul(builder.bitcast(magnitude, ir.FloatType()), _real(2.0**24))
    share = builder.fmul(builder.uitofp(builder.and_(noise, _word(0xFFFF)), ir.FloatType()), _real(2.0**-16))
    whole = builder.uitofp(builder.fptoui(builder.fadd(units, share), ir.IntType(32)), ir.FloatType())
    small = builder.bitcast(builder.fmul(whole, _real(2.0**-24)), ir.IntType(32))
    is_small = builder.icmp_unsigned("<", magnitude, _word(0x38800000))
    is_finite = builder.icmp_unsigned("<", magnitude, _word(0x7F800000))
    rounded = builder.select(is_small, small, builder.select(is_finite, usual, magnitude))
    signed = builder.or_(rounded, builder.and_(bits, _word(0x80000000)))
    half = builder.fptrunc(builder.bitcast(signed, ir.FloatType()), ir.HalfType())
    return builder.bitcast(half, ir.IntType(16))


def narrowed(builder: Any, value: Any, dtype: Any, noise: Any = None) -> Any:
    """Emit what rounds a value to the one to be stored: at random where there is ``noise``, or to the nearest."""
    if noise is not None and dtype in HALVES:
        return narrowed_at_random(builder, value, dtype, noise)
    if dtype == types.uint16:
        bits = builder.bitcast(value, ir.IntType(32))
        upper = builder.lshr(bits, _word(16))
        up = builder.add(_word(0x7FFF), builder.and_(upper, _word(1)))
        rounded = builder.lshr(builder.add(bits, up), _word(16))
        quiet = builder.or_(upper, _word(0x40))  # adding to a NaN might make it an infinity
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, quiet, rounded), ir.IntType(16))
    if dtype == types.int16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
    return value


def widen(value: Any) -> Any:
    """Return a stored value as one to compute with; for plain Python, as :func:`narrow`."""
    if isinstance(value, np.uint16):
        return (np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value.view(np.float16)) if isinstance(value, np.int16) else value


def narrow(value: Any, like: Any, noise: int | None = None) -> Any:
    """Return a value as an array holds it, rounded at random where there is noise."""
    if like.dtype not in (np.uint16, np.int16):
        return value
    bits = int(np.float32(value).view(np.uint32))
    upper = bits >> 16
    if like.dtype == np.uint16:
        more = 0x7FFF + (upper & 1) if noise is None else noise & 0xFFFF
        return np.uint16(upper | 0x40 if np.isnan(value) else (bits + more) >> 16)
    if noise is not None and np.isfinite(value):
        magnitude = bits & 0x7FFFFFFF
        if magnitude < 0x38800000:
            units = np.float32(abs(value) * np.float32(2**24)) + np.float32((noise & 0xFFFF) * 2.0**-16)
            rounded = np.float32(np.floor(units) * 2.0**-24)
        else:
            rounded = np.uint32((magnitude + (noise & 0x1FFF)) & 0xFFFFE000).view(np.float32)
        value = np.copysign(rounded, value)
    return np.float16(value).view(np.int16)
