"""Ask the processor for memory that a later iteration will need.

Rows of a table larger than the cache arrive one miss at a time unless they are asked for ahead: on a table of
5 million rows of 64 float32 this took a step on 500,000 rows from 163 ms to 39 ms.

Rows that are only read are prefetched for reading. Prefetched for writing, the lines of rows that several threads read
move back and forth between their caches: sums of 65,536 rows took 240 us on two threads, and 210 on one; now 110.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import Integer

CACHE_LINE_BYTES = 64


def emit_prefetch(builder: Any, address: Any, *, to_write: bool) -> None:
    """Emit a prefetch of the cache line at an address."""
    byte_pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte_pointer, i32, i32, i32]), "llvm.prefetch.p0"
    )
    keep_in_all_caches, data = i32(3), i32(1)
    builder.call(function, [address, i32(int(to_write)), keep_in_all_caches, data])


def _address(context: Any, builder: Any, array_type: Any, array: Any, indices: Any) -> Any:
    item = cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)
    return builder.bitcast(item, ir.IntType(8).as_pointer())


def _prefetch_row(context: Any, builder: Any, array_type: Any, array: Any, row: Any, *, to_write: bool) -> None:
    unpacked = context.make_array(array_type)(context, builder, array)
    if array_type.ndim == 1:
        emit_prefetch(builder, _address(context, builder, array_type, unpacked, [row]), to_write=to_write)
        return
    columns = cgutils.unpack_tuple(builder, unpacked.shape, 2)[1]
    zero, line = (ir.Constant(columns.type, number) for number in (0, CACHE_LINE_BYTES))
    start = _address(context, builder, array_type, unpacked, [row, zero])
    size = builder.mul(columns, unpacked.itemsize)
    with cgutils.for_range_slice(builder, zero, size, line) as (offset, _):
        emit_prefetch(builder, builder.gep(start, [offset]), to_write=to_write)


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def prefetch_item(array: Any, i: Integer) -> None:
        """Do nothing: there is no processor to talk to from plain Python."""

    def prefetch_row(array: Any, row: Integer) -> None:
        """Do nothing: there is no processor to talk to from plain Python."""

    def prefetch_state(state: Any, row: Integer) -> None:
        """Do nothing: there is no processor to talk to from plain Python."""

else:

    @intrinsic
    def prefetch_item(typing_context: Any, array: Any, i: Any) -> Any:
        """Prefetch the cache line of ``array[i]`` to read it."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            unpacked = context.make_array(signature.args[0])(context, builder, arguments[0])
            address = _address(context, builder, signature.args[0], unpacked, [arguments[1]])
            emit_prefetch(builder, address, to_write=False)
            return context.get_dummy_value()

        return types.void(array, types.intp), emit

    @intrinsic
    def prefetch_row(typing_context: Any, array: Any, row: Any) -> Any:
        """Prefetch every cache line of ``array[row]`` to read it."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _prefetch_row(context, builder, signature.args[0], *arguments, to_write=False)
            return context.get_dummy_value()

        return types.void(array, types.intp), emit

    @intrinsic
    def prefetch_state(typing_context: Any, state: Any, row: Any) -> Any:
        """Prefetch every cache line of a row of each array of a state to write it."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            for k, kind in enumerate(state):
                if isinstance(kind, types.Array):
                    array = builder.extract_value(arguments[0], k)
                    _prefetch_row(context, builder, kind, array, arguments[1], to_write=True)
            return context.get_dummy_value()

        return types.void(state, types.intp), emit
