"""Move the memory of a parameter, or of its state, between steps, as sharing it with another process does.

``python move_to_shared_memory.py parameter|state``
"""

import sys

import torch
from torch import nn

from numba_rmsprop.torch import RMSprop

table = nn.Embedding(200_000, 64, sparse=True)
twin = nn.Parameter(table.weight.detach().clone())
opt, peer = RMSprop(table.parameters()), torch.optim.RMSprop([twin])
for t in range(4):
    opt.zero_grad()
    table(torch.arange(t, 100)).square().sum().backward()
    twin.grad = table.weight.grad.to_dense()
    opt.step()
    peer.step()
    if t == 2:
        opt.zero_grad()
        moved = table.weight if sys.argv[1] == "parameter" else opt.state[table.weight]["square_avg"]
        moved.data.share_memory_()
        opt.state_dict()
torch.testing.assert_close(table.weight, twin)
torch.testing.assert_close(opt.state_dict()["state"][0]["square_avg"], peer.state[twin]["square_avg"])
