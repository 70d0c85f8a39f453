"""One step over parameter groups: everything is looked at, then everything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays.variables import Occupied
from ..gradients.rows import Rows
from ..kernels.averaged_rmsprop import AVERAGED_RMSPROP
from ..kernels.dense import add_one
from ..kernels.rmsprop import RMSPROP, Numbers, corrected
from ..runtime.caller_warnings import warn
from ..runtime.interrupts import Call, Uninterrupted, call_in_one_go
from ..runtime.whole_calls import carry_out
from ..settings.hyperparameters import check_number
from ..settings.moving_average import at_first_step, with_average
from ..settings.step_numbers import StepNumbers
from ..stepping.own_numbers import own_numbers
from ..stepping.small_batch import Batch
from . import stale_rows
from .fused import waiting_of
from .gradients import as_gradient, as_product
from .parameter_state import Entry, ParameterState
from .parts import Group, Part, clips, scale_of, squares_of
from .remembered_group import WORTH_A_PLAN, Plan
from .tensor_views import describe
from .undocumented import version_of

States: TypeAlias = dict[Tensor, dict[str, Any]]


@dataclass
class Work:
    """The parts of a step that have been looked at so far."""

    states: States
    parts: list[Part] = field(default_factory=list)
    stepped: list[ParameterState] = field(default_factory=list)
    new: dict[int, ParameterState] = field(default_factory=dict)
    has_repeats: bool = False
    worth_a_plan: dict[int, tuple[list[ParameterState], Batch]] = field(default_factory=dict)


class Steps:
    """The steps of an optimizer, and what it remembers from one to the next."""

    def __init__(self) -> None:
        self.known: dict[int, ParameterState] = {}
        self._plans: dict[int, Plan] = {}
        self._numbers: dict[int, tuple[tuple[float | None, ...], StepNumbers]] = {}
        self._batches: dict[Any, tuple[list[ParameterState], Batch | None]] = {}
        self.squares: list[tuple[ParameterState, float]] = []
        self._written = Written([])
        self._memory: Occupied | None = None
        self._entries = -1  # of the module behind, at the last look
        self._has_warned = False

    def numbers_of(self, groups: Sequence[Group]) -> list[StepNumbers]:
        """Return the hyperparameters of each group."""
        return [self._numbers_of(group, number) for number, group in enumerate(groups)]

    def take(self, groups: Sequence[Group], states: States, numbers: Sequence[StepNumbers]) -> None:
        """Step every parameter that has a gradient. The caller holds the lock."""
        worth_a_plan: dict[int, tuple[list[ParameterState], Batch]] = {}
        carry_out(self._look, groups, states, numbers, worth_a_plan)
        for number, (members, batch) in worth_a_plan.items():
            self._plans[number] = Plan(groups[number], members, batch, states)

    def _look(
        self,
        calls: list[Call],
        groups: Sequence[Group],
        states: States,
        all_numbers: Sequence[StepNumbers],
        worth_a_plan: dict[int, tuple[list[ParameterState], Batch]],
    ) -> bool | None:
        """Check the gradients of all groups, and add what a step comes to."""
        work = Work(states)
        for number, group in enumerate(groups):
            numbers = all_numbers[number]
            plan = self._plans.get(number)
            if plan is None or not plan.fits(group, states):
                self._look_at(enumerate(group["params"]), group, number, numbers, work)
                continue
            work.stepped += plan.members
            work.parts.append((plan.batch, plan.batch.addresses, numbers, group))
            if plan.rest:
                self._look_at(plan.rest, group, number, numbers, work)
                work.worth_a_plan.pop(number, None)  # there is one
        worth_a_plan |= work.worth_a_plan
        self._settle(work)
        if work.has_repeats:
            self._step_one_by_one(work)
            return None
        written = self._written if self._written.parameters == work.stepped else Written(work.stepped)
        held = self._add_step(calls, work, written)
        torch.autograd.graph.increment_version(written.versioned)  # Python, so before anything is written
        return held

    def _settle(self, work: Work) -> None:
        """Catch up what other states of the parameters have left behind; the look is then worthless."""
        if work.new or self._entries != stale_rows.entries:
            for key in work.new:
                before = self.known.get(key)
                if before is not None:
                    before.table.settle(before.parameter)
            for parameter, table in stale_rows.noted():
                known = work.new.get(id(parameter)) or self.known.get(id(parameter))
                if known is not None and known.table is not table:
                    table.settle(parameter)
            self._entries = stale_rows.entries
        sparse = {id(slots) for slots, gradient, *_ in work.parts if isinstance(gradient, Rows)}
        for own in work.stepped:
            if own.slots.uses_values and id(own.slots) in sparse:
                own.table.take_over(own.parameter)

    def _add_step(self, calls: list[Call], work: Work, written: Written) -> bool:
        """Add what a step comes to; return whether signal handlers must be held off."""
        held = bool(work.new) or written is not self._written
        if held:
            calls += [(self._register, work), (setattr, self, "_written", written)]
        for part, scale in zip(work.parts, self._clip(calls, work), strict=True):
            held |= _add_part(calls, part, scale)
        written.add_notes(calls)
        return held

    def _clip(self, calls: list[Call], work: Work) -> list[float | list[float]]:
        """Return what the clipping of norms leaves of the gradients of each part, and add what notes the norms."""
        squares = squares_of(work.parts)
        if squares is None:
            if self.squares:
                calls.append((setattr, self, "squares", []))
            return [1.0] * len(work.parts)
        stepped = {id(own.slots): own for own in work.stepped}
        members = [stepped[id(slots)] for part in work.parts if clips(part) for slots in part[0].members]
        calls.append((setattr, self, "squares", list(zip(members, chain.from_iterable(squares), strict=True))))
        return [scale_of(part, own, work.parts, squares) for part, own in zip(work.parts, squares, strict=True)]

    def _step_one_by_one(self, work: Work) -> None:
        """Step parameters of which one comes twice, and so goes on from its first step."""
        written = Written(work.stepped)
        notes: list[Call] = []
        scales = self._clip(notes, work)
        torch.autograd.graph.increment_version(written.versioned)
        with Uninterrupted():
            self._register(work)
            call_in_one_go(notes)
            for part, scale in zip(work.parts, scales, strict=True):
                carry_out(_add_part, part, scale)
            carry_out(written.add_notes)
            for own in work.stepped:  # whose writes the notes count as one that is still to come
                own.table.version = version_of(own.parameter)

    def _look_at(
        self, parameters: Iterable[tuple[int, Tensor]], group: Group, number: int, numbers: StepNumbers, work: Work
    ) -> None:
        """Check the gradients of some parameters of a group, and enter what is to be done with them."""
        # PyTorch only warns of a parameter that comes twice, and steps it twice.
        may_batch = len(set(map(id, group["params"]))) == len(group["params"])
        work.has_repeats |= not may_batch
        small: dict[Any, tuple[list[ParameterState], list[Tensor]]] = {}
        for k, parameter in parameters:
            waiting = waiting_of(parameter)
            grad = None if waiting else parameter.grad
            if grad is None and not waiting:
                continue
            own = self._state_of(parameter, k, group, number, work)
            work.stepped.append(own)
            begins, own.begins_average = own.begins_average, False
            if grad is not None and may_batch and own.small and own.lies_like(grad):
                kind = own.dtype, frozenset(own.tensors), own.slots.rho_product, begins
                members, grads = small.setdefault(kind, ([], []))
                members.append(own)
                grads.append(grad)
                continue
            occupied = None if work.new else self._occupied()
            gradient = as_product(waiting, own, occupied) if grad is None else as_gradient(grad, own, occupied)
            if isinstance(gradient, Rows):
                self._check_sparse(own, group)
                if own.small:
                    self._plans.pop(number, None)  # it is to have clocks, of which a batch knows nothing
            own.table.look_for_writes(parameter)
            work.parts.append((own.slots, gradient, at_first_step(numbers) if begins else numbers, group))
        for kind, (members, grads) in small.items():
            own_numbers = at_first_step(numbers) if kind[-1] else numbers
            batch = self._batch((number, *kind[:2]), members)
            if batch is None:
                found = [as_gradient(grad, own) for own, grad in zip(members, grads, strict=True)]
                work.parts += [(own.slots, each, own_numbers, group) for own, each in zip(members, found, strict=True)]
                continue
            batch.addresses[:, 0] = [grad.data_ptr() for grad in grads]
            work.parts.append((batch, batch.addresses, own_numbers, group))
            # A plan would not notice that one of them has taken a step without the others.
            if not group["bias_correction"] and len(members) >= max(
                WORTH_A_PLAN, len(work.worth_a_plan.get(number, ([],))[0])
            ):
                work.worth_a_plan[number] = members, batch

    def _state_of(self, parameter: Tensor, k: int, group: Group, number: int, work: Work) -> ParameterState:
        """Return what is known of a parameter, if it still holds, or else what is found out anew."""
        key = id(parameter)
        if key in work.new:
            return work.new[key]
        own = self.known.get(key)
        if own is None or not own.fits(work.states.get(parameter), group):
            name = f"parameter {k} of group {number}"
            before = stale_rows.table_of(parameter)
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

    def _numbers_of(self, group: Group, number: int) -> StepNumbers:
        lr = group["lr"]
        learning_rate = lr.item() if isinstance(lr, Tensor) else float(lr)  # float warns of one that wants a gradient
        decay, momentum = float(group["weight_decay"]), float(group["momentum"])
        alpha, epsilon, maximize = float(group["alpha"]), float(group["eps"]), bool(group["maximize"])
        nesterov, corrects_bias = bool(group["nesterov"]), bool(group["bias_correction"])
        apart = bool(group["decoupled_weight_decay"])
        if corrects_bias and not alpha < 1:
            raise ValueError(f"alpha: expected less than 1 with bias_correction=True, got {alpha}")
        ema_momentum = check_number("ema_momentum", group["ema_momentum"]) if group["use_ema"] else None
        given = learning_rate, alpha, epsilon, decay, momentum, maximize, nesterov, corrects_bias, apart, ema_momentum
        latest = self._numbers.get(number)
        if latest is not None and latest[0] == given:
            return latest[1]
        has_momentum = momentum > 0
        outer_rate = learning_rate if has_momentum else 1.0
        of_rule: Any = Numbers(
            learning_rate=1.0 if has_momentum else learning_rate,
            rho=alpha,
            one_minus_rho=1.0 - alpha,
            momentum=momentum,
            epsilon_inside=0.0,
            epsilon_outside=epsilon,
            shrink=1.0 - learning_rate * decay if apart else 1.0,
            outer_rate=outer_rate * momentum if nesterov and has_momentum else outer_rate,
            coupled_decay=0.0 if apart else decay,
            step_rate=outer_rate if nesterov and has_momentum else 0.0,
            mean_share=1.0,
        )
        if ema_momentum is not None:
            of_rule = with_average(of_rule, ema_momentum)
        numbers = StepNumbers(
            RMSPROP if ema_momentum is None else AVERAGED_RMSPROP,
            of_rule,
            ascends=maximize,
            corrected=corrected if corrects_bias else None,
            rests=None if has_momentum else "momentum",
        )
        self._numbers[number] = given, numbers
        return numbers

    def _check_sparse(self, own: ParameterState, group: Group) -> None:
        if own.exact and group["weight_decay"] != 0 and not own.decays_apart:
            raise ValueError(
                f"{describe(own.name, own.parameter)}: weight_decay={group['weight_decay']} with a sparse gradient. "
                "PyTorch's weight decay enters the mean square, and so would move all rows at every step, each in its "
                "own way. Expected decoupled_weight_decay=True in its group, or weight_decay=0; or "
                "sparse_update='lazy', which decays a row when it is touched; or dense gradients (sparse=False)"
            )
        if own.slots.has_values_behind and not own.table.was_read and not self._has_warned:
            self._has_warned = True
            warn(
                f"{describe(own.name, own.parameter)}: with momentum or decoupled weight decay, rows that a step does "
                "not touch fall behind, and no row was caught up since the last step, so the forward pass may have "
                "read old values. Take numba_rmsprop.torch.Embedding or EmbeddingBag, or call "
                "optimizer.catch_up(parameter, indices) before you read rows, or optimizer.flush() before you read all"
            )

    def _register(self, work: Work) -> None:
        for key, own in work.new.items():
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


def _add_part(calls: list[Call], part: Part, scale: Any) -> bool:
    """Add what a step of some parameters comes to; return whether it may compile."""
    taker, gradient, numbers, _ = part
    return taker.add_step(calls, gradient, own_numbers(calls, taker.members, numbers), scale)


class Written:
    """The parameters that a step writes, and what is to be told of it: to their ``step``, autograd, and others.

    Parameters
    ----------
    parameters : list of ParameterState
        The parameters, all of the call.
    """

    def __init__(self, parameters: list[ParameterState]) -> None:
        self.parameters = parameters
        self.versioned = [own.parameter for own in parameters if not own.parameter.is_inference()]
        self._may_fall_behind = [own for own in parameters if own.slots.uses_values]
        addresses: dict[np.dtype[Any], list[int]] = {}
        counts = [own.tensors["step"] for own in parameters]
        counts += [own.tensors["alpha_product"][1] for own in parameters if own.corrects_bias]
        for count in counts:
            addresses.setdefault(count.numpy().dtype, []).append(count.data_ptr())
        self._counters: list[tuple[NDArray[np.int64], NDArray[Any]]] = [
            (np.array(found, np.int64), np.empty(0, dtype)) for dtype, found in addresses.items()
        ]

    def add_notes(self, calls: list[Call]) -> bool:
        """Add what notes that they have taken a step; their versions are counted already."""
        calls += [(add_one, *arguments) for arguments in self._counters]
        for own in self._may_fall_behind:
            calls += own.table.to_note(own.parameter)
        return False
