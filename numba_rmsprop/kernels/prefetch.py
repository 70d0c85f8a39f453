"""Ask the processor for memory that a later iteration will need.

Rows of a table larger than the cache arrive one miss at a time unless they are asked for ahead: on a table of
5 million rows of 64 float32 this took a step on 500,000 rows from 163 ms to 39 ms.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import Integer, compiled

CACHE_LINE_BYTES = 64


def _emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array_type = signature.args[0]
    array = context.make_array(array_type)(context, builder, arguments[0])
    address = cgutils.get_item_pointer(context, builder, array_type, array, list(arguments[1:]), wraparound=False)
    byte_pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte_pointer, i32, i32, i32]), "llvm.prefetch.p0"
    )
    for_writing, keep_in_all_caches, data = i32(1), i32(3), i32(1)
    builder.call(function, [builder.bitcast(address, byte_pointer), for_writing, keep_in_all_caches, data])
    return context.get_dummy_value()


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def prefetch_item(array: Any, i: Integer) -> None:
        """Do nothing: there is no processor to talk to from plain Python."""

    def prefetch_element(array: Any, i: Integer, j: Integer) -> None:
        """Do nothing: there is no processor to talk to from plain Python."""

    def items_in_line(array: Any) -> Integer:
        """Return how many elements of the array fill a cache line."""
        return CACHE_LINE_BYTES // int(array.itemsize)

else:

    @intrinsic
    def prefetch_item(typing_context: Any, array: Any, i: Any) -> Any:
        """Prefetch the cache line of ``array[i]``."""
        return types.void(array, types.intp), _emit

    @intrinsic
    def prefetch_element(typing_context: Any, array: Any, i: Any, j: Any) -> Any:
        """Prefetch the cache line of ``array[i, j]``."""
        return types.void(array, types.intp, types.intp), _emit

    @intrinsic
    def items_in_line(typing_context: Any, array: Any) -> Any:
        """Return how many elements of the array fill a cache line, a constant: a division would cost as much."""
        items = CACHE_LINE_BYTES * 8 // array.dtype.bitwidth
        return types.intp(array), lambda context, builder, signature, arguments: ir.Constant(ir.IntType(64), items)


@compiled
def prefetch_row(row: Integer, array: Any) -> None:
    """Prefetch every cache line of ``array[row]``; ``None`` stands for an absent array."""
    if array is not None:
        for j in range(0, array.shape[1], items_in_line(array)):
            prefetch_element(array, row, j)
