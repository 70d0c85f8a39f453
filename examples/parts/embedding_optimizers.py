"""The optimizers that examples choose from: RMSprop in three modes, and PyTorch's for sparse gradients."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from numba_rmsprop import CheckpointManager, RMSprop, schedules

from .options_and_files import replacing
from .table_forms import options_of_form

IN_TORCH = {"adagrad": "Adagrad", "sparse-adam": "SparseAdam"}
OPTIMIZERS = ["exact", "lazy", "dense", *IN_TORCH]
EPSILON = 1e-8


Array = NDArray[np.float32]


class OptimizerOptions(Protocol):
    """What an example says of its optimizer."""

    @property
    def optimizer(self) -> str:
        """One of :data:`OPTIMIZERS`."""

    @property
    def learning_rate(self) -> float:
        """The learning rate at the start."""

    @property
    def rho(self) -> float:
        """The share of the mean square that a step keeps."""

    @property
    def form(self) -> str:
        """The form of tables; see :mod:`table_forms`."""

    @property
    def seed(self) -> int:
        """The seed of what is rounded at random."""


class Optimizer(Protocol):
    """What a training asks of an optimizer."""

    @property
    def iterations(self) -> int:
        """How many steps were taken."""

    def gather(self, var: Array, indices: NDArray[np.int64], out: Array) -> Array:
        """Write the current rows ``indices`` of ``var`` into ``out``."""

    def apply_gradients(self, grads_and_vars: Any) -> int:
        """Take a step."""

    def save(self, folder: Path) -> None:
        """Save all variables and the state."""

    def has_saved(self, folder: Path) -> bool:
        """Return whether there is something to restore."""

    def restore(self, folder: Path) -> None:
        """Overwrite variables and state with the last ones that were saved."""


def make_optimizer(options: OptimizerOptions, steps: int, variables: list[NDArray[Any]]) -> Optimizer:
    """Return the optimizer of ``options``, whose learning rate falls linearly to 0 over ``steps``."""
    schedule = schedules.PolynomialDecay(options.learning_rate, steps, 0.0)
    if options.optimizer in IN_TORCH:
        if options.form != "float32":
            raise SystemExit(f"--form: expected float32 with --optimizer {options.optimizer}, got {options.form}")
        if importlib.util.find_spec("torch") is None:
            raise SystemExit(f"--optimizer {options.optimizer} is PyTorch's: pip install torch")
        return TorchTrainer(IN_TORCH[options.optimizer], schedule, variables)
    sparse_update = "lazy" if options.optimizer == "lazy" else "exact"
    form = options_of_form(options.form, options.seed)
    opt = RMSprop(schedule, rho=options.rho, epsilon=EPSILON, sparse_update=sparse_update, **form)
    opt.build(variables)
    return RMSpropTrainer(opt, variables, dense=options.optimizer == "dense")


class RMSpropTrainer:
    """RMSprop, fed with the rows that a batch touches, or with ``dense`` with gradients that are mostly 0."""

    def __init__(self, opt: RMSprop, variables: list[NDArray[Any]], *, dense: bool) -> None:
        self.opt = opt
        self.variables = variables
        self.dense = dense

    def gather(self, var: Array, indices: NDArray[np.int64], out: Array) -> Array:
        """Write rows of a table into ``out``."""
        return self.opt.gather(var, indices, out=out)

    def apply_gradients(self, grads_and_vars: Any) -> int:
        """Take a step."""
        if self.dense:
            grads_and_vars = [(zero_filled(grad, var), var) for grad, var in grads_and_vars]
        return self.opt.apply_gradients(grads_and_vars)

    @property
    def iterations(self) -> int:
        """How many steps were taken."""
        return self.opt.iterations

    def save(self, folder: Path) -> None:
        """Save all variables and the state, durably."""
        CheckpointManager(folder, keep=2).save(self.opt)

    def has_saved(self, folder: Path) -> bool:
        """Return whether there is something to restore."""
        return folder.is_dir() and bool(CheckpointManager(folder).latest())

    def restore(self, folder: Path) -> None:
        """Overwrite variables and state with the last ones that were saved."""
        self.opt = RMSprop.load(CheckpointManager(folder).latest(), self.variables)


def zero_filled(grad: Any, var: Array) -> Array:
    """Return the sum of a sparse gradient's rows, with zeros where it has none."""
    ones, entries = np.ones(len(grad.indices), np.float32), np.arange(len(grad.indices))
    return csr_array((ones, (grad.indices, entries)), shape=(len(var), len(entries))) @ grad.values


class TorchTrainer:
    """One of PyTorch's optimizers that take sparse gradients, on tensors over the same memory."""

    def __init__(self, name: str, schedule: schedules.LearningRateSchedule, variables: list[NDArray[Any]]) -> None:
        import torch

        torch.sparse.check_sparse_tensor_invariants.disable()  # it warns unless told, of its own tensors too
        self.torch = torch
        self.schedule = schedule
        self.tensors = {id(var): torch.from_numpy(var) for var in variables}
        learnt = [tensor for tensor in self.tensors.values() if tensor.dtype == torch.float32]
        self.opt = getattr(torch.optim, name)(learnt, lr=schedule(0))
        self.iterations = 0

    def gather(self, var: Array, indices: NDArray[np.int64], out: Array) -> Array:
        """Write rows of a table into ``out``."""
        return np.take(var, indices, axis=0, out=out, mode="clip")  # "raise" goes through a buffer

    def apply_gradients(self, grads_and_vars: Any) -> int:
        """Take a step."""
        for grad, var in grads_and_vars:
            indices, values = (self.torch.from_numpy(part) for part in (grad.indices[None], grad.values))
            self.tensors[id(var)].grad = self.torch.sparse_coo_tensor(indices, values, var.shape)
        self.opt.param_groups[0]["lr"] = self.schedule(self.iterations)
        self.opt.step()
        self.iterations += 1
        return self.iterations

    def save(self, folder: Path) -> None:
        """Save all variables and the state."""
        state = {"variables": list(self.tensors.values()), "optimizer": self.opt.state_dict(), "step": self.iterations}
        with replacing(folder / "torch.pt") as new:
            self.torch.save(state, new)

    def has_saved(self, folder: Path) -> bool:
        """Return whether there is something to restore."""
        return (folder / "torch.pt").exists()

    def restore(self, folder: Path) -> None:
        """Overwrite variables and state with the last ones that were saved."""
        state = self.torch.load(folder / "torch.pt", weights_only=True)
        for tensor, saved in zip(self.tensors.values(), state["variables"], strict=True):
            tensor.copy_(saved)
        self.opt.load_state_dict(state["optimizer"])
        self.iterations = state["step"]
