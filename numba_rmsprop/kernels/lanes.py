"""Several neighbouring columns of a row at once, in registers.

A sum of rows in an array is read and written anew with every row: 6.5 ns for a row of 64 float32 in cache, on one
thread. In registers it takes 3. LLVM does not keep a loop's worth of elements there by itself, so kernels ask for it.

Elements are added in the same order as one by one, so the bits are the same. Lanes are multiplied and added as numbers
are, also with a number, so that what is written for one element serves for lanes.
"""

from __future__ import annotations

import operator
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from .aliased_access import STATE, pointer_to, tag
from .float16 import HALVES, narrowed, widened, width
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


def repeated(builder: Any, number: Any, count: int) -> Any:
    """Emit a vector of so many times one number."""
    none_yet, word = ir.Constant(ir.VectorType(number.type, count), ir.Undefined), ir.IntType(32)
    whole = builder.insert_element(none_yet, number, word(0))
    return builder.shuffle_vector(whole, whole, ir.Constant(ir.VectorType(word, count), [0] * count))


def fits(array: Any) -> bool:
    """Return whether lanes can be read from an array of a type and written to it."""
    return array.layout == "C" and array.dtype in (types.float32, types.float64, *HALVES)


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def lanes_of(size: Any, array: Any) -> Any:
        """Return lanes for rows of an array, and how many columns they take; 0 where there are none for it."""
        return None, 0

    def load_grad_lanes(like: Any, array: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of a gradient."""

    def load_var_lanes(like: Any, array: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of a variable."""

    def load_out_lanes(like: Any, array: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of an output."""

    def store_out_lanes(array: Any, i: Any, j: Any, lanes: Any) -> None:
        """Write columns from ``j`` of row ``i`` of an output."""

    def prefetch_lanes(like: Any, array: Any, i: Any, j: Any) -> None:
        """Ask for columns from ``j`` of row ``i``, to read them."""

    def clip_lanes(lanes: Any, clipvalue: Any) -> Any:
        """Return lanes between ``-clipvalue`` and ``clipvalue``."""

    def across(lanes: Any) -> Any:
        """Return the sum over all lanes."""

else:

    @intrinsic(prefer_literal=True)
    def lanes_of(typing_context: Any, size: Any, array: Any) -> Any:
        """Return lanes for rows of an array, and how many columns they take; 0 where there are none for it."""
        there = fits(array)
        lanes = Lanes(width(array.dtype), size.literal_value)
        result = types.Tuple([lanes, types.int64])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count = ir.Constant(ir.IntType(64), lanes.count if there else 0)
            return context.make_tuple(builder, result, [ir.Constant(context.get_value_type(lanes), None), count])

        return result(size, array), emit

    def _place(context: Any, builder: Any, lanes: Any, kind: Any, array: Any, i: Any, j: Any) -> Any:
        """Return where lanes lie; a check of bounds looks at both ends."""
        last = builder.add(j, ir.Constant(j.type, lanes.count - 1))
        pointer_to(context, builder, kind, array, [i, last])
        first = pointer_to(context, builder, kind, array, [i, j])
        return builder.bitcast(first, ir.VectorType(first.type.pointee, lanes.count).as_pointer())

    def load_item_lanes(context: Any, builder: Any, lanes: Any, kind: Any, array: Any, indices: Any, scope: str) -> Any:
        """Emit what reads lanes, as they are computed with."""
        place = _place(context, builder, lanes, kind, array, *indices)
        found = builder.load(place, align=kind.dtype.bitwidth // 8)
        tag(builder.module, found, scope)
        return widened(builder, found, kind.dtype)

    def store_item_lanes(
        context: Any, builder: Any, lanes: Any, kind: Any, array: Any, indices: Any, value: Any, scope: str, noise: Any
    ) -> None:
        """Emit what writes lanes, rounded at random where there is noise."""
        place = _place(context, builder, lanes, kind, array, *indices)
        stored = builder.store(narrowed(builder, value, kind.dtype, noise), place, align=kind.dtype.bitwidth // 8)
        tag(builder.module, stored, scope)

    def _loader(scope: str) -> Any:
        @intrinsic
        def load(typing_context: Any, like: Any, array: Any, i: Any, j: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return load_item_lanes(context, builder, like, signature.args[1], arguments[1], arguments[2:], scope)

            return like(like, array, types.intp, types.intp), emit

        return load

    load_grad_lanes, load_var_lanes, load_out_lanes = _loader("grad"), _loader(STATE[0]), _loader("out")

    @intrinsic
    def store_out_lanes(typing_context: Any, array: Any, i: Any, j: Any, lanes: Any) -> Any:
        """Write columns from ``j`` of row ``i`` of an output."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, *indices, value = arguments
            store_item_lanes(context, builder, lanes, signature.args[0], array, indices, value, "out", None)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp, lanes), emit

    @intrinsic
    def prefetch_lanes(typing_context: Any, like: Any, array: Any, i: Any, j: Any) -> Any:
        """Ask for columns from ``j`` of row ``i``, to read them."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, like, signature.args[1], *arguments[1:])
            start = builder.bitcast(place, ir.IntType(8).as_pointer())
            for offset in range(0, like.count * array.dtype.bitwidth // 8, CACHE_LINE_BYTES):
                address = builder.gep(start, [ir.Constant(ir.IntType(64), offset)])
                emit_prefetch(builder, address, to_write=False)
            return context.get_dummy_value()

        return types.void(like, array, types.intp, types.intp), emit

    def _as_lanes(context: Any, builder: Any, lanes: Any, value: Any, kind: Any) -> Any:
        """Emit lanes that are all one number, or that are lanes already."""
        if isinstance(kind, Lanes):
            return value
        return repeated(builder, context.cast(builder, value, kind, lanes.dtype), lanes.count)

    @intrinsic
    def clip_lanes(typing_context: Any, lanes: Any, clipvalue: Any) -> Any:
        """Return lanes between ``-clipvalue`` and ``clipvalue``; NaN passes through."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found, limit = arguments[0], _as_lanes(context, builder, lanes, arguments[1], clipvalue)
            found = builder.select(builder.fcmp_ordered(">", found, limit), limit, found)
            return builder.select(builder.fcmp_ordered("<", found, builder.fneg(limit)), builder.fneg(limit), found)

        return lanes(lanes, clipvalue), emit

    @intrinsic
    def across(typing_context: Any, lanes: Any) -> Any:
        """Return the sum over all lanes: of one half and the other, again and again."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            total, word, half = arguments[0], ir.IntType(32), lanes.count // 2
            while half:
                low, high = (ir.Constant(ir.VectorType(word, half), [*range(k, k + half)]) for k in (0, half))
                total = builder.fadd(*(builder.shuffle_vector(total, total, mask) for mask in (low, high)))
                half //= 2
            return builder.extract_element(total, word(0))

        return lanes.dtype(lanes), emit

    def _operator(name: str) -> Any:
        """Return the intrinsic of an operation on lanes, or on lanes and a number."""

        @intrinsic
        def operate(typing_context: Any, first: Any, second: Any) -> Any:
            lanes = first if isinstance(first, Lanes) else second

            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                both = zip(arguments, signature.args, strict=True)
                return getattr(builder, name)(*(_as_lanes(context, builder, lanes, *each) for each in both))

            return lanes(first, second), emit

        return operate

    def _overload(symbol: Any, name: str) -> None:
        """Let an operator take lanes. Numba asks this last, so that other operands are none the slower to compile."""
        operate = _operator(name)

        def with_lanes(*kinds: Any) -> Any:
            there = any(isinstance(kind, Lanes) for kind in kinds)
            return (lambda first, second: operate(first, second)) if there else None

        overload(symbol)(lambda first, second: with_lanes(first, second))

    for _symbol, _name in ((operator.mul, "fmul"), (operator.add, "fadd"), (operator.sub, "fsub")):
        _overload(_symbol, _name)
