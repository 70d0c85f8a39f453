"""One step: looked at, clipped, launched.

A call *looks* at its pairs and lists everything that the step comes to: kernels, and the notes that belong to them.
Then the list is carried out in one go (:mod:`numba_rmsprop.runtime.whole_calls`). There is one way for all kinds of
gradients and options; where a call has the same variables as the one before, the look is shorter.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from itertools import chain
from operator import attrgetter
from typing import Any

from ..arrays.noted_layouts import layout_is_known
from ..arrays.variables import FloatArray, Label, describe, may_be_variable, memory_key
from ..gradients.conversion import Gradient, as_gradient, as_known, is_known
from ..gradients.gradient import BaseGradient
from ..gradients.pairs import check_pairs, refuse_duplicates, warn_of_none
from ..runtime.caller_warnings import warn
from ..runtime.interrupts import Call
from ..runtime.whole_calls import carry_out, in_turn
from ..settings.step_numbers import StepNumbers
from ..state.known_variables import NO_SUMS, Accumulation
from ..state.slots import Slots
from ..state.weights import WeightStore
from .norm_clipping import each_limited, limited, norm_of
from .own_numbers import own_numbers
from .part import Part
from .remembered_call import Plan
from .row_norms import add_bounds
from .small_batch import Batch


class OvertakenError(RuntimeError):
    """Another thread has changed the sums of gradients from which a step was to be taken."""


class Stepping(WeightStore):
    """The steps of an optimizer."""

    _constant_numbers: StepNumbers | None = None  # those of every step, if they do not change
    _latest_thread = 0  # which has taken a step

    def take_step(
        self, pairs: list[Any], given: StepNumbers | None = None, *, after: Accumulation | None = None
    ) -> int:
        """Take one step, with the hyperparameters given or those of now, and return the number of steps taken.

        If the gradients hold the sums ``after``, these are dropped; if there are others by now, raise OvertakenError.

        The user's code is called here, where no lock is held: hyperparameters, and gradients of other libraries.
        """
        closer: list[tuple[Any, FloatArray]] | None = None  # all pairs, those without a gradient too
        step = self.known.iterations
        numbers = self.numbers_at(step) if given is None else given
        while True:
            taken = in_turn(self._step, pairs, closer, numbers, step, after)
            if taken is not None:
                return taken
            if self._was_overtaken(step):
                step = self.known.iterations
                numbers = self.numbers_at(step) if given is None else given
            elif closer is None:
                closer = self._known_pairs(check_pairs(pairs))
                warn_of_none(closer)

    def _known_pairs(self, pairs: list[tuple[Any, FloatArray]]) -> list[tuple[Any, FloatArray]]:
        """Return pairs whose gradients run no code of other libraries any more when they are looked at."""
        found = []
        for grad, var in pairs:
            if is_known(grad):
                found.append((grad, var))
                continue
            own = self.known.find(var)
            name = self.known.registry.new_name() if own is None else own.name
            found.append((as_known(grad, Label("gradient of", name, var)), var))
        return found

    def _was_overtaken(self, step: int) -> bool:
        """Return whether another thread has taken step ``step``; if a callable of the user has, its answer counts."""
        return self.known.iterations != step and self._latest_thread != threading.get_ident()

    def _step(
        self,
        pairs: list[Any],
        closer: list[tuple[Any, FloatArray]] | None,
        numbers: StepNumbers,
        step: int,
        after: Accumulation | None,
    ) -> int | None:
        """Take one step; return None where other numbers or a closer look are needed. The caller holds the lock."""
        if closer is not None:
            self.known.let_go_before([var for _, var in closer])
        return self.known.iterations if carry_out(self._look_at, pairs, closer, numbers, step, after) else None

    def _look_at(
        self,
        calls: list[Call],
        pairs: list[Any],
        closer: list[tuple[Any, FloatArray]] | None,
        numbers: StepNumbers,
        step: int,
        after: Accumulation | None,
    ) -> bool | None:
        known = self.known
        if after is not None:
            if known.accumulation is not after:
                raise OvertakenError("another thread has added gradients, or taken the step; call again")
            calls.append((setattr, known, "accumulation", NO_SUMS))
        if known.iterations != step and numbers is not self._constant_numbers and self._was_overtaken(step):
            return None
        if closer is None:
            parts = self._parts_as_before(pairs)
            return None if parts is None else self._add_step(calls, parts, numbers)
        seen, found = self._seen_in(closer)
        parts = self._parts([grad for grad, _ in closer if grad is not None], found)
        if self.has_variable_options and not known.has_warned_of_names:
            self._warn_of_names(seen)
        # Its batch may hold a variable that this call gives clocks, even if the call is then refused.
        known.remembered.pop("plan", None)
        calls.append((known.register, seen))
        self._add_step(calls, parts, numbers)
        if layout_is_known():
            calls.append((self._remember, found))
        return True

    def _add_step(self, calls: list[Call], parts: list[Part], numbers: StepNumbers) -> bool:
        """Add the calls of a step; return whether they may compile."""
        known = self.known
        scales = self._clip(calls, parts, numbers) if self.clips_norms else None
        if known.registry.may_share:
            self._let_others_pay(parts)
        compiles = False
        for k, (gradient, taker) in enumerate(parts):
            own = numbers
            if self.has_variable_options:
                own = self.numbers_with(self.variable_options(taker.members[0].name), numbers)
            own = own_numbers(calls, taker.members, own)
            compiles |= taker.add_step(calls, gradient, own, 1.0 if scales is None else scales[k])
            if self.row_norm is not None:
                compiles |= add_bounds(calls, gradient, taker.members, self.row_bounds)
        calls.append((setattr, known, "iterations", known.iterations + 1))
        if numbers is not self._constant_numbers:
            calls.append((object.__setattr__, self, "_latest_thread", threading.get_ident()))
        return compiles

    def _remember(self, found: list[Slots]) -> None:
        self.known.remembered["plan"] = Plan(found, self.known.occupied, self._kind)

    def _warn_of_names(self, seen: list[Slots]) -> None:
        """Warn once of options for variables that there are not, since a name may be misspelt."""
        names = sorted({own.name for own in (*self.known.slots, *seen)})
        missing = self.unmatched_options(names)
        if missing:
            self.known.has_warned_of_names = True
            warn(
                f"no variable fits {missing} so far; their names are {names}. Name variables with "
                "opt.build({'bias': bias})"
            )

    def _seen_in(self, pairs: list[tuple[Any, FloatArray]]) -> tuple[list[Slots], list[Slots]]:
        """Return the variables of a call, and those among them with a gradient.

        The others count as seen, so that the order of first sight is that of the call, whichever gradients it has.
        """
        counted = [(grad, var) for grad, var in pairs if grad is not None or may_be_variable(var)]
        seen = self.known.find_or_make([var for _, var in counted], self.new_slots)
        return seen, [own for own, (grad, _) in zip(seen, counted, strict=True) if grad is not None]

    def _parts_as_before(self, pairs: list[Any]) -> list[Part] | None:
        """Return the gradients, checked, each with what takes its step; None where a closer look is needed."""
        plan: Plan | None = self.known.remembered.get("plan")
        addresses = None if plan is None else plan.addresses_in(pairs)
        if plan is None or addresses is None:
            return None
        parts: list[Part] = []
        for batch in plan.batches:
            own_addresses, addresses = addresses[: len(batch.members)], addresses[len(batch.members) :]
            if self.corrects_bias and len({own.rho_product for own in batch.members}) > 1:
                return None  # a copy of this optimizer has taken a step with some of them
            if self.check_finite and not batch.is_finite(own_addresses):
                return None  # a closer look says where
            parts.append((own_addresses, batch))
        for k, own in plan.rest:
            grad = pairs[k][0]
            if not is_known(grad):
                return None
            gradient = as_gradient(grad, own.var, own.name, self.known.occupied)
            if self.check_finite or (own.values_fall_behind and own.read_at < own.steps):
                self.check_gradient(gradient, own)
            parts.append((gradient, own))
        return parts

    def _parts(self, grads: list[Any], found: list[Slots]) -> list[Part]:
        """Return the gradients, checked, each with what takes its step: small variables together, others alone."""
        refuse_duplicates(found)
        occupied = self.known.occupied_with(found)
        parts: list[Part] = []
        small: dict[Any, tuple[list[Slots], list[FloatArray]]] = {}
        for grad, own in zip(grads, found, strict=True):
            gradient = as_gradient(grad, own.var, own.name, occupied)
            self.check_gradient(gradient, own)
            if own.small and gradient.touches_all:
                members, values = small.setdefault(self._kind(own), ([], []))
                members.append(own)
                values.append(gradient.values)
            else:
                parts.append((gradient, own))
        kinds = Counter[Any]()
        for (dtype, *_), (members, values) in small.items():
            batch = self._batch((dtype, kinds[dtype]), members)
            kinds[dtype] += 1
            parts.append((batch.fill(values), batch))
        return parts

    def _kind(self, own: Slots) -> tuple[Any, ...]:
        """Return what small variables have in common that are stepped together."""
        return own.dtype, own.rho_product, self.variable_options(own.name)

    def _batch(self, key: Any, members: list[Slots]) -> Batch:
        """Return the batch of these variables, which are registered or will be; the last one of each key is kept."""
        batch: Batch | None = self.known.remembered.get(key)
        if batch is None or batch.members != members:
            batch = self.known.remembered[key] = Batch(members)
        return batch

    def _let_others_pay(self, parts: list[Part]) -> None:
        """Let other optimizers catch up what they owe to the variables of a step.

        To the rows that it writes; or to all, if it leaves rows behind itself, which then come after those of others.
        """
        for gradient, taker in parts:
            for own in taker.members:
                rows = None
                if isinstance(gradient, BaseGradient) and not (gradient.touches_all or own.uses_values):
                    rows = gradient.rows_of()
                for other in self.known.registry.others_on(own.var, own):
                    other.pay(rows if memory_key(other.var) == memory_key(own.var) else None)

    def _clip(self, calls: list[Call], parts: list[Part], numbers: StepNumbers) -> list[float | list[float]]:
        """Return what the clipping of norms leaves of each gradient, and add what notes the norms."""
        squares = self.squares_of(parts, numbers)
        # Mapped, and not one by one: there may be thousands of small variables.
        names = map(attrgetter("name"), chain.from_iterable([taker.members for _, taker in parts]))
        norms = dict(zip(names, map(math.sqrt, chain.from_iterable(squares)), strict=True))
        calls.append((setattr, self.known, "norms", norms))
        if self.clipnorm is None:
            return [limited(self.global_clipnorm, norm_of(squares))] * len(parts)
        return [each_limited(self.clipnorm, of_part) for of_part in squares]

    def squares_of(self, parts: list[Part], numbers: StepNumbers) -> list[list[float]]:
        """Return the squared norms of the gradients of each part."""
        return [taker.squares(gradient, numbers) for gradient, taker in parts]

    def check_gradient(self, gradient: Gradient, own: Slots) -> None:
        """Refuse what is not finite, if so asked; warn once of a step for rows that nobody has read as they are."""
        if self.check_finite:
            gradient.check_finite(own.var, own.name)
        # Only where values fall behind, and nobody has read rows since the last step, is a closer look needed.
        if (
            not own.values_fall_behind
            or gradient.touches_all
            or self.known.has_warned_of_old_rows
            or own.read_at >= own.steps
        ):
            return
        if own.was_not_read(gradient.rows_of()):
            self.known.has_warned_of_old_rows = True
            warn(
                f"table[batch] may have read old values of {describe(own.name, own.var)}: with momentum or weight "
                "decay, rows that a step does not touch fall behind, and these were not caught up since the last step. "
                "Read rows with opt.gather(table, batch), or call opt.flush() before you read the table"
            )
