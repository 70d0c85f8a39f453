"""The ranks of a program in tests/programs, their reports to the test, and the choice of its function."""

import json
import sys

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size


def report(value):
    """Print a value of each rank, for on_ranks.reports to return."""
    for of_rank in comm.allgather(value):
        if rank == 0:
            print("REPORT", json.dumps(of_rank, default=lambda number: number.item()), flush=True)


def one_before_the_others(function):
    """Return the result of a function, called on rank 0 first: the others then find what it has compiled."""
    result = function() if rank == 0 else None
    comm.Barrier()
    return function() if rank else result


def run(functions):
    """Call the function that the command line names, with the other arguments."""
    name, *arguments = sys.argv[1:]
    functions[name](*arguments)
