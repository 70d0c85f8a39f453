"""Train here, then in worker processes; print the digests.

``python train_in_workers.py spawn|joblib|data_loader``: the workers are those of multiprocessing, started anew; of
joblib; or of a data loader of PyTorch, forked.
"""

import json
import multiprocessing
import sys

from training_digests import train_and_digest

SEEDS = 1, 2, 3


def train_spawned():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(train_and_digest, SEEDS)


def train_with_joblib():
    import joblib

    return joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(train_and_digest)(seed) for seed in SEEDS)


def train_in_data_loader():
    import torch

    class Trained(torch.utils.data.Dataset):
        def __len__(self):
            return len(SEEDS)

        def __getitem__(self, k):
            return train_and_digest(SEEDS[k])

    return torch.utils.data.DataLoader(Trained(), batch_size=None, num_workers=2, multiprocessing_context="fork")


if __name__ == "__main__":
    mine = train_and_digest(0)
    train = {"spawn": train_spawned, "joblib": train_with_joblib, "data_loader": train_in_data_loader}[sys.argv[1]]
    print(json.dumps([mine, *train()]))
