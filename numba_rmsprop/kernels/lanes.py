"""Several neighbouring columns of a row at once, in registers.

A sum of rows in an array is read and written anew with every row: 6.5 ns for a row of 64 float32 in cache, on one
thread. In registers it takes 3. LLVM does not keep a loop's worth of elements there by itself, so kernels ask for it.

Elements are added in the same order as one by one, so the bits are the same.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from .aliased_access import STATE, pointer_to, tag
from .prefetch import CACHE_LINE_BYTES, emit_prefetch

WIDE, LINE = 256, 64
"""Bytes. A vector of AVX-512 has 64; where vectors are shorter, LLVM takes several for each."""


class Lanes(types.Type):
    """Some neighbouring elements of a row."""

    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype = dtype
        self.count = 8 * size // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype} x {self.count})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Lanes as LLVM has them."""

    def __init__(self, manager: Any, lanes: Lanes) -> None:
        element = ir.FloatType() if lanes.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(element, lanes.count))


def _fits(array: Any) -> bool:
    return array.layout == "C" and array.dtype in (types.float32, types.float64)


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def lanes_of(size: Any, array: Any) -> Any:
        """Return lanes for rows of an array, and how many columns they take; 0 where there are none for it."""
        return None, 0

    def load_grad_lanes(like: Any, array: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of a gradient."""

    def load_var_lanes(like: Any, array: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of a variable."""

    def store_out_lanes(array: Any, i: Any, j: Any, lanes: Any) -> None:
        """Write columns from ``j`` of row ``i`` of an output."""

    def prefetch_lanes(like: Any, array: Any, i: Any, j: Any) -> None:
        """Ask for columns from ``j`` of row ``i``, to read them."""

    def scaled(lanes: Any, factor: Any) -> Any:
        """Return lanes times a number."""

    def plus(lanes: Any, others: Any) -> Any:
        """Return the sum of two."""

else:

    @intrinsic(prefer_literal=True)
    def lanes_of(typing_context: Any, size: Any, array: Any) -> Any:
        """Return lanes for rows of an array, and how many columns they take; 0 where there are none for it."""
        fits = _fits(array)
        lanes = Lanes(array.dtype if fits else types.float32, size.literal_value)
        result = types.Tuple([lanes, types.int64])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count = ir.Constant(ir.IntType(64), lanes.count if fits else 0)
            return context.make_tuple(builder, result, [ir.Constant(context.get_value_type(lanes), None), count])

        return result(size, array), emit

    def _loader(scope: str) -> Any:
        @intrinsic
        def load(typing_context: Any, like: Any, array: Any, i: Any, j: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                place = _place(context, builder, like, signature.args[1], *arguments[1:])
                found = builder.load(place, align=array.dtype.bitwidth // 8)
                tag(builder.module, found, scope)
                return found

            return like(like, array, types.intp, types.intp), emit

        return load

    def _place(context: Any, builder: Any, lanes: Any, kind: Any, array: Any, i: Any, j: Any) -> Any:
        """Return where lanes lie; a check of bounds looks at both ends."""
        last = builder.add(j, ir.Constant(j.type, lanes.count - 1))
        pointer_to(context, builder, kind, array, [i, last])
        first = pointer_to(context, builder, kind, array, [i, j])
        return builder.bitcast(first, context.get_value_type(lanes).as_pointer())

    load_grad_lanes, load_var_lanes = _loader("grad"), _loader(STATE[0])

    @intrinsic
    def store_out_lanes(typing_context: Any, array: Any, i: Any, j: Any, lanes: Any) -> Any:
        """Write columns from ``j`` of row ``i`` of an output."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, lanes, signature.args[0], *arguments[:3])
            stored = builder.store(arguments[3], place, align=array.dtype.bitwidth // 8)
            tag(builder.module, stored, "out")
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp, lanes), emit

    @intrinsic
    def prefetch_lanes(typing_context: Any, like: Any, array: Any, i: Any, j: Any) -> Any:
        """Ask for columns from ``j`` of row ``i``, to read them."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, like, signature.args[1], *arguments[1:])
            start = builder.bitcast(place, ir.IntType(8).as_pointer())
            for offset in range(0, like.count * like.dtype.bitwidth // 8, CACHE_LINE_BYTES):
                address = builder.gep(start, [ir.Constant(ir.IntType(64), offset)])
                emit_prefetch(builder, address, to_write=False)
            return context.get_dummy_value()

        return types.void(like, array, types.intp, types.intp), emit

    @intrinsic
    def scaled(typing_context: Any, lanes: Any, factor: Any) -> Any:
        """Return lanes times a number."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number = context.cast(builder, arguments[1], factor, lanes.dtype)
            vector = context.get_value_type(lanes)
            whole = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count)
            return builder.fmul(arguments[0], builder.shuffle_vector(whole, whole, mask))

        return lanes(lanes, factor), emit

    @intrinsic
    def plus(typing_context: Any, lanes: Any, others: Any) -> Any:
        """Return the sum of two."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fadd(*arguments)

        return lanes(lanes, others), emit
