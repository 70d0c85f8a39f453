"""Loads and stores that tell LLVM what it cannot see, and one atomic counter.

The arrays of a step never share memory: that is checked before the launch. LLVM does not know it, and would test, for
every row, whether one of them overlaps another before it vectorises (24 ns for a row of 16 elements; 14 ns without the
tests). So each load and store carries the name of its array as an alias scope.

Elements of 16 bits are floats that Numba does not have: uint16 holds a bfloat16 and int16 a float16. They are read as
float32, and written rounded.

Indices are not wrapped around: they must not be negative. Under ``NUMBA_BOUNDSCHECK=1`` they are checked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .float16 import narrow, narrowed, widen, widened, width
from .jit import Integer
from .rule import MAX_SLOTS

BOUNDSCHECK = bool(numba.config.BOUNDSCHECK)  # type: ignore[attr-defined]

STATE = tuple(f"state {k}" for k in range(1 + MAX_SLOTS))
SCOPES = ("grad", "out", *STATE)


def tag(module: Any, instruction: Any, scope: str) -> None:
    """Say that a load or store touches the memory of ``scope`` and of no other."""
    domain = module.add_metadata(["numba_rmsprop"])
    nodes = {name: module.add_metadata([f"numba_rmsprop {name}", domain]) for name in SCOPES}
    instruction.set_metadata("alias.scope", module.add_metadata([nodes[scope]]))
    instruction.set_metadata("noalias", module.add_metadata([nodes[name] for name in SCOPES if name != scope]))


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, indices: Any) -> Any:
    """Emit the address of an element."""
    unpacked = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(
        context, builder, array_type, unpacked, list(indices), wraparound=False, boundscheck=BOUNDSCHECK
    )


def load_item(context: Any, builder: Any, array_type: Any, array: Any, indices: Any, scope: str) -> Any:
    """Emit what reads an element, as it is computed with."""
    loaded = builder.load(pointer_to(context, builder, array_type, array, indices))
    tag(builder.module, loaded, scope)
    return widened(builder, loaded, array_type.dtype)


def store_item(
    context: Any, builder: Any, array_type: Any, array: Any, indices: Any, value: Any, scope: str, noise: Any = None
) -> None:
    """Emit what writes an element, rounded at random where there is noise."""
    pointer = pointer_to(context, builder, array_type, array, indices)
    tag(builder.module, builder.store(narrowed(builder, value, array_type.dtype, noise), pointer), scope)


def element_of(kind: Any) -> Any:
    """Return the type in which elements of an array are computed; None's own for None."""
    return kind if isinstance(kind, types.NoneType) else width(kind.dtype)


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _accessors(scope: str) -> tuple[Callable[..., Any], Callable[..., None]]:
        def load(array: Any, i: Any, j: Any) -> Any:
            return widen(array[i, j])

        def store(array: Any, i: Any, j: Any, value: Any) -> None:
            if array is not None:
                array[i, j] = narrow(value, array)

        return load, store

    def is_given(array: Any) -> bool:
        """Return whether an argument is not None."""
        return array is not None

    def claim(counters: Any, i: Any) -> Integer:
        """Return ``counters[i, 0]`` and add 1 to it."""
        claimed: Integer = counters[i, 0]
        counters[i, 0] = claimed + 1
        return claimed

    def glance(counters: Any, i: Any) -> Integer:
        """Return ``counters[i, 0]``."""
        seen: Integer = counters[i, 0]
        return seen

    def peek(address: Any) -> int:
        """Return the int64 at an address."""
        return ctypes.c_int64.from_address(int(address)).value

    def line_at(address: Any, size: Any, like: Any) -> Any:
        """Return the ``size`` elements at ``address``, of the dtype of ``like``, as an array of shape (1, size)."""
        item = np.ctypeslib.as_ctypes_type(like.dtype)
        return np.ctypeslib.as_array((item * int(size)).from_address(int(address))).reshape(1, -1)

    def lines_at(addresses: Any, k: Any, size: Any, kinds: Any) -> Any:
        """Return the arrays at ``addresses[k, 1:]``: a line for each of ``kinds``, of its dtype; None for None."""
        return tuple(None if kind is None else line_at(addresses[k, 1 + m], size, kind) for m, kind in enumerate(kinds))

else:

    def _accessors(scope: str) -> tuple[Callable[..., Any], Callable[..., None]]:
        """Return ``load(array, i, j)`` and ``store(array, i, j, value)`` of a scope; storing into None does nothing."""

        @intrinsic
        def load(typing_context: Any, array: Any, i: Any, j: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return load_item(context, builder, signature.args[0], arguments[0], arguments[1:], scope)

            return width(array.dtype)(array, types.intp, types.intp), emit

        @intrinsic
        def store(typing_context: Any, array: Any, i: Any, j: Any, value: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                if not isinstance(array, types.NoneType):
                    value = context.cast(builder, arguments[3], signature.args[3], element_of(array))
                    store_item(context, builder, signature.args[0], arguments[0], arguments[1:3], value, scope)
                return context.get_dummy_value()

            return types.void(array, types.intp, types.intp, value), emit

        return load, store

    @intrinsic
    def is_given(typing_context: Any, array: Any) -> Any:
        """Return whether an argument is not None, which LLVM then knows."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return ir.Constant(ir.IntType(1), int(not isinstance(array, types.NoneType)))

        return types.boolean(array), emit

    @intrinsic
    def claim(typing_context: Any, counters: Any, i: Any) -> Any:
        """Return ``counters[i, 0]`` and add 1 to it, in one step that no other thread can come between."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = pointer_to(context, builder, signature.args[0], arguments[0], [arguments[1], _number(0)])
            return builder.atomic_rmw("add", pointer, _number(1), "monotonic")

        return types.int64(counters, types.intp), emit

    @intrinsic
    def glance(typing_context: Any, counters: Any, i: Any) -> Any:
        """Return ``counters[i, 0]`` as it is now, which another thread may have changed."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = pointer_to(context, builder, signature.args[0], arguments[0], [arguments[1], _number(0)])
            return builder.load_atomic(pointer, "monotonic", 8)

        return types.int64(counters, types.intp), emit

    @intrinsic
    def peek(typing_context: Any, address: Any) -> Any:
        """Return the int64 at an address."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

        return types.int64(types.intp), emit

    @intrinsic
    def line_at(typing_context: Any, address: Any, size: Any, like: Any) -> Any:
        """Return the ``size`` elements at ``address``, of the dtype of ``like``, as an array of shape (1, size)."""
        result = _line(like)

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _line_at(context, builder, result, arguments[0], arguments[1])

        return result(types.intp, types.intp, like), emit

    @intrinsic
    def lines_at(typing_context: Any, addresses: Any, k: Any, size: Any, kinds: Any) -> Any:
        """Return the arrays at ``addresses[k, 1:]``: a line for each of ``kinds``, of its dtype; None for None."""
        result = types.BaseTuple.from_types([_line(kind) for kind in kinds])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = []
            for m, kind in enumerate(kinds):
                if isinstance(kind, types.NoneType):
                    found.append(context.get_dummy_value())
                    continue
                place = [arguments[1], _number(1 + m)]
                address = builder.load(pointer_to(context, builder, signature.args[0], arguments[0], place))
                found.append(_line_at(context, builder, _line(kind), address, arguments[2]))
            return context.make_tuple(builder, result, found)

        return result(addresses, types.intp, types.intp, kinds), emit


def _number(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _line(like: Any) -> Any:
    """Return the type of a line of the dtype of ``like``, an array or a number."""
    if isinstance(like, types.NoneType):
        return like
    return types.Array(like.dtype if isinstance(like, types.Array) else like, 2, "C")


def _line_at(context: Any, builder: Any, result: Any, address: Any, size: Any) -> Any:
    array = context.make_array(result)(context, builder)
    itemsize = ir.Constant(context.get_value_type(types.intp), result.dtype.bitwidth // 8)
    populate_array(
        array,
        data=builder.inttoptr(address, array.data.type),
        shape=[_number(1), size],
        strides=[builder.mul(size, itemsize), itemsize],
        itemsize=itemsize,
        meminfo=None,
    )
    return array._getvalue()


load_var, store_var = _accessors(STATE[0])
load_grad, _ = _accessors("grad")
load_out, store_out = _accessors("out")
