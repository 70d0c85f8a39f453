"""Floats of 16 bits, which are stored and never computed with: bfloat16 in uint16, float16 in int16.

They are rounded to the nearest, to the even one of two that are as near; or at random, up with a probability that is
the share of the way there, so that the expectation is the number itself. Then steps that are smaller than half a unit
in the last place move a number as far as they should, on average, where rounding to the nearest would lose them all.
The random bits are the caller's: see :mod:`~numba_rmsprop.kernels.state`.
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


def shaped(element: Any, like: Any) -> Any:
    """Return the LLVM type of an element, or of as many as ``like`` has."""
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def constant(element: Any, like: Any, number: Any) -> Any:
    """Return a number, as many times as ``like`` has elements."""
    kind = shaped(element, like)
    return ir.Constant(kind, [number] * like.count if isinstance(kind, ir.VectorType) else number)


def _word(value: Any, number: int) -> Any:
    return constant(ir.IntType(32), value.type, number)


def _real(value: Any, number: float) -> Any:
    return constant(ir.FloatType(), value.type, number)


def _cast(cast: Any, value: Any, element: Any) -> Any:
    return cast(value, shaped(element, value.type))


def widened(builder: Any, value: Any, dtype: Any) -> Any:
    """Emit what turns a stored value, or a vector of them, into one to compute with."""
    if dtype == types.uint16:
        word = _cast(builder.zext, value, ir.IntType(32))
        return _cast(builder.bitcast, builder.shl(word, _word(value, 16)), ir.FloatType())
    if dtype == types.int16:
        return _cast(builder.fpext, _cast(builder.bitcast, value, ir.HalfType()), ir.FloatType())
    return value


def narrowed(builder: Any, value: Any, dtype: Any, noise: Any = None) -> Any:
    """Emit what rounds a value, or a vector of them, to what is stored.

    At random, where there are 32 bits of ``noise`` for each, or else to the nearest.
    """
    if dtype == types.uint16:
        return _to_bfloat16(builder, value, noise)
    if dtype != types.int16:
        return value
    if noise is not None:
        value = _to_float16_at_random(builder, value, noise)
    return _cast(builder.bitcast, _cast(builder.fptrunc, value, ir.HalfType()), ir.IntType(16))


def _to_bfloat16(builder: Any, value: Any, noise: Any) -> Any:
    bits = _cast(builder.bitcast, value, ir.IntType(32))
    upper = builder.lshr(bits, _word(value, 16))
    if noise is None:
        more = builder.add(_word(value, 0x7FFF), builder.and_(upper, _word(value, 1)))
    else:
        more = builder.and_(noise, _word(value, 0xFFFF))
    rounded = builder.lshr(builder.add(bits, more), _word(value, 16))
    quiet = builder.or_(upper, _word(value, 0x40))  # adding to a NaN might make it an infinity
    is_nan = builder.fcmp_unordered("uno", value, value)
    return _cast(builder.trunc, builder.select(is_nan, quiet, rounded), ir.IntType(16))


def _to_float16_at_random(builder: Any, value: Any, noise: Any) -> Any:
    """Emit what rounds float32 to what a float16 can hold: 10 of the 23 bits, or below 2**-14 multiples of 2**-24."""
    bits = _cast(builder.bitcast, value, ir.IntType(32))
    magnitude = builder.and_(bits, _word(value, 0x7FFFFFFF))
    usual = builder.add(magnitude, builder.and_(noise, _word(value, 0x1FFF)))
    usual = builder.and_(usual, _word(value, 0xFFFFE000))
    units = builder.fmul(_cast(builder.bitcast, magnitude, ir.FloatType()), _real(value, 2.0**24))
    whole = _cast(builder.uitofp, _cast(builder.fptoui, units, ir.IntType(32)), ir.FloatType())
    share = _cast(builder.uitofp, builder.and_(noise, _word(value, 0xFFFF)), ir.FloatType())
    up = builder.fcmp_ordered("<", builder.fmul(share, _real(value, 2.0**-16)), builder.fsub(units, whole))
    whole = builder.select(up, builder.fadd(whole, _real(value, 1.0)), whole)
    small = builder.fmul(whole, _real(value, 2.0**-24))
    is_small = builder.icmp_unsigned("<", magnitude, _word(value, 0x38800000))
    is_finite = builder.icmp_unsigned("<", magnitude, _word(value, 0x7F800000))
    rounded = builder.select(is_small, _cast(builder.bitcast, small, ir.IntType(32)), usual)
    signed = builder.or_(rounded, builder.and_(bits, _word(value, 0x80000000)))
    return builder.select(is_finite, _cast(builder.bitcast, signed, ir.FloatType()), value)


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
            units = np.abs(np.float64(value)) * 2.0**24
            rounded = np.float32((np.floor(units) + ((noise & 0xFFFF) * 2.0**-16 < units % 1)) * 2.0**-24)
        else:
            rounded = np.uint32((magnitude + (noise & 0x1FFF)) & 0xFFFFE000).view(np.float32)
        value = np.copysign(rounded, value)
    return np.float16(value).view(np.int16)
