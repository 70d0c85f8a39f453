"""Parameters that our optimizer steps, and copies that torch.optim.RMSprop steps with the same gradients made dense."""

from __future__ import annotations

import io
import itertools

import torch
from torch import nn

from numba_rmsprop.torch import RMSprop

# PyTorch warns at the first sparse tensor if nobody has chosen; some tests make tensors that the check would refuse.
torch.sparse.check_sparse_tensor_invariants.disable()

VARIANTS = [{"momentum": momentum, "centered": centered} for momentum in (0.0, 0.9) for centered in (False, True)]
COMBINATIONS = [
    {"weight_decay": decay, "momentum": momentum, "centered": centered, "maximize": maximize}
    for decay, momentum, centered, maximize in itertools.product((0.0, 0.1), (0.0, 0.9), (False, True), (False, True))
]
# The rounding of some dozen steps, relative to the largest element that a tensor ever had.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.complex64: 1e-6, torch.complex128: 1e-12}


def name_of(options):
    """Name a set of options for pytest."""
    return "-".join(f"{name}={value}" for name, value in options.items() if value) or "default"


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def twin_of(tensor):
    """Return an equal parameter with the same strides and separate memory."""
    return nn.Parameter(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor.detach()))


def sparse(indices, values, shape):
    """Return an uncoalesced gradient; indices are a list of rows, or one list for each sparse axis."""
    indices = torch.as_tensor(indices, dtype=torch.int64)
    indices = indices[None] if indices.ndim == 1 else indices
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


def random_rows(shape, n, dtype=torch.float32, seed=0):
    """Return a gradient of ``n`` random rows of a table, with duplicates."""
    rows = torch.randint(shape[0], (n,), generator=torch.Generator().manual_seed(seed))
    return sparse(rows, randn(n, *shape[1:], dtype=dtype, seed=seed + 1), shape)


def assert_close(actual, expected, tolerance, what="", largest=0.0):
    """Compare up to ``tolerance`` times the largest element, or times ``largest`` if that is more."""
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    if expected.numel():
        error = (actual - expected).abs().max().item()
        largest = max(largest, expected.abs().max().item())
        assert error <= tolerance * largest, f"{what}: off by {error:.3g}, largest {largest:.3g}"


def stored_table(module):
    """Return the table of an Embedding as it is; ``module.weight`` first brings every row up to date."""
    return next(module.parameters())


def through_a_file(saved, **options):
    """Save with PyTorch, and load."""
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, **options)


class Twins:
    """Two optimizers of the same parameters.

    Parameters
    ----------
    *tensors : Tensor
        Where the parameters start.
    own : dict, optional
        Options that only ours has.
    reads : bool
        Whether the rows that a sparse gradient touches are caught up before, as an Embedding does when it reads them.
    **options
        Options of both.
    """

    def __init__(self, *tensors, own=None, reads=True, **options):
        self.reads = reads
        self.ours = [twin_of(tensor) for tensor in tensors]
        self.theirs = [twin_of(tensor) for tensor in tensors]
        self.opt = RMSprop(self.ours, **options, **(own or {}))
        self.peer = torch.optim.RMSprop(self.theirs, **options)
        self.largest = {}

    @property
    def pairs(self):
        return list(zip(self.ours, self.theirs, strict=True))

    @property
    def optimizers(self):
        return self.opt, self.peer

    def add_group(self, tensor, own=None, **options):
        """Add a parameter group of one parameter."""
        self.ours.append(twin_of(tensor))
        self.theirs.append(twin_of(tensor))
        self.opt.add_param_group({"params": self.ours[-1:], **options, **(own or {})})
        self.peer.add_param_group({"params": self.theirs[-1:], **options})

    def set(self, **options):
        """Set options of all groups, as schedulers do."""
        for group in (*self.opt.param_groups, *self.peer.param_groups):
            group.update(options)

    def give(self, *grads):
        for (ours, theirs), grad in zip(self.pairs, grads, strict=True):
            if grad is not None and grad.is_sparse and self.reads:
                self.opt.catch_up(ours, grad._indices()[0])
            ours.grad = grad
            theirs.grad = None if grad is None else grad.to_dense() if grad.is_sparse else grad.clone()

    def step(self, *grads):
        if grads:
            self.give(*grads)
        self.opt.step()
        self.peer.step()
        for k, theirs in enumerate(self.theirs):
            for name, tensor in self._tensors(theirs, self.peer).items():
                size = tensor.detach().abs().max().item() if tensor.numel() else 0.0
                self.largest[k, name] = max(self.largest.get((k, name), 0.0), size)

    def step_rows(self, seeds):
        """Step once for each seed, with gradients of two random rows of each parameter."""
        for seed in seeds:
            self.step(*(random_rows(parameter.shape, 2, parameter.dtype, seed=seed) for parameter in self.ours))

    def check(self, tolerance=None):
        """Compare parameters and state, every row current."""
        self.opt.flush()
        for k, (ours, theirs) in enumerate(self.pairs):
            found, expected = self._tensors(ours, self.opt), self._tensors(theirs, self.peer)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                allowed = TOLERANCE[theirs.dtype] if tolerance is None else tolerance
                largest = self.largest.get((k, name), 0.0)
                assert_close(found[name], tensor, 0.0 if name == "step" else allowed, f"{name} {k}", largest)

    def worst(self):
        """Return the largest difference, relative to the largest element, of all parameters and their state."""
        self.opt.flush()
        worst = 0.0
        for k, (ours, theirs) in enumerate(self.pairs):
            found, expected = self._tensors(ours, self.opt), self._tensors(theirs, self.peer)
            for name, tensor in expected.items():
                if tensor.numel():
                    error = (found[name] - tensor).abs().max().item()
                    worst = max(worst, error / max(self.largest[k, name], 1e-300))
        return worst

    def _tensors(self, parameter, optimizer):
        return {"parameter": parameter.detach(), **optimizer.state.get(parameter, {})}
