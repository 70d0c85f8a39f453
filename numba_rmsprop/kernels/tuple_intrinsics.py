"""Tuples in compiled code, whose lengths are part of their types: parameters, and what belongs to one fit or point."""

from __future__ import annotations

import operator
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BOUNDSCHECK = bool(numba.config.BOUNDSCHECK)  # type: ignore[attr-defined]

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def row_of(data: Any, i: Any) -> Any:
        """Return the i-th item of each array of ``data``, or its only one; of a tuple of one, what is in it."""
        return tuple(item[0] if isinstance(item, tuple) else item[min(i, len(item) - 1)] for item in data)

    def point_of(predictors: Any, i: Any) -> Any:
        """Return the i-th number of each array of ``predictors`` as a tuple; of one array alone, the number itself."""
        return predictors[0][i] if len(predictors) == 1 else tuple(item[i] for item in predictors)

    def as_tuple(array: Any, like: Any) -> Any:
        """Return the first ``len(like)`` elements of an array as a tuple."""
        return tuple(array[: len(like)])

    def spread(numbers: Any, array: Any) -> None:
        """Write a tuple of numbers to the beginning of an array."""
        array[: len(numbers)] = numbers

    def rounded_as(numbers: Any, array: Any) -> Any:
        """Return a tuple of numbers in the dtype of an array."""
        return tuple(map(array.dtype.type, numbers))

else:

    @intrinsic
    def row_of(typing_context: Any, data: Any, i: Any) -> Any:
        """Return the i-th item of each array of ``data``, or its only one; of a tuple of one, what is in it.

        Both stand for what all fits share. An array of one item has the same type as one with an item for each fit,
        so that either is compiled once.
        """
        items = [_item(typing_context, kind) for kind in data]
        result = types.Tuple([item.return_type if item else kind[0] for item, kind in zip(items, data, strict=True)])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = [
                _own(context, builder, item, kind, builder.extract_value(arguments[0], k), arguments[1])
                for k, (item, kind) in enumerate(zip(items, data, strict=True))
            ]
            return context.make_tuple(builder, result, found)

        return result(data, types.intp), emit

    @intrinsic
    def point_of(typing_context: Any, predictors: Any, i: Any) -> Any:
        """Return the i-th number of each array of ``predictors`` as a tuple; of one array alone, the number itself."""
        items = [_getitem(typing_context, kind) for kind in predictors]
        result = items[0].return_type if len(items) == 1 else types.Tuple([item.return_type for item in items])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = [
                _get(context, builder, item, builder.extract_value(arguments[0], k), arguments[1])
                for k, item in enumerate(items)
            ]
            return found[0] if len(found) == 1 else context.make_tuple(builder, result, found)

        return result(predictors, types.intp), emit

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

    @intrinsic
    def rounded_as(typing_context: Any, numbers: Any, array: Any) -> Any:
        """Return a tuple of numbers in the dtype of an array."""
        result = types.UniTuple(array.dtype, len(numbers))

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = [
                context.cast(builder, builder.extract_value(arguments[0], k), kind, array.dtype)
                for k, kind in enumerate(numbers)
            ]
            return context.make_tuple(builder, result, found)

        return result(numbers, array), emit


def _item(typing_context: Any, kind: Any) -> Any:
    """Return the signature of ``array[i]``; None for a tuple."""
    return None if isinstance(kind, types.BaseTuple) else _getitem(typing_context, kind)


def _getitem(typing_context: Any, kind: Any) -> Any:
    return typing_context.resolve_function_type(operator.getitem, (kind, types.intp), {})


def _own(context: Any, builder: Any, item: Any, kind: Any, array: Any, i: Any) -> Any:
    """Return what belongs to a fit: see :func:`row_of`."""
    if item is None:
        return builder.extract_value(array, 0)
    count = builder.extract_value(context.make_array(kind)(context, builder, array).shape, 0)
    last = builder.sub(count, ir.Constant(count.type, 1))
    own = builder.select(builder.icmp_signed("<", i, last), i, last)
    return _get(context, builder, item, array, own)


def _get(context: Any, builder: Any, item: Any, array: Any, i: Any) -> Any:
    return context.get_function(operator.getitem, item)(builder, (array, i))


def _pointers(context: Any, builder: Any, array_type: Any, array: Any, count: int) -> list[Any]:
    unpacked = context.make_array(array_type)(context, builder, array)
    places = [ir.Constant(context.get_value_type(types.intp), k) for k in range(count)]
    return [
        cgutils.get_item_pointer(
            context, builder, array_type, unpacked, [place], wraparound=False, boundscheck=BOUNDSCHECK
        )
        for place in places
    ]
