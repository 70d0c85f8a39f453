"""Ranks that call one function of these programs after the other, as they are asked on standard input.

To start ranks anew for each function takes seconds, most of them for imports. ``python -m mpi4py`` starts this file, so
that an exception on one rank ends all.
"""

import importlib
import json
import sys
import time

from mpi_world import comm

asking = comm.Dup()  # so that no message of a function can be taken for a request


def next_request():
    """Return the next line on every rank. They wait asleep: MPI's own waiting takes a core."""
    if comm.rank == 0:
        line = sys.stdin.readline()
        for other in range(1, comm.size):
            asking.send(line, other)
        return line
    while not asking.iprobe(0):
        time.sleep(0.002)
    return asking.recv(source=0)


while request := next_request():
    program, *arguments = json.loads(request)
    module, function = program.split(".")
    getattr(importlib.import_module(module), function)(*arguments)
    asking.Barrier()
    if comm.rank == 0:
        print("DONE", flush=True)
