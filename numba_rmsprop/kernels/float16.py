"""Floats of 16 bits, which are stored and never computed with: bfloat16 in uint16, float16 in int16."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

HALVES = (types.uint16, types.int16)


def width(dtype: Any) -> Any:
    """Return the type that elements of a dtype are computed in."""
    return types.float32 if dtype in HALVES else dtype


def _word(number: int) -> Any:
    return ir.Constant(ir.IntType(32), number)


def widened(builder: Any, value: Any, dtype: Any) -> Any:
    """Emit what turns a stored value into one to compute with."""
    if dtype == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(value, ir.IntType(32)), _word(16)), ir.FloatType())
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
    return value


def narrowed(builder: Any, value: Any, dtype: Any) -> Any:
    """Emit what rounds a value to the one to be stored."""
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


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def widen(value: Any) -> Any:
        """Return a stored value as one to compute with."""
        if isinstance(value, np.uint16):
            return (np.uint32(value) << np.uint32(16)).view(np.float32)
        return np.float32(value.view(np.float16)) if isinstance(value, np.int16) else value

    def narrow(value: Any, like: Any) -> Any:
        """Return a value as an array holds it."""
        if like.dtype == np.int16:
            return np.float16(value).view(np.int16)
        if like.dtype != np.uint16:
            return value
        bits = int(np.float32(value).view(np.uint32))
        upper = bits >> 16
        return np.uint16(upper | 0x40 if np.isnan(value) else (bits + 0x7FFF + (upper & 1)) >> 16)

else:

    @intrinsic
    def widen(typing_context: Any, value: Any) -> Any:
        """Return a stored value as one to compute with."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return widened(builder, arguments[0], value)

        return width(value)(value), emit

    @intrinsic
    def narrow(typing_context: Any, value: Any, like: Any) -> Any:
        """Return a value as an array holds it."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return narrowed(builder, arguments[0], like.dtype)

        return like.dtype(width(like.dtype), like), emit
