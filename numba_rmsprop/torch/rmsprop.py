"""The RMSprop of torch.optim, with sparse gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..runtime.whole_calls import in_turn
from . import stale_rows
from .averages import Averages
from .fused import FusedWeight
from .options import CLIPS, OWN_OPTIONS, check_names, check_options, check_state_dict
from .parameter_state import SLOTS, Entry, ParameterState, check_parameter
from .parts import Group
from .row_moves import RowMoves
from .steps import Steps
from .tensor_views import STORED_AS, describe
from .undocumented import without_idle_hooks


class RMSprop(Averages, RowMoves, torch.optim.Optimizer):
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
        The parameters to optimize, or parameter groups, as for every torch.optim.Optimizer. They must be on the CPU, of
        float32, float64, complex64, complex128, bfloat16 or float16. The state of the last two is float32.
    lr : float or Tensor, default 0.01
        The learning rate, which schedulers may change.
    alpha : float, default 0.99
        The decay of the mean square, which TensorFlow and the rest of this package call rho.
    eps : float, default 1e-8
        The number that keeps the division from 0.
    weight_decay : float, default 0
        L2 penalty, which enters the mean square. It cannot be used with sparse gradients in exact mode, since it moves
        all rows at every step, each in its own way: use ``decoupled_weight_decay``.
    momentum : float, default 0
        The momentum, which OneCycleLR may change. A step with 0 neither uses nor changes the momentum buffer.
    centered : bool, default False
        Divide by the estimated standard deviation, and not by the root of the mean square.
    maximize : bool, default False
        Go up the gradient.
    capturable, foreach, differentiable, fused : bool or None
        Options of PyTorch. ``foreach`` only changes the speed there, and is ignored. The others are not supported, and
        must be False or None.
    sparse_update : {"exact", "lazy"}, default "exact"
        The effect of a sparse gradient on the rows that it leaves out. With "exact", their gradient is 0, and their
        step is computed when the row is next needed. With "lazy", they take no step. Parameter groups may differ in it.
    state : {"elementwise", "rowwise"}, default "elementwise"
        With "rowwise", each row of a parameter of two axes or more has one mean square, of the mean of g² over the row:
        ``square_avg`` then has the shape (rows,), which torch.optim.RMSprop cannot load. Not with ``centered``.
        Parameter groups may differ in it, so that tables have row-wise state and layers have not.
    nesterov : bool, default False
        Take Nesterov's momentum: param <- param - lr·(momentum·buffer + g / (sqrt(v) + eps)).
    bias_correction : bool, default False
        Divide square_avg and grad_avg by 1 - alpha^t, where t is how many steps the parameter has taken with this one;
        with an alpha that changes, by 1 - the product of all alpha, which the state keeps as ``alpha_product``, beside
        the number of these steps.
    initial_scale : float, default 0.0
        What square_avg starts from.
    decoupled_weight_decay : bool, default False
        Let ``weight_decay`` shrink the parameter before each step, as AdamW does, and not enter the gradient:
        param <- param·(1 - lr·weight_decay). It is exact with sparse gradients, too: rows that a step does not touch
        then fall behind, as with momentum.
    use_ema : bool, default False
        Keep a moving average of each parameter, in the state as ``average``: after each step,
        average <- ema_momentum·average + (1 - ema_momentum)·param. After the first step that has it, it is the
        parameter, as in torch.optim.swa_utils.AveragedModel. Rows that a step does not touch are averaged too, at the
        cost of the rows that are touched. :meth:`averages` puts it in the place of the parameters.
    ema_momentum : float, default 0.99
        In [0, 1].
    clipnorm, group_clipnorm, global_clipnorm : float, optional
        Scale gradients to a norm of at most this: each by its own; all of a group by their common norm; or all of all
        groups, as torch.nn.utils.clip_grad_norm_ does, which refuses sparse gradients. The norm is that of the sums,
        duplicates added up, dense and sparse gradients together, and the gradients themselves stay as they are. One of
        the three at most for each group; ``global_clipnorm`` must be the same in all groups that have it.
        :attr:`gradient_norms` tells the norms of the latest step; with ``math.inf``, they are told and nothing is
        clipped.

    Raises
    ------
    ValueError
        If a number is negative, a parameter comes twice, or an option is misspelt or not supported.
    TypeError
        If a parameter is on another device or has another dtype, or an option should be a number and is not.

    Notes
    -----
    Parameters, gradients and state are used in place, without copies. A ``state_dict`` can be loaded by
    torch.optim.RMSprop, and the other way round. It knows no option from ``sparse_update`` on, and steps without them.

    With momentum or decoupled weight decay, a sparse step also moves the rows that it does not touch, but only when
    they are needed. A forward pass of :class:`~numba_rmsprop.torch.Embedding` or
    :class:`~numba_rmsprop.torch.EmbeddingBag` catches up the rows that it reads. With other modules, call
    :meth:`catch_up` before you read or write some rows, and :meth:`flush` before you read or write a whole table:
    otherwise you read old values, and the steps that a row has missed are applied to the values that you have written.
    With ``use_ema`` alone, do so before you write: averages of skipped steps go by the values. A warning is given,
    once, if no rows were caught up between two steps, or if rows were written to while others were behind.

    The state of such rows is behind, too, even without momentum. ``state[parameter]`` brings it up to date whenever
    something is read from it. A tensor that you keep from it falls behind at the next sparse step.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html, which has no maximum with 0 in v: rounding
    may make v negative there, and the parameter NaN.

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
        state: str = "elementwise",
        nesterov: bool = False,
        bias_correction: bool = False,
        initial_scale: float = 0.0,
        decoupled_weight_decay: bool = False,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        clipnorm: float | None = None,
        group_clipnorm: float | None = None,
        global_clipnorm: float | None = None,
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
            "state": state,
            "nesterov": nesterov,
            "bias_correction": bias_correction,
            "initial_scale": initial_scale,
            "decoupled_weight_decay": decoupled_weight_decay,
            "use_ema": use_ema,
            "ema_momentum": ema_momentum,
            "clipnorm": clipnorm,
            "group_clipnorm": group_clipnorm,
            "global_clipnorm": global_clipnorm,
        }
        check_options({**defaults, "capturable": capturable, "differentiable": differentiable, "fused": fused})
        super().__init__(params, defaults)

    @without_idle_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. A call that raises leaves all parameters and states as they were.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients; called first.

        Returns
        -------
        loss
            The return value of ``closure``, or None.

        Raises
        ------
        ValueError
            If there is a sparse gradient in exact mode with ``weight_decay`` that is not decoupled, or ``alpha`` is 1
            or more with ``bias_correction``.
        TypeError
            If the kind of a parameter or gradient is not supported.
        IndexError
            If a sparse gradient has an index out of bounds.
        """
        self.refuse_averages("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        numbers = self._steps.numbers_of(self.param_groups)  # this may run users' code, and so takes no lock
        in_turn(self._steps.take, self.param_groups, self.state, numbers)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters, as torch.optim.Optimizer does.

        Gradients of fused embeddings are dropped without their tensors being made, unless these are to be set to 0.
        """
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        others = False
        for group in self.param_groups:
            for parameter in group["params"]:
                if type(parameter) is FusedWeight:
                    parameter.grad = None
                else:
                    others = True
        if others:  # 10 us otherwise
            super().zero_grad(set_to_none)

    @property
    def gradient_norms(self) -> dict[Tensor, float]:
        """The norm of each parameter's gradient in the latest step, before it was clipped; of groups that clip alone.

        Examples
        --------
        >>> layer = torch.nn.Linear(3, 1)
        >>> optimizer = RMSprop(layer.parameters(), global_clipnorm=1.0)
        >>> layer(torch.full((1, 3), 2.0)).sum().backward()
        >>> optimizer.step()
        >>> [optimizer.gradient_norms[parameter] for parameter in layer.parameters()]
        [3.4641016151377544, 1.0]
        """
        return {own.parameter: math.sqrt(square) for own, square in self._steps.squares}

    def catch_up(self, parameter: Tensor, indices: Tensor) -> None:
        """Bring rows of a parameter up to date that steps with sparse gradients have left behind.

        Parameters
        ----------
        parameter : Tensor
            A parameter of this optimizer.
        indices : Tensor of int, any shape
            The rows, which may repeat.

        Raises
        ------
        ValueError
            If the parameter is in no group.
        TypeError, IndexError
            If the indices are not integers, or are out of bounds.
        """
        own = self._own(parameter)
        if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
            raise TypeError(f"indices: expected integers, got {indices.dtype}")
        rows = len(parameter) if parameter.ndim else 0
        if indices.numel() and not (indices.min() >= 0 and indices.max() < rows):
            raise IndexError(f"indices: expected 0 <= index < {rows}, got {int(indices.min())} to {int(indices.max())}")
        for table in self._tables(parameter, own):
            table.catch_up_to_write(parameter, indices)

    def flush(self, *parameters: Tensor) -> None:
        """Bring every row of some parameters up to date, or of all, and of their state.

        Call it before you read a parameter with sparse gradients and momentum or decoupled weight decay as a whole, and
        before you write to such a one or to one with an average. Rows that an earlier optimizer has left behind are
        brought up to date, too.

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
        """Return the tables that note rows of a parameter as behind: of this optimizer, and of an earlier one."""
        tables = [] if own is None else [own.table]
        if own is None or not own.slots.must_catch_up:  # otherwise, no other optimizer has left rows behind
            other = stale_rows.table_of(parameter)
            tables += [] if other is None or other in tables else [other]
        return tables

    def _own(self, parameter: Tensor) -> ParameterState | None:
        """Return the state of a parameter, or None before its first step; raise if it is not in a group."""
        if not isinstance(parameter, Tensor):
            raise TypeError(f"expected a parameter, got {type(parameter).__name__}; pass several as flush(*parameters)")
        if not any(parameter is known for group in self.param_groups for known in group["params"]):
            raise ValueError(f"{describe('parameter', parameter)}: expected one of this optimizer's groups")
        return self._steps.known.get(id(parameter))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim.RMSprop does, with all rows current.

        Its tensors are those of the optimizer: save or copy them before the next step.
        """
        self.refuse_averages("state_dict")
        self.flush()
        found: dict[str, Any] = super().state_dict()
        entries = found["state"].items()
        return {**found, "state": {k: dict(entry) if isinstance(entry, Entry) else entry for k, entry in entries}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict`, also of torch.optim.RMSprop.

        Rows that are behind are caught up first, unless the parameter was written to since the last step: then it was
        probably loaded as well, and stays as it is. The tensors are not copied, as in PyTorch.

        Raises
        ------
        TypeError
            If something in it has a wrong type.
        ValueError
            If it does not fit the groups and parameters, or has an option that is not supported.
        """
        self.refuse_averages("load_state_dict")
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
                # PyTorch has rounded the state to the parameter's dtype.
                kept = ("alpha_product", *SLOTS) if parameter.dtype in STORED_AS else ("alpha_product",)
                found = loaded["state"].get(number, {})
                own = {key: found[key] for key in kept if key in found}
                if own:
                    self.state[parameter].update(own)

    def _before_load(self, found: dict[str, Any], loaded: dict[str, Any]) -> None:
        """Check a state dict after other hooks may have changed it, and copy its entries to ``loaded``."""
        check_state_dict(found, self.param_groups)
        loaded.update(found)

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, as torch.optim.Optimizer does.

        Raises
        ------
        ValueError
            If a parameter is in a group already, or an option is misspelt or has a wrong value.
        TypeError
            If a parameter is on another device or has another dtype, or an option should be a number and is not.
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
        self.refuse_averages("copy or pickle")
        self.flush()
        found: dict[str, Any] = super().__getstate__()
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        if before:  # load_state_dict calls this, with groups that fit
            for own in self._steps.known.values():
                # If the model was loaded before the optimizer, its rows stay as they were loaded.
                own.table.retire(own.parameter)
            for group, known in zip(state["param_groups"], before, strict=True):
                clips = any(group.get(option) is not None for option in CLIPS)
                for option in OWN_OPTIONS:
                    group.setdefault(option, None if clips and option in CLIPS else known[option])
        super().__setstate__(state)
        self._steps = Steps()
        for group in self.param_groups:
            for name in ("momentum", "centered", "maximize"):  # old versions of PyTorch lack some of these
                group.setdefault(name, self.defaults[name])
            for option, default in OWN_OPTIONS.items():  # which pickles of former versions lack
                group.setdefault(option, default)
                self.defaults.setdefault(option, default)
        self.defaults.pop("differentiable", None)  # PyTorch sets it in __setstate__, and nowhere else
