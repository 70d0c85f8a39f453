"""One step over parameter groups: everything is looked at, then everything is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batches import Batch
from ..gradients import Gradient, Rows
from ..interrupts import Call, Uninterrupted, call_in_one_go
from ..kernels.dense import add_one
from ..rates import StepRates
from ..slots import Slots
from ..variables import Occupied
from . import behind
from .arrays import describe
from .behind import version_of
from .gradients import as_gradient
from .plans import WORTH_A_PLAN, Plan
from .state import Entry, ParameterState
from .watching import level_of_caller

Group: TypeAlias = dict[str, Any]
States: TypeAlias = dict[Tensor, dict[str, Any]]
Part: TypeAlias = tuple[Slots | Batch, Gradient, StepRates]


@dataclass
class Work:
    """What a step comes to, as far as it has been looked at."""

    states: States
    parts: list[Part] = field(default_factory=list)
    stepped: list[ParameterState] = field(default_factory=list)
    new: dict[int, ParameterState] = field(default_factory=dict)
    has_repeats: bool = False
    worth_a_plan: dict[int, tuple[list[ParameterState], Batch]] = field(default_factory=dict)


class Steps:
    """What is remembered from step to step: where parameters and their state lie, and what is stepped together."""

    def __init__(self) -> None:
        self.known: dict[int, ParameterState] = {}
        self._plans: dict[int, Plan] = {}
        self._rates: dict[int, tuple[tuple[float, ...], StepRates]] = {}
        self._batches: dict[Any, tuple[list[ParameterState], Batch | None]] = {}
        self._written = Written([])
        self._memory: Occupied | None = None
        self._has_warned = False

    def take(self, groups: Sequence[Group], states: States) -> None:
        """Step every parameter that has a gradient."""
        work = Work(states)
        all_rates = [self._rates_of(group, number) for number, group in enumerate(groups)]  # which may run users' code
        for number, group in enumerate(groups):
            rates = all_rates[number]
            plan = self._plans.get(number)
            if plan is None or not plan.fits(group, states):
                self._look_at(enumerate(group["params"]), group, number, rates, work)
                continue
            work.stepped += plan.members
            work.parts.append((plan.batch, plan.batch.gradient, rates))
            if plan.rest:
                self._look_at(plan.rest, group, number, rates, work)
                work.worth_a_plan.pop(number, None)  # there is one
        written = self._written if self._written.parameters == work.stepped else Written(work.stepped)
        if work.new or not self._write_in_one_go(work, written):
            for slots, gradient, _ in work.parts:
                slots.prepare(gradient)
            self._write(work, written)
        for number, (members, batch) in work.worth_a_plan.items():
            self._plans[number] = Plan(groups[number], members, batch, states)

    def _write_in_one_go(self, work: Work, written: Written) -> bool:
        """Take the step where it comes to kernels and numbers alone; return whether it was so simple."""
        if written is not self._written or work.has_repeats:
            return False
        calls = []
        for slots, gradient, rates in work.parts:
            found = slots.calls(gradient, rates, 1.0)
            if found is None:
                return False
            calls += found
        notes = written.calls()
        if notes is None:
            return False
        call_in_one_go([*calls, *notes])
        return True

    def _write(self, work: Work, written: Written) -> None:
        interrupts = Uninterrupted()
        try:
            interrupts.hold()
            self._register(work)
            self._written = written
            for slots, gradient, rates in work.parts:
                slots.step(gradient, rates, 1.0)
            written.note()
        finally:
            interrupts.release()

    def _look_at(
        self, parameters: Iterable[tuple[int, Tensor]], group: Group, number: int, rates: StepRates, work: Work
    ) -> None:
        """Check the gradients of some parameters of a group, and enter what is to be done with them."""
        # PyTorch only warns of a parameter that comes twice, and steps it twice.
        may_batch = len(set(map(id, group["params"]))) == len(group["params"])
        work.has_repeats |= not may_batch
        small: dict[Any, tuple[list[ParameterState], list[Tensor]]] = {}
        for k, parameter in parameters:
            grad = parameter.grad
            if grad is None:
                continue
            own = self._state_of(parameter, k, group, number, work)
            work.stepped.append(own)
            if may_batch and own.small and own.lies_like(grad):
                members, grads = small.setdefault((own.dtype, frozenset(own.tensors)), ([], []))
                members.append(own)
                grads.append(grad)
                continue
            gradient = as_gradient(grad, own, None if work.new else self._occupied())
            if isinstance(gradient, Rows):
                self._check_sparse(own, group)
                if own.small:
                    self._plans.pop(number, None)  # it is to have clocks, of which a batch knows nothing
            own.table.look_for_writes(parameter)
            work.parts.append((own.slots, gradient, rates))
        for kind, (members, grads) in small.items():
            batch = self._batch((number, kind), members)
            if batch is None:
                found = [as_gradient(grad, own) for own, grad in zip(members, grads, strict=True)]
                work.parts += [(own.slots, gradient, rates) for own, gradient in zip(members, found, strict=True)]
                continue
            batch.addresses[:, 0] = [grad.data_ptr() for grad in grads]
            work.parts.append((batch, batch.gradient, rates))
            if len(members) >= max(WORTH_A_PLAN, len(work.worth_a_plan.get(number, ([],))[0])):
                work.worth_a_plan[number] = members, batch

    def _state_of(self, parameter: Tensor, k: int, group: Group, number: int, work: Work) -> ParameterState:
        """Return what is known of a parameter, if it still holds, or else what is found out anew."""
        key = id(parameter)
        if key in work.new:
            return work.new[key]
        own = self.known.get(key)
        if own is None or not own.fits(work.states.get(parameter), group):
            name = f"parameter {k} of group {number}"
            before = behind.table_of(parameter)
            if before is not None:
                before.look_for_writes(parameter)
            own = work.new[key] = ParameterState(parameter, work.states.get(parameter, {}), group, name)
        return own

    def _batch(self, key: Any, members: list[ParameterState]) -> Batch | None:
        """Return the batch of these parameters; None where some share memory, and must be stepped one by one."""
        found, batch = self._batches.get(key, ([], None))
        if found != members:
            ends = sorted((own.slots.var.ctypes.data, own.slots.var.nbytes) for own in members)
            apart = all(low + size <= high for (low, size), (high, _) in pairwise(ends))
            batch = Batch([own.slots for own in members]) if apart else None
            self._batches[key] = members, batch
        return batch

    def _occupied(self) -> Occupied:
        """Return the memory of all parameters and their state."""
        if self._memory is None:
            self._memory = Occupied(array for own in self.known.values() for array in own.arrays)
        return self._memory

    def _rates_of(self, group: Group, number: int) -> StepRates:
        lr = group["lr"]
        learning_rate = lr.item() if isinstance(lr, Tensor) else float(lr)  # float warns of one that wants a gradient
        decay, momentum = float(group["weight_decay"]), float(group["momentum"])
        alpha, epsilon, maximize = float(group["alpha"]), float(group["eps"]), bool(group["maximize"])
        given = learning_rate, alpha, epsilon, decay, momentum, maximize
        latest = self._rates.get(number)
        if latest is not None and latest[0] == given:
            return latest[1]
        has_momentum = momentum > 0
        rates = StepRates(
            learning_rate=1.0 if has_momentum else learning_rate,
            rho=alpha,
            momentum=momentum,
            epsilon_inside=0.0,
            epsilon_outside=epsilon,
            shrink=1.0,
            clipvalue=np.inf,
            outer_rate=learning_rate if has_momentum else 1.0,
            coupled_decay=decay,
            ascends=maximize,
            momentum_rests=not has_momentum,
        )
        self._rates[number] = given, rates
        return rates

    def _check_sparse(self, own: ParameterState, group: Group) -> None:
        if own.exact and group["weight_decay"] != 0:
            raise ValueError(
                f"{describe(own.name, own.parameter)}: weight_decay={group['weight_decay']} with a sparse gradient. "
                "PyTorch's weight decay enters the mean square, and so would move all rows at every step, each in its "
                "own way. Expected weight_decay=0 in its group; or sparse_update='lazy', which decays a row when it is "
                "touched; or dense gradients (sparse=False)"
            )
        if own.slots.has_values_behind and not own.table.was_read and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{describe(own.name, own.parameter)}: with momentum, rows that a step does not touch fall behind, and "
                "no row was caught up since the last step, so the forward pass may have read old values. Take "
                "numba_rmsprop.torch.Embedding or EmbeddingBag, or call optimizer.catch_up(parameter, indices) before "
                "you read rows, or optimizer.flush() before you read all",
                stacklevel=level_of_caller(),
            )

    def _register(self, work: Work) -> None:
        for key, own in work.new.items():
            before = self.known.get(key)
            if before is not None:
                before.table.settle(before.parameter)
            entry = work.states[own.parameter]
            entry.update(own.tensors)
            if isinstance(entry, Entry):
                entry.own = own
            else:
                work.states[own.parameter] = Entry(entry, own)
            self.known[key] = own
        if work.new:  # whoever has put a larger table in the place of one may want the memory
            self._memory = None
            for key in [key for key, own in self.known.items() if own.parameter not in work.states]:
                del self.known[key]
        for parameter, table in behind.noted():  # rows that another optimizer has left behind
            known = self.known.get(id(parameter))
            if known is not None and known.table is not table:
                table.settle(parameter)


class Written:
    """The parameters that a step writes, and what is to be told of it: to their ``step``, autograd, and others.

    Parameters
    ----------
    parameters : list of ParameterState
        The parameters, all of the call.
    """

    def __init__(self, parameters: list[ParameterState]) -> None:
        self.parameters = parameters
        self._versioned = [own.parameter for own in parameters if not own.parameter.is_inference()]
        self._may_fall_behind = [own for own in parameters if own.slots.values_fall_behind]
        addresses: dict[np.dtype[Any], list[int]] = {}
        for step in (own.tensors["step"] for own in parameters):
            addresses.setdefault(step.numpy().dtype, []).append(step.data_ptr())
        self._counters: list[tuple[NDArray[np.int64], NDArray[Any]]] = [
            (np.array(found, np.int64), np.empty(0, dtype)) for dtype, found in addresses.items()
        ]
        self._entries = -1

    def calls(self) -> list[Call] | None:
        """Return what :meth:`note` comes to, where that is kernels and numbers; None where it is more."""
        if self._entries != behind.entries:  # another optimizer may have left rows behind since
            return None
        calls: list[Call] = [(add_one, *arguments) for arguments in self._counters]
        for own in self._may_fall_behind:
            if own.slots.clocks is not None:
                if not own.table.is_noted(own.parameter):
                    return None
                version = version_of(own.parameter)
                calls.append((setattr, own.table, "was_read", False))
                calls.append((setattr, own.table, "version", version and version + 1))
        # Last, since it is Python, where Ctrl-C may come before it has done anything.
        return [*calls, (torch.autograd.graph.increment_version, self._versioned)]

    def note(self) -> None:
        """Note that they have taken a step."""
        for addresses, like in self._counters:
            add_one(addresses, like)
        torch.autograd.graph.increment_version(self._versioned)
        for own in self._may_fall_behind:
            if own.slots.clocks is not None:
                own.table.note_step(own.parameter)
        self._entries = behind.entries
