"""RMSprop as torch.optim has it, with sparse gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..runtime.locking import in_turn
from . import stale_rows
from .options import check_names, check_options, check_state_dict
from .parameter_state import SLOTS, Entry, ParameterState, check_parameter
from .steps import Group, Steps
from .tensor_views import STORED_AS, describe
from .undocumented import without_idle_hooks


class RMSprop(torch.optim.Optimizer):
    """torch.optim.RMSprop for parameters on the CPU, dense and sparse.

    Per element, with gradient g (negated with ``maximize``) at each step::

        g   <- g + weight_decay·param
        square_avg <- alpha·square_avg + (1 - alpha)·g²
        grad_avg   <- alpha·grad_avg + (1 - alpha)·g                      (centered)
        v    = square_avg, or max(square_avg - grad_avg², 0)              (centered)
        without momentum:  param <- param - lr·g / (sqrt(v) + eps)
        with momentum:     buffer <- momentum·buffer + g / (sqrt(v) + eps);  param <- param - lr·buffer

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor), or of dict
        What to optimize, or parameter groups, as for every torch.optim.Optimizer: on the CPU, of float32, float64,
        complex64, complex128, bfloat16 or float16. The state of the last two is float32.
    lr : float or Tensor, default 0.01
        The learning rate, which schedulers change.
    alpha : float, default 0.99
        How much of the mean square stays from step to step: what TensorFlow, and the rest of this package, call rho.
    eps : float, default 1e-8
        Keeps the division from 0.
    weight_decay : float, default 0
        L2 penalty, which enters the mean square; not with sparse gradients in exact mode.
    momentum : float, default 0
        Also what OneCycleLR changes. A step with 0 leaves the buffer as it is and goes without it.
    centered : bool, default False
        Divide by the estimated standard deviation and not the root of the mean square.
    maximize : bool, default False
        Go up the gradient.
    capturable, foreach, differentiable, fused : bool or None
        PyTorch's. ``foreach`` is only about speed and means nothing here; the others, which would ask for what there is
        not, must be False or None.
    sparse_update : {"exact", "lazy"}, default "exact"
        What a sparse gradient means for the rows it leaves out: "exact", a gradient of 0, computed when the row is next
        needed; "lazy", no step at all. An option of parameter groups like the others.

    Raises
    ------
    ValueError
        If a number is negative, a parameter comes twice, or an option is misspelt or asks for what is not here.
    TypeError
        If a parameter is on another device, or of another dtype, or what should be a number is none.

    Notes
    -----
    Parameters, gradients and state are read and written where they lie. ``state_dict`` is that of torch.optim.RMSprop
    and loads there, as theirs loads here.

    With momentum, rows that a sparse step does not touch move too, but only when they are needed. An
    :class:`~numba_rmsprop.torch.Embedding` or :class:`~numba_rmsprop.torch.EmbeddingBag` sees to that; with others,
    call :meth:`catch_up` before you read rows, or write to them, and :meth:`flush` before you read a table, or write to
    it: or else what rows have missed moves what you have written. A warning tells you, once, where nobody has caught up
    rows between two steps, or somebody has written to rows while others were behind.

    The state of such rows is behind too, also without momentum. ``state[parameter]`` brings it up to date whenever
    something is read from it. A tensor that you keep from it falls behind at the next sparse step.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html. The clamp at 0 is ours: rounding may leave
    less, and PyTorch NaN.

    Examples
    --------
    >>> from numba_rmsprop.torch import Embedding
    >>> table = Embedding(1000, 2, _weight=torch.zeros(1000, 2))
    >>> optimizer = RMSprop(table.parameters(), lr=0.1)
    >>> table(torch.tensor([7, 7])).sum().backward()
    >>> optimizer.step()
    >>> table.weight[7].detach().numpy().round(4)
    array([-1., -1.], dtype=float32)
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        sparse_update: str = "exact",
    ) -> None:
        self._steps = Steps()
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "sparse_update": sparse_update,
        }
        check_options({**defaults, "capturable": capturable, "differentiable": differentiable, "fused": fused})
        super().__init__(params, defaults)

    @without_idle_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; a call that raises leaves every parameter and state as it was.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients anew; called first.

        Returns
        -------
        loss
            What ``closure`` returned, or None.

        Raises
        ------
        ValueError
            If ``weight_decay`` meets a sparse gradient in exact mode.
        TypeError
            If a parameter or gradient is of a kind that cannot be stepped.
        IndexError
            If a sparse gradient has an index out of bounds.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = self._steps.rates_of(self.param_groups)  # this may run users' code, and so takes no lock
        in_turn(self._steps.take, self.param_groups, self.state, rates)
        return loss

    def catch_up(self, parameter: Tensor, indices: Tensor) -> None:
        """Bring rows of a parameter up to date, which steps with sparse gradients have left behind.

        Parameters
        ----------
        parameter : Tensor
            One of this optimizer's.
        indices : Tensor of int, any shape
            Rows, which may repeat.

        Raises
        ------
        ValueError
            If the parameter is in no group.
        TypeError, IndexError
            If the indices are no integers, or out of bounds.
        """
        own = self._own(parameter)
        if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
            raise TypeError(f"indices: expected integers, got {indices.dtype}")
        rows = len(parameter) if parameter.ndim else 0
        if indices.numel() and not (indices.min() >= 0 and indices.max() < rows):
            raise IndexError(f"indices: expected 0 <= index < {rows}, got {int(indices.min())} to {int(indices.max())}")
        for table in self._tables(parameter, own):
            table.ask(parameter, indices)

    def flush(self, *parameters: Tensor) -> None:
        """Bring every row of the given parameters up to date, or of all, and of their state.

        To be called before a parameter with sparse gradients and momentum is read as a whole, or written to. Rows that
        an optimizer before this one has left behind are brought up to date too.

        Raises
        ------
        ValueError
            If one of them is in no group.
        """
        if not parameters:
            parameters = tuple(parameter for group in self.param_groups for parameter in group["params"])
        for parameter in parameters:
            for table in self._tables(parameter, self._own(parameter)):
                table.flush(parameter)

    def _tables(self, parameter: Tensor, own: ParameterState | None) -> list[stale_rows.Table]:
        """Return who knows of rows that are behind: this optimizer, and one before it."""
        tables = [] if own is None else [own.table]
        if own is None or not own.slots.has_values_behind:  # or else no other has rows behind
            other = stale_rows.table_of(parameter)
            tables += [] if other is None or other in tables else [other]
        return tables

    def _own(self, parameter: Tensor) -> ParameterState | None:
        """Return what is known of a parameter; None before its first step."""
        if not isinstance(parameter, Tensor):
            raise TypeError(f"expected a parameter, got {type(parameter).__name__}; pass several as flush(*parameters)")
        if not any(parameter is known for group in self.param_groups for known in group["params"]):
            raise ValueError(f"{describe('parameter', parameter)}: expected one of this optimizer's groups")
        return self._steps.known.get(id(parameter))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim.RMSprop does, every row current.

        Its tensors are the optimizer's own: save or copy them before the next step.
        """
        self.flush()
        found: dict[str, Any] = super().state_dict()
        entries = found["state"].items()
        return {**found, "state": {k: dict(entry) if isinstance(entry, Entry) else entry for k, entry in entries}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or that of torch.optim.RMSprop.

        Rows that are behind are caught up before, unless somebody else has written to the parameter since the last
        step: then it is taken for loaded, and stays as it is. The tensors are not copied, as in PyTorch.

        Raises
        ------
        TypeError
            If something in it is of a wrong type.
        ValueError
            If it does not fit the groups and parameters, lacks something, or asks for what is not here.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict: expected what RMSprop.state_dict returned, got {type(state_dict).__name__}")
        loaded: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, found: self._before_load(found, loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                if parameter.dtype in STORED_AS and number in loaded["state"]:
                    # PyTorch has rounded it to the parameter's dtype.
                    found = loaded["state"][number]
                    self.state[parameter].update({key: found[key] for key in SLOTS if key in found})

    def _before_load(self, found: dict[str, Any], loaded: dict[str, Any]) -> None:
        """Check what is about to be loaded, after the hooks of others; keep it in ``loaded``."""
        check_state_dict(found, self.param_groups)
        loaded.update(found)

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, as torch.optim.Optimizer does.

        Raises
        ------
        ValueError
            If a parameter is in a group already, or an option is misspelt or has a value that it cannot have.
        TypeError
            If a parameter is on another device, or of another dtype, or what should be a number is none.
        """
        if isinstance(param_group, dict):
            check_names(param_group)
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        group = self.param_groups[number]
        try:
            check_options(group, f"group {number}: ")
            for k, parameter in enumerate(group["params"]):
                check_parameter(parameter, f"parameter {k} of group {number}")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        found: dict[str, Any] = super().__getstate__()
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        if before:  # a state dict is loaded, and its groups fit
            for own in self._steps.known.values():
                # Whoever has loaded the model before the optimizer wants the rows as they were loaded.
                own.table.retire(own.parameter)
            for group, known in zip(state["param_groups"], before, strict=True):
                group.setdefault("sparse_update", known["sparse_update"])  # torch.optim.RMSprop has no such option
        super().__setstate__(state)
        self._steps = Steps()
        for group in self.param_groups:
            for name in ("momentum", "centered", "maximize"):  # which PyTorch has not always had
                group.setdefault(name, self.defaults[name])
        self.defaults.pop("differentiable", None)  # PyTorch sets it here, and only here
