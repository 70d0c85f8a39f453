"""Loads and stores that tell LLVM what it cannot see, and one atomic counter.

The arrays of a step never share memory: that is checked before the launch. LLVM does not know it, and would test, for
every row, whether one of them overlaps another before it vectorises (24 ns for a row of 16 elements; 14 ns without the
tests). So each load and store carries the name of its array as an alias scope. None stands for an array that a variant
lacks: loading from it gives None, and storing into it does nothing.

Elements of 16 bits are floats that Numba does not have: uint16 holds a bfloat16 and int16 a float16. They are read as
float32, and written rounded to the nearest, to the even one of two that are as near.

Indices are not wrapped around: they must not be negative. Under ``NUMBA_BOUNDSCHECK=1`` all of this gives way to plain
indexing, which Numba checks; an index that is negative is refused there too, since it is taken as unsigned.
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
from .jit import Integer, compiled_inline

PLAIN = numba.config.DISABLE_JIT or numba.config.BOUNDSCHECK  # type: ignore[attr-defined]
"""Whether elements are read and written by plain indexing. Nothing then runs in parallel: see ``jit.py``."""

SCOPES = ("var", "grad", "rms", "mg", "momentum", "out")


def _tag(module: Any, instruction: Any, scope: str) -> None:
    """Say that a load or store touches the memory of ``scope`` and none of the others'."""
    domain = module.add_metadata(["numba_rmsprop"])
    nodes = {name: module.add_metadata([f"numba_rmsprop {name}", domain]) for name in SCOPES}
    instruction.set_metadata("alias.scope", module.add_metadata([nodes[scope]]))
    instruction.set_metadata("noalias", module.add_metadata([nodes[name] for name in SCOPES if name != scope]))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, indices: Any) -> Any:
    unpacked = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, unpacked, list(indices), wraparound=False)


def _nothing(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return context.get_dummy_value()


def _accessors(scope: str) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Return the functions ``load(array, i, j)`` and ``store(array, i, j, value)`` of a scope."""
    if PLAIN:

        @compiled_inline
        def load_element(array: Any, i: Any, j: Any) -> Any:
            return None if array is None else widen(array[np.uint64(i), np.uint64(j)])

        @compiled_inline
        def store_element(array: Any, i: Any, j: Any, value: Any) -> None:
            if array is not None:
                array[np.uint64(i), np.uint64(j)] = narrow(value, array)

        return load_element, store_element

    @intrinsic
    def load(typing_context: Any, array: Any, i: Any, j: Any) -> Any:
        if isinstance(array, types.NoneType):
            return types.none(array, types.intp, types.intp), _nothing

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loaded = builder.load(_pointer(context, builder, signature.args[0], arguments[0], arguments[1:]))
            _tag(builder.module, loaded, scope)
            return widened(builder, loaded, array.dtype)

        return width(array.dtype)(array, types.intp, types.intp), emit

    @intrinsic
    def store(typing_context: Any, array: Any, i: Any, j: Any, value: Any) -> Any:
        if isinstance(array, types.NoneType):
            return types.void(array, types.intp, types.intp, value), _nothing

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1:3])
            _tag(builder.module, builder.store(narrowed(builder, arguments[3], array.dtype), pointer), scope)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp, width(array.dtype)), emit

    return load, store


if PLAIN:

    @compiled_inline
    def claim(counters: Any, i: Any) -> Integer:
        """Return ``counters[i, 0]`` and add 1 to it."""
        claimed: Integer = counters[np.uint64(i), 0]
        counters[np.uint64(i), 0] = claimed + 1
        return claimed

else:

    @intrinsic
    def claim(typing_context: Any, counters: Any, i: Any) -> Any:
        """Return ``counters[i, 0]`` and add 1 to it, in one step that no other thread can come between."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            zero = ir.Constant(ir.IntType(64), 0)
            pointer = _pointer(context, builder, signature.args[0], arguments[0], [arguments[1], zero])
            return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

        return types.int64(counters, types.intp), emit


if PLAIN:

    @compiled_inline
    def glance(counters: Any, i: Any) -> Integer:
        """Return ``counters[i, 0]``."""
        seen: Integer = counters[np.uint64(i), 0]
        return seen

else:

    @intrinsic
    def glance(typing_context: Any, counters: Any, i: Any) -> Any:
        """Return ``counters[i, 0]`` as it is now, which another thread may have changed."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            zero = ir.Constant(ir.IntType(64), 0)
            pointer = _pointer(context, builder, signature.args[0], arguments[0], [arguments[1], zero])
            return builder.load_atomic(pointer, "monotonic", 8)

        return types.int64(counters, types.intp), emit


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def line_at(address: Any, size: Any, like: Any) -> Any:
        """Return the ``size`` elements at ``address``, of the dtype of ``like``, as an array of shape (1, size)."""
        if like is None:
            return None
        item = np.ctypeslib.as_ctypes_type(like.dtype)
        return np.ctypeslib.as_array((item * int(size)).from_address(int(address))).reshape(1, -1)

    def peek(address: Any) -> int:
        """Return the int64 at an address."""
        return ctypes.c_int64.from_address(int(address)).value

else:

    @intrinsic
    def peek(typing_context: Any, address: Any) -> Any:
        """Return the int64 at an address."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

        return types.int64(types.intp), emit

    @intrinsic
    def line_at(typing_context: Any, address: Any, size: Any, like: Any) -> Any:
        """Return the ``size`` elements at ``address``, of the dtype of ``like``, as an array of shape (1, size).

        None, where ``like`` is None.
        """
        if isinstance(like, types.NoneType):
            return types.none(types.intp, types.intp, like), _nothing

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.return_type)(context, builder)
            intp = context.get_value_type(types.intp)
            itemsize = ir.Constant(intp, signature.return_type.dtype.bitwidth // 8)
            populate_array(
                array,
                data=builder.inttoptr(arguments[0], array.data.type),
                shape=[ir.Constant(intp, 1), arguments[1]],
                strides=[builder.mul(arguments[1], itemsize), itemsize],
                itemsize=itemsize,
                meminfo=None,
            )
            return array._getvalue()

        return types.Array(like.dtype, 2, "C")(types.intp, types.intp, like), emit


load_var, store_var = _accessors("var")
load_grad, _ = _accessors("grad")
load_rms, store_rms = _accessors("rms")
load_mg, store_mg = _accessors("mg")
load_momentum, store_momentum = _accessors("momentum")
load_out, store_out = _accessors("out")
