"""A fit's own functions behind an address.

Numba compiles a function anew for each function that is handed to it, and the loop of a fit took a second. So only what
calls the user's functions is compiled with them, and the loop, which is kept on disk, calls that by its address. What
they raise comes through.

An evaluator is ``(address, place)``: of the compiled function, and of the memory with its arguments.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import Integer, compiled_for_functions, compiled_loop_for_functions
from ..tuple_intrinsics import row_of
from .arguments import COST


@compiled_for_functions
def evaluate(i: Integer, what: Integer, functions: Any, data: Any, scratch: Any, triangles: Any) -> Any:
    """Evaluate the functions of fit ``i``; return the cost.

    ``what`` is COST for the cost at ``scratch.x`` and its gradient, or TRIANGLE for that of the Jacobian at
    ``scratch.best``.
    """
    x = scratch.x if what == COST else scratch.best
    return np.float64(functions.cost(functions, x, row_of(data, i), scratch.slopes, what, triangles, i))


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def evaluator_of(*arguments: Any) -> tuple[Any, Any]:
        """Return an evaluator, and nothing that must be kept as long."""
        return (evaluate, arguments), None

    def call_evaluator(evaluator: Any, i: Any, what: Any) -> Any:
        """Do as :func:`evaluate`."""
        function, arguments = evaluator
        return function(i, what, *arguments)

else:
    INT64 = ir.IntType(64)
    INTEGERS = (types.int64,) * 3
    PAIR: Any = types.Tuple((types.int64, types.int64))  # type: ignore[no-untyped-call]

    def _function_type(context: Any) -> Any:
        return context.call_conv.get_function_type(types.float64, INTEGERS)

    @intrinsic
    def _address_of(typing_context: Any, function: Any, arguments: Any, place: Any) -> Any:
        """Store arguments at ``place``, unless that is 0; return the address of a function that takes them from there.

        And return how many bytes they take.
        """
        called = function.get_call_type(typing_context, (types.int64, types.int64, *arguments), {})

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = context.get_value_type(arguments)
            with builder.if_then(builder.icmp_signed("!=", values[2], INT64(0))):
                builder.store(values[1], builder.inttoptr(values[2], kind.as_pointer()))
            found = function.dispatcher.overloads[called.args]
            context.add_linking_libs([found.library])
            name = builder.module.get_unique_name("evaluate")
            wrapper = ir.Function(builder.module, _function_type(context), name)
            wrapper.linkage = "internal"
            inner = ir.IRBuilder(wrapper.append_basic_block())
            i, what, where = context.call_conv.get_arguments(wrapper)
            loaded = inner.load(inner.inttoptr(where, kind.as_pointer()))
            taken = [i, what, *(inner.extract_value(loaded, k) for k in range(len(arguments)))]
            status, cost = context.call_internal_no_propagate(inner, found.fndesc, called, taken)
            with cgutils.if_unlikely(inner, status.is_error):  # type: ignore[no-untyped-call]
                context.call_conv.return_status_propagate(inner, status)
            context.call_conv.return_value(inner, cost)
            size = INT64(context.get_abi_sizeof(kind))
            return context.make_tuple(builder, signature.return_type, [builder.ptrtoint(wrapper, INT64), size])

        return PAIR(function, arguments, types.int64), emit

    @compiled_loop_for_functions
    def _prepare(place: Any, functions: Any, data: Any, scratch: Any, triangles: Any) -> Any:
        return _address_of(evaluate, (functions, data, scratch, triangles), place)  # type: ignore[call-arg] # Numba adds one

    def evaluator_of(*arguments: Any) -> tuple[Any, Any]:
        """Return an evaluator, and the memory of its arguments, which must be kept as long.

        Parameters
        ----------
        functions : Functions
        data : tuple
            See :func:`numba_rmsprop.kernels.tuple_intrinsics.row_of`.
        scratch : Scratch
        triangles : ndarray or None
            See :class:`~.arguments.Results`.
        """
        address, size = _prepare(0, *arguments)
        memory = np.zeros(-(-size // 8), np.int64)
        _prepare(memory.ctypes.data, *arguments)
        return (address, memory.ctypes.data), (memory, arguments)

    @intrinsic
    def call_evaluator(typing_context: Any, evaluator: Any, i: Any, what: Any) -> Any:
        """Do as :func:`evaluate`."""

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address, place = (builder.extract_value(values[0], k) for k in range(2))
            function = builder.inttoptr(address, _function_type(context).as_pointer())
            arguments = [*values[1:], place]
            status, cost = context.call_conv.call_function(builder, function, types.float64, INTEGERS, arguments)
            with cgutils.if_unlikely(builder, status.is_error):  # type: ignore[no-untyped-call]
                context.call_conv.return_status_propagate(builder, status)
            return cost

        return types.float64(PAIR, types.int64, types.int64), emit
