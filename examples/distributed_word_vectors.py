"""Word vectors on several processes or machines, each with a part of the tables, to the bits of one process.

    mpiexec -n 2 python examples/distributed_word_vectors.py

The job of word_vectors.py, with its options: each rank trains on its part of each batch, and holds its part of the two
tables (pip install '.[examples,mpi]'). Kill it, or a rank of it: the same command goes on from the last checkpoint, to
the same bits, also with another number of ranks.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from parts.documentation_text import Text
from parts.skip_gram import Batch, Buffers, Epoch, Options, expected_batches, gradients, start_tables
from tqdm import tqdm
from word_vectors import make_parser, options_of, print_table, read_text, show

from numba_rmsprop import schedules
from numba_rmsprop.distributed import ShardedTable, TableCheckpoints


def main() -> None:
    """Read the text on one rank, train on all, and show what came out on one."""
    comm = MPI.COMM_WORLD
    arguments = make_parser(__doc__).parse_args()
    options = options_of(arguments)
    text, refusal = None, None
    if comm.rank == 0:
        try:
            text = read_text(arguments)
        except (OSError, UnicodeDecodeError, SystemExit) as error:
            refusal = str(error)
    text, refusal = comm.bcast((text, refusal))
    if text is None:  # on all ranks, or the others would wait
        raise SystemExit(refusal if comm.rank == 0 else 1)
    folder = arguments.out / "distributed"
    vectors, seconds = train(comm, text, options, folder, arguments.checkpoint_every)
    if vectors is not None:
        results = show(text, options, vectors, seconds, arguments)
        print_table([(f"{comm.size} ranks", results)])
        print(f"vectors, vocabulary and map: {arguments.out}")
        print(json.dumps(results))
        shutil.rmtree(folder)


def train(
    comm: MPI.Intracomm, text: Text, options: Options, folder: Path, every: int
) -> tuple[NDArray[np.float32] | None, float]:
    """Return the trained vectors on rank 0, None on others, and the seconds that training took, over all its runs."""
    checkpoints = TableCheckpoints(comm, folder)
    saved = checkpoints.latest()
    settings = dataclasses.asdict(options) | {"words": len(text.words), "different": len(text.vocabulary)}
    notes: dict[str, Any] = {"settings": settings, "epoch": 0, "batch": 0, "seconds": 0.0}
    if saved is None:
        tables = new_tables(comm, text, options)
    elif saved.notes["settings"] != settings:
        message = f"{folder} holds a training with other settings or text; remove it, or use other --out"
        raise SystemExit(message if comm.rank == 0 else 1)
    else:
        notes = saved.notes
        tables = {name: saved.table(comm, name) for name in ("vectors", "contexts")}
        if comm.rank == 0:
            print(f"going on from step {notes['batch']} of epoch {notes['epoch'] + 1}", flush=True)
    buffers = Buffers(options)
    compile_kernels(comm, text, buffers, options)
    started = time.perf_counter() - notes["seconds"]
    total = options.epochs * len(text.words)
    with tqdm(total=total, unit=" words", unit_scale=True, smoothing=0.05, disable=comm.rank > 0) as bar:
        for epoch in range(notes["epoch"], options.epochs):
            plan = Epoch(text, options, epoch)
            first = notes["batch"] if epoch == notes["epoch"] else 0
            share = len(text.words) / len(plan)
            bar.update(round(epoch * len(text.words) + first * share) - bar.n)
            for number, part in enumerate(plan.batches(first, comm.rank, comm.size), first + 1):
                train_part(tables, part, buffers, options)
                bar.update(round(epoch * len(text.words) + number * share) - bar.n)
                if number % every == 0:
                    now = {"epoch": epoch, "batch": number, "seconds": time.perf_counter() - started}
                    checkpoints.save(tables, notes=notes | now)
    seconds = time.perf_counter() - started
    checkpoints.save(tables, notes=notes | {"epoch": options.epochs, "batch": 0, "seconds": seconds})
    return tables["vectors"].whole(), seconds


def new_tables(comm: MPI.Intracomm, text: Text, options: Options) -> dict[str, ShardedTable]:
    """Return the tables before training, with the values that they have on one process."""
    vectors, contexts = start_tables(text, options)
    schedule = schedules.PolynomialDecay(options.learning_rate, expected_batches(text, options), 0.0)

    def table(values: NDArray[np.float32]) -> ShardedTable:
        return ShardedTable(
            comm, *values.shape, initializer=lambda rows: values[rows],
            learning_rate=schedule, rho=options.rho, epsilon=1e-6,
        )  # fmt: skip

    return {"vectors": table(vectors), "contexts": table(contexts)}


def train_part(tables: dict[str, ShardedTable], part: Batch, buffers: Buffers, options: Options) -> None:
    """Take one step on both tables with this rank's part of a batch."""
    n, m = len(part.words), len(part.targets)
    # Both on their way at once; the rows of the one are copied while those of the other come.
    x_coming = tables["vectors"].gather_async(part.words, out=buffers.x[:n])
    y_coming = tables["contexts"].gather_async(part.targets, out=buffers.y[:m])
    x, y = x_coming.wait(), y_coming.wait()
    x_grad, y_grad = gradients(x, y, part, buffers, options)
    tables["vectors"].apply_gradients(part.words, x_grad)
    tables["contexts"].apply_gradients(y_grad)


def compile_kernels(comm: MPI.Intracomm, text: Text, buffers: Buffers, options: Options) -> None:
    """Take two steps on copies, so that the training is timed and not the compiler, which runs once a machine."""
    if comm.rank == 0:
        print("compiling (seconds the first time, then from the cache) ...", flush=True)
    tables = new_tables(comm, text, options)
    for _, part in zip(range(2), Epoch(text, options, 0).batches(0, comm.rank, comm.size), strict=False):
        train_part(tables, part, buffers, options)


if __name__ == "__main__":
    main()
