"""The one parallel loop of the package, in which workers take their shares of a kernel's work.

Numba compiles a ``prange`` loop and all that it calls three times, which took a second for each kernel and each set of
types. So kernels are serial: they hand the address of the function that takes a share to a loop that is compiled once,
for all of them. A team of one takes no loop, and then no threads are started.

Arguments that travel together
------------------------------
team
    ``(workers, loop, pool, kind)``: into how many shares the work is divided; the address of the loop, or 0 for a team
    of one; and the last two arguments of the loop, see :func:`~numba_rmsprop.kernels.thread_pool.share_out`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .jit import ONE_THREAD, Integer, compiled, inlined, intrinsic
from .thread_pool import share_out, share_out_to_numba

if ONE_THREAD:

    @inlined
    def run_shares(share: Any, team: Any, arguments: Any) -> None:
        """Call ``share(worker, workers, *arguments)`` for each worker, on the calling thread."""
        for worker in range(team[0]):
            share(np.int64(worker), team[0], *arguments)

    def pool_loop_address() -> Integer:
        """Return 0, since there is no parallel loop."""
        return 0

    numba_loop_address = pool_loop_address

else:
    INT64 = ir.IntType(64)
    SHARE = ir.FunctionType(ir.VoidType(), [INT64] * 3)
    LOOP = ir.FunctionType(ir.VoidType(), [INT64] * 5)
    TEAM = types.UniTuple(types.int64, 4)

    def _function(context: Any, module: Any, kind: Any, dispatcher: Any, signature: Any, fill: Any) -> Any:
        """Return a function of the module that takes integers, and calls a compiled one with what ``fill`` says.

        Compiled functions that raise nothing have no status to look at.
        """
        found = dispatcher.overloads[signature.args]
        context.add_linking_libs([found.library])
        function = ir.Function(module, kind, module.get_unique_name(dispatcher.__name__))
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

            function = _function(context, builder.module, SHARE, share.dispatcher, called, fill)
            workers, loop, pool, kind = (builder.extract_value(values[1], k) for k in range(4))
            place = builder.ptrtoint(cgutils.alloca_once_value(builder, values[2]), INT64)
            with builder.if_else(builder.icmp_signed("==", loop, INT64(0))) as (alone, together):
                with alone:
                    builder.call(function, [INT64(0), workers, place])
                with together:
                    loop = builder.inttoptr(loop, LOOP.as_pointer())
                    builder.call(loop, [builder.ptrtoint(function, INT64), workers, place, pool, kind])
            return context.get_dummy_value()

        return types.void(share, TEAM, arguments), emit

    @intrinsic
    def _address_of(typing_context: Any, loop: Any) -> Any:
        called = loop.get_call_type(typing_context, (types.int64,) * 5, {})

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            function = _function(context, builder.module, LOOP, loop.dispatcher, called, lambda _, *integers: integers)
            return builder.ptrtoint(function, INT64)

        return types.int64(loop), emit

    @compiled
    def pool_loop_address() -> Integer:
        """Return the address of the loop that helpers join: :func:`~numba_rmsprop.kernels.thread_pool.share_out`."""
        address: Integer = _address_of(share_out)
        return address

    @compiled
    def numba_loop_address() -> Integer:
        """Return the address of the loop of Numba's threads, which it starts.

        It is :func:`~numba_rmsprop.kernels.thread_pool.share_out_to_numba`.
        """
        address: Integer = _address_of(share_out_to_numba)
        return address
