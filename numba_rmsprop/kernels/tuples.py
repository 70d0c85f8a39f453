"""Tuples in compiled code, whose lengths are part of their types: parameters, and what belongs to one fit or point."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .jit import compiled_inline


def _row_of(data: Any, i: Any) -> Any:
    return tuple(item[0] if isinstance(item, tuple) else item[i] for item in data)


@overload(_row_of, inline="always", strict=False)
def _row_of_overload(data: Any, i: Any) -> Any:
    if not len(data):
        return lambda data, i: ()
    if isinstance(data[0], types.BaseTuple):
        return lambda data, i: (data[0][0], *_row_of(data[1:], i))
    return lambda data, i: (data[0][i], *_row_of(data[1:], i))


@compiled_inline
def row_of(data: Any, i: Any) -> Any:
    """Return the i-th item of each array of ``data``; of a tuple of one array, which all fits share, that array."""
    return _row_of(data, i)


def _point_of(predictors: Any, i: Any) -> Any:
    return predictors[0][i] if len(predictors) == 1 else _row_of(predictors, i)


@overload(_point_of, inline="always", strict=False)
def _point_of_overload(predictors: Any, i: Any) -> Any:
    if len(predictors) == 1:
        return lambda predictors, i: predictors[0][i]
    return lambda predictors, i: _row_of(predictors, i)


@compiled_inline
def point_of(predictors: Any, i: Any) -> Any:
    """Return the i-th number of each array of ``predictors`` as a tuple; of one array alone, the number itself."""
    return _point_of(predictors, i)


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def as_tuple(array: Any, like: Any) -> Any:
        """Return the first ``len(like)`` elements of an array as a tuple."""
        return tuple(array[: len(like)])

    def spread(numbers: Any, array: Any) -> None:
        """Write a tuple of numbers to the beginning of an array."""
        array[: len(numbers)] = numbers

else:

    @intrinsic
    def as_tuple(typing_context: Any, array: Any, like: Any) -> Any:
        """Return the first ``len(like)`` elements of an array as a tuple."""
        result = types.UniTuple(array.dtype, len(like))

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointers = _pointers(context, builder, signature.args[0], arguments[0], len(like))
            elements = [context.unpack_value(builder, array.dtype, pointer) for pointer in pointers]
            return context.make_tuple(builder, result, elements)

        return result(array, like), emit

    @intrinsic
    def spread(typing_context: Any, numbers: Any, array: Any) -> Any:
        """Write a tuple of numbers to the beginning of an array."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointers = _pointers(context, builder, signature.args[1], arguments[1], len(numbers))
            for k, (kind, pointer) in enumerate(zip(numbers, pointers, strict=True)):
                number = builder.extract_value(arguments[0], k)
                context.pack_value(builder, array.dtype, context.cast(builder, number, kind, array.dtype), pointer)
            return context.get_dummy_value()

        return types.void(numbers, array), emit


def _pointers(context: Any, builder: Any, array_type: Any, array: Any, count: int) -> list[Any]:
    unpacked = context.make_array(array_type)(context, builder, array)
    places = [ir.Constant(context.get_value_type(types.intp), k) for k in range(count)]
    return [
        cgutils.get_item_pointer(context, builder, array_type, unpacked, [place], wraparound=False) for place in places
    ]
