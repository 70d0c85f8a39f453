"""Trainings in child processes that are killed at any moment, and gone on with."""

import multiprocessing
import os
import random
import signal
import time


def kill_children(train, folder, children, seed):
    """Kill children that call ``train(folder, has_saved)``; yield, after each, whether it was killed during a save."""
    rng, context = random.Random(seed), multiprocessing.get_context("fork")
    for k in range(children):
        has_saved = context.Event()
        child = context.Process(target=train, args=(folder, has_saved))
        child.start()
        if k % 4:  # the others may be killed before they have done anything
            assert has_saved.wait(timeout=60)
        time.sleep(rng.uniform(0.005, 0.06))  # only chooses the moment of the kill; every moment must do
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        yield any(path.suffix == ".part" for path in folder.iterdir())
