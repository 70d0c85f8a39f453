"""The state of a row, as kernels read and write it.

A *state* is a tuple: a variable and its slots, in the order of the rule, and last how elements of 16 bits are rounded.

- Arrays have the shape (rows, columns). A slot with one number for each row has the shape (rows,): it gives the same
  number at every column, and is written once, after the columns.
- None stands for a slot that a variant lacks: loading from it gives None, and storing into it does nothing.
- The last item is None, to round to the nearest; or ``(key, ranks, rank, rows)``, to round at random: see
  :func:`~numba_rmsprop.kernels.hashing.noise_of_row`.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .aliased_access import STATE, element_of, load_item, store_item
from .float16 import HALVES, constant, narrow, widen, width
from .hashing import hashed, noise_of_row
from .jit import Integer
from .lanes import Lanes, fits, repeated

ROUNDS = (16, 0x85EBCA6B), (13, 0xC2B2AE35)
"""Shifts and factors of MurmurHash3's end, as in :func:`~numba_rmsprop.kernels.hashing.hashed`."""

APART = 0x5851F42D4C957F2D
"""An odd number, by which the random bits of two writes in a launch differ before they are mixed."""

COLUMN = 0x9E3779B1
"""An odd number, so that all columns of a row differ before they are mixed."""


if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    from .lanes import load_item_lanes, store_item_lanes

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _number(noise: Any, k: int, j: Any) -> int | None:
        if noise is None:
            return None
        low, high = int(noise) & 0xFFFFFFFF, int(noise) >> 32
        return int(hashed(((low + int(j) * COLUMN) & 0xFFFFFFFF) ^ high ^ k * COLUMN & 0xFFFFFFFF))

    def noise_of(state: Any, row: Integer) -> Any:
        """Return the random bits with which a row is to be written, or None."""
        return None if state[-1] is None else noise_of_row(row, *state[-1])

    def noise_apart(noise: Any) -> Any:
        """Return other random bits for a row that is written twice in a launch, or None."""
        return None if noise is None else int(noise) ^ APART

    def load_state(state: Any, i: Any, j: Any) -> Any:
        """Return element ``[i, j]`` of each array of a state."""
        return tuple(
            None if array is None else widen(array[i] if array.ndim == 1 else array[i, j]) for array in state[:-1]
        )

    def store_state(state: Any, i: Any, j: Any, values: Any, noise: Any) -> None:
        """Write element ``[i, j]`` of each array of a state, but no slot that has one number for each row."""
        for k, (array, value) in enumerate(zip(state[:-1], values, strict=True)):
            if array is not None and array.ndim == 2:
                array[i, j] = narrow(value, array, _number(noise, k, j))

    def store_row_state(state: Any, i: Any, values: Any, noise: Any) -> None:
        """Write element ``[i]`` of each slot that has one number for each row."""
        for k, (array, value) in enumerate(zip(state[:-1], values, strict=True)):
            if array is not None and array.ndim == 1:
                array[i] = narrow(value, array, _number(noise, k, 0))

    def lanes_of_state(size: Any, state: Any) -> Any:
        """Return lanes for rows of a state, and how many columns they take; 0 where there are none for it."""
        return None, 0

    def load_state_lanes(like: Any, state: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of each array of a state."""

    def store_state_lanes(like: Any, state: Any, i: Any, j: Any, values: Any, noise: Any) -> None:
        """Write columns from ``j`` of row ``i`` of each array of a state, as :func:`store_state`."""

    def slots_of(state: Any) -> Any:
        """Return the arrays of a state."""
        return state[:-1]

else:

    def _is_array(kind: Any, axes: int) -> bool:
        return isinstance(kind, types.Array) and kind.ndim == axes

    def _bits(context: Any, builder: Any, kind: Any, noise_type: Any, noise: Any, k: int, columns: Any) -> Any:
        """Emit 32 random bits for a column of array ``k``, or several; None for arrays that need no rounding."""
        if isinstance(noise_type, types.NoneType) or kind.dtype not in HALVES:
            return None
        word = ir.IntType(32)
        low, high = builder.trunc(noise, word), builder.trunc(builder.lshr(noise, noise.type(32)), word)
        high = builder.xor(high, word(k * COLUMN & 0xFFFFFFFF))
        if isinstance(columns.type, ir.VectorType):
            low, high = (repeated(builder, number, columns.type.count) for number in (low, high))

        def times(value: Any, factor: int) -> Any:
            return builder.mul(value, constant(word, columns.type, factor))

        def folded(value: Any, shift: int) -> Any:
            return builder.xor(value, builder.lshr(value, constant(word, columns.type, shift)))

        mixed = builder.xor(builder.add(low, times(columns, COLUMN)), high)
        for shift, factor in ROUNDS:
            mixed = times(folded(mixed, shift), factor)
        return folded(mixed, 16)

    @intrinsic
    def noise_of(typing_context: Any, state: Any, row: Any) -> Any:
        """Return the random bits with which a row is to be written, or None."""
        rounding = list(state)[-1]
        if isinstance(rounding, types.NoneType):
            return types.none(state, types.int64), lambda context, *_: context.get_dummy_value()
        kind = typing_context.resolve_value_type(noise_of_row)
        called = kind.get_call_type(typing_context, (types.int64, *rounding), {})

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            words = builder.extract_value(arguments[0], len(state) - 1)
            own = [builder.extract_value(words, k) for k in range(len(rounding))]
            return context.get_function(kind, called)(builder, [arguments[1], *own])

        return called.return_type(state, types.int64), emit

    @intrinsic
    def noise_apart(typing_context: Any, noise: Any) -> Any:
        """Return other random bits for a row that is written twice in a launch, or None."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if isinstance(noise, types.NoneType):
                return context.get_dummy_value()
            return builder.xor(arguments[0], ir.Constant(ir.IntType(64), APART))

        return noise(noise), emit

    @intrinsic
    def load_state(typing_context: Any, state: Any, i: Any, j: Any) -> Any:
        """Return element ``[i, j]`` of each array of a state."""
        arrays = list(state)[:-1]
        result = types.Tuple([element_of(kind) for kind in arrays])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = []
            for k, kind in enumerate(arrays):
                if isinstance(kind, types.NoneType):
                    found.append(context.get_dummy_value())
                    continue
                array = builder.extract_value(arguments[0], k)
                found.append(load_item(context, builder, kind, array, arguments[1 : 1 + kind.ndim], STATE[k]))
            return context.make_tuple(builder, result, found)

        return result(state, types.intp, types.intp), emit

    def _store(axes: int) -> Any:
        """Return the ``emit`` of what writes the arrays of so many axes."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            state, values, noise = signature.args[0], signature.args[-2], signature.args[-1]
            places = arguments[1 : 1 + axes]
            column = builder.trunc(places[1] if axes == 2 else places[0].type(0), ir.IntType(32))
            for k, kind in enumerate(list(state)[:-1]):
                if _is_array(kind, axes):
                    array, value = builder.extract_value(arguments[0], k), builder.extract_value(arguments[-2], k)
                    value = context.cast(builder, value, values[k], element_of(kind))
                    bits = _bits(context, builder, kind, noise, arguments[-1], k, column)
                    store_item(context, builder, kind, array, places, value, STATE[k], bits)
            return context.get_dummy_value()

        return emit

    @intrinsic
    def store_state(typing_context: Any, state: Any, i: Any, j: Any, values: Any, noise: Any) -> Any:
        """Write element ``[i, j]`` of each array of a state, but no slot that has one number for each row."""
        return types.void(state, types.intp, types.intp, values, noise), _store(2)

    @intrinsic
    def store_row_state(typing_context: Any, state: Any, i: Any, values: Any, noise: Any) -> Any:
        """Write element ``[i]`` of each slot that has one number for each row."""
        return types.void(state, types.intp, values, noise), _store(1)

    @intrinsic(prefer_literal=True)
    def lanes_of_state(typing_context: Any, size: Any, state: Any) -> Any:
        """Return lanes for rows of a state, and how many columns they take; 0 where there are none for it."""
        arrays = [kind for kind in list(state)[:-1] if _is_array(kind, 2)]
        there = all(map(fits, arrays))
        lanes = Lanes(width(arrays[0].dtype), size.literal_value)
        result = types.Tuple([lanes, types.int64])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count = ir.Constant(ir.IntType(64), lanes.count if there else 0)
            return context.make_tuple(builder, result, [ir.Constant(context.get_value_type(lanes), None), count])

        return result(size, state), emit

    @intrinsic
    def load_state_lanes(typing_context: Any, like: Any, state: Any, i: Any, j: Any) -> Any:
        """Return columns from ``j`` of row ``i`` of each array of a state."""
        arrays = list(state)[:-1]
        result = types.Tuple([like if _is_array(kind, 2) else element_of(kind) for kind in arrays])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = []
            for k, kind in enumerate(arrays):
                array = builder.extract_value(arguments[1], k)
                if _is_array(kind, 2):
                    found.append(load_item_lanes(context, builder, like, kind, array, arguments[2:], STATE[k]))
                elif _is_array(kind, 1):
                    found.append(load_item(context, builder, kind, array, arguments[2:3], STATE[k]))
                else:
                    found.append(context.get_dummy_value())
            return context.make_tuple(builder, result, found)

        return result(like, state, types.intp, types.intp), emit

    @intrinsic
    def store_state_lanes(typing_context: Any, like: Any, state: Any, i: Any, j: Any, values: Any, noise: Any) -> Any:
        """Write columns from ``j`` of row ``i`` of each array of a state, as :func:`store_state`."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.IntType(32), like.count)
            first = repeated(builder, builder.trunc(arguments[3], ir.IntType(32)), like.count)
            columns = builder.add(first, ir.Constant(vector, [*range(like.count)]))
            for k, kind in enumerate(list(state)[:-1]):
                if _is_array(kind, 2):
                    array, value = builder.extract_value(arguments[1], k), builder.extract_value(arguments[4], k)
                    value = context.cast(builder, value, values[k], like)
                    bits = _bits(context, builder, kind, noise, arguments[5], k, columns)
                    store_item_lanes(context, builder, like, kind, array, arguments[2:4], value, STATE[k], bits)
            return context.get_dummy_value()

        return types.void(like, state, types.intp, types.intp, values, noise), emit

    @intrinsic
    def slots_of(typing_context: Any, state: Any) -> Any:
        """Return the arrays of a state."""
        result = types.Tuple(list(state)[:-1])

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = [builder.extract_value(arguments[0], k) for k in range(len(result))]
            return context.make_tuple(builder, result, found)

        return result(state), emit
