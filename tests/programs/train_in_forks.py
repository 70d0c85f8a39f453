"""Train in a process forked before the first launch, in one forked after it, and in a fork of that; print digests."""

import json
import multiprocessing

from training_digests import digest, layer_in_use, make_optimizer, train, train_and_digest

from numba_rmsprop.runtime import launching

fork = multiprocessing.get_context("fork")


def forked(function):
    """Call a function in a forked process; return the exit status and the result, or None if it died."""
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(function()))
    child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    child.join()
    return [child.exitcode, result]


def go_on():
    return [digest(opt, arrays), train_and_digest(1), launching.team_for(10**9)[0]]


early = forked(lambda: [train_and_digest(0), layer_in_use()])
opt = make_optimizer()
arrays = train(opt, 0)
child = forked(go_on)
grandchild = forked(lambda: [train_and_digest(2), forked(go_on)])
print(json.dumps([early, go_on(), child, grandchild, layer_in_use()]))
