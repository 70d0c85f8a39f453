"""Fork within a step, in a learning rate that is a function; step in the children, and print how they ended."""

import json
import os

import numpy as np

from numba_rmsprop import RMSprop

statuses = []


def learning_rate():
    child = os.fork()
    if child == 0:
        RMSprop(momentum=0.9).apply_gradients([(np.ones(3, np.float32), np.ones(3, np.float32))])
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
    return 0.1


opt = RMSprop(learning_rate, momentum=0.9)
for _ in range(2):
    opt.apply_gradients([(np.ones(3, np.float32), np.ones(3, np.float32))])
print(json.dumps(statuses))
