"""Train in four Python threads, first with an optimizer for each, then with one for all; print the digests."""

import json

import numba
from training_digests import digest, in_threads, layer_in_use, make_optimizer, train, train_and_digest


def train_on_some_threads(seed):
    numba.set_num_threads(1 + seed % numba.config.NUMBA_NUM_THREADS)
    return train_and_digest(seed)


own = in_threads(train_on_some_threads, range(4))
opt = make_optimizer()
shared = [digest(opt, arrays) for arrays in in_threads(lambda seed: train(opt, seed), range(4))]
print(json.dumps([own, shared, layer_in_use()]))
