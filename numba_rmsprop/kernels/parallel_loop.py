"""The one parallel loop of the package, in which workers take their shares of a kernel's work.

Numba compiles a ``prange`` loop and all that it calls three times, which took a second for each kernel and each set of
types. So kernels are serial: they hand the function that takes a share to a loop that is compiled once, for all of
them. A team of one takes no loop, and then no threads are started.

Arguments that travel together
------------------------------
team
    ``(workers, loop)``: how many workers there are, and the address of the loop, or 0 for a team of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import ONE_THREAD, Integer, compiled, compiled_parallel, inlined

if ONE_THREAD:

    @inlined
    def run_shares(share: Any, team: Any, arguments: Any) -> None:
        """Call ``share(worker, workers, *arguments)`` for each worker, on the calling thread."""
        for worker in range(team[0]):
            share(np.int64(worker), team[0], *arguments)

    def loop_address() -> Integer:
        """Return 0, since there is no parallel loop."""
        return 0

else:
    INT64 = ir.IntType(64)
    THREE_INTEGERS = ir.FunctionType(ir.VoidType(), [INT64, INT64, INT64])

    def _function(context: Any, module: Any, dispatcher: Any, signature: Any, fill: Any) -> Any:
        """Return a function of the module that takes three integers, and calls a compiled one with what ``fill`` says.

        Compiled functions that raise nothing have no status to look at.
        """
        found = dispatcher.overloads[signature.args]
        context.add_linking_libs([found.library])
        function = ir.Function(module, THREE_INTEGERS, module.get_unique_name(dispatcher.__name__))
        function.linkage = "internal"
        builder = ir.IRBuilder(function.append_basic_block())
        context.call_internal_no_propagate(builder, found.fndesc, signature, fill(builder, *function.args))
        builder.ret_void()
        return function

    @intrinsic
    def run_shares(typing_context: Any, share: Any, team: Any, arguments: Any) -> Any:
        """Call ``share(worker, workers, *arguments)`` for each worker, on all threads; a team of one, on this one."""
        called = share.get_call_type(typing_context, (types.int64, types.int64, *arguments), {})

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def fill(inner: Any, worker: Any, workers: Any, place: Any) -> list[Any]:
                kind = context.get_value_type(arguments)
                loaded = inner.load(inner.inttoptr(place, kind.as_pointer()))
                return [worker, workers, *(inner.extract_value(loaded, k) for k in range(len(arguments)))]

            function = _function(context, builder.module, share.dispatcher, called, fill)
            workers, loop = (builder.extract_value(values[1], k) for k in range(2))
            place = builder.ptrtoint(cgutils.alloca_once_value(builder, values[2]), INT64)
            with builder.if_else(builder.icmp_signed("==", loop, INT64(0))) as (alone, together):
                with alone:
                    builder.call(function, [INT64(0), workers, place])
                with together:
                    loop = builder.inttoptr(loop, THREE_INTEGERS.as_pointer())
                    builder.call(loop, [builder.ptrtoint(function, INT64), workers, place])
            return context.get_dummy_value()

        return types.void(share, types.UniTuple(types.int64, 2), arguments), emit

    @intrinsic
    def _call_share(typing_context: Any, share: Any, worker: Any, workers: Any, place: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            builder.call(builder.inttoptr(values[0], THREE_INTEGERS.as_pointer()), values[1:])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), emit

    @compiled_parallel
    def _loop(share: Integer, workers: Integer, place: Integer) -> None:
        for worker in prange(workers):
            _call_share(share, worker, workers, place)  # type: ignore[call-arg] # Numba adds the first one

    loop: Any = _loop

    @intrinsic
    def _address_of_loop(typing_context: Any) -> Any:
        called = types.Dispatcher(loop).get_call_type(typing_context, (types.int64,) * 3, {})

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            function = _function(context, builder.module, loop, called, lambda inner, *integers: integers)
            return builder.ptrtoint(function, INT64)

        return types.int64(), emit

    @compiled
    def loop_address() -> Integer:
        """Return the address of the loop. To have it starts Numba's threads."""
        address: Integer = _address_of_loop()  # type: ignore[call-arg] # Numba adds it
        return address
