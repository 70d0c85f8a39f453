"""Gradients summed over ranks that train copies of the same variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet
from zlib import crc32

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..arrays.variables import FloatArray, Occupied, describe
from ..files.safetensors_file import checksum
from ..gradients.coalescing import coalesced
from ..gradients.conversion import as_gradient
from ..gradients.dense import Dense
from ..gradients.indexed_slices import IndexedSlices
from ..gradients.pairs import check_pairs, refuse_duplicates
from ..gradients.rows import Rows
from ..runtime.interrupts import Uninterrupted
from ..settings.step_numbers import StepNumbers
from ..state.any_optimizer import AnyOptimizer
from ..state.slots import Slots
from ..stepping.accumulation import Accumulating
from .messages import Result
from .ranks import Ranks, Refusal

Pairs = list[tuple[Any, FloatArray]]

NONE, ROWS, MATRIX, DENSE = range(4)
"""Kinds of gradients. Where ranks have different kinds for a variable, all are summed as the highest one."""


def load_together(communicator: Any, load: Callable[[], Result]) -> Result:
    """Return the result of ``load``; raise on all ranks if it raises on any."""
    loaded: list[Result] = []
    Ranks.of(communicator).together("load", lambda: loaded.append(load()))
    return loaded[0]


class Replicas:
    """Ranks that take the same steps with copies of the same variables."""

    def __init__(self, communicator: Any) -> None:
        self._ranks = Ranks.of(communicator)
        self._number = self._ranks.join()
        self._compared: WeakSet[Slots] = WeakSet()  # weak, since an optimizer lets variables go

    @property
    def alone(self) -> bool:
        """True if there is no other rank."""
        return self._ranks.size == 1

    def step(self, opt: AnyOptimizer, pairs: list[Any], take: Callable[[Pairs, StepNumbers], int]) -> int:
        """Take one step, all ranks together, with the sums of their gradients; return the number of steps taken.

        Parameters
        ----------
        opt : RMSprop
            This rank's optimizer.
        pairs : list of (gradient, variable)
            This rank's gradients.
        take : callable
            Takes the step of this rank, with (sum, variable) pairs and the hyperparameters of the step. The sums have
            the same bits on all ranks, so it raises on all ranks or on none.

        Raises
        ------
        ValueError
            On all ranks, if they disagree, or if none has any gradient.
        OtherRankError
            If another rank refuses.
        """
        found: list[Slots] = []
        new: list[Slots] = []
        key: tuple[float, ...] = ()
        numbers = None
        with Refusal() as refusal:
            checked = check_pairs(pairs)
            found = opt.known.find_or_make([var for _, var in checked], opt.new_slots)
            refuse_duplicates(found)
            occupied = opt.known.occupied_with(found)
            ours = [_coalesced(grad, own, opt, occupied) for (grad, _), own in zip(checked, found, strict=True)]
            numbers = opt.numbers_at(opt.known.iterations)
            key = _key(opt, found, numbers)
            new = [own for own in found if own not in self._compared]
        with Uninterrupted():
            self._ranks.agree(
                hash((self._number, *(own in new for own in found), *key)),
                lambda: _in_words(self._number, opt, found, numbers),
                error=refusal.error,
            )
            assert numbers is not None
            if not found:
                return opt.known.iterations
            self._compare(new, opt)
            summed: list[Any] = self._summed(ours, found)
            if any(gradient is not None for gradient in summed):
                opt.known.register(found)  # so that the step finds these slots and makes no others
                self._compared.update(new)
            return take(list(zip(summed, [own.var for own in found], strict=True)), numbers)

    def accumulate(self, opt: Accumulating, pairs: list[Any], count: int) -> int:
        """Add the gradients of a call to this rank's sums, or take a step with the means of all ranks added up.

        All ranks make each of these calls together. Returns and raises as :meth:`step`.
        """
        added = None
        with Refusal() as refusal:
            added = opt.add_to_sums(opt.pairs_to_accumulate(pairs), count)
        with Uninterrupted():
            waiting = opt.accumulated_calls if added is None else added.before.calls
            try:
                self._ranks.agree(
                    hash((self._number, opt.known.iterations, waiting, count, len(pairs))),
                    lambda: (
                        f"apply_gradients of optimizer {self._number} for {len(pairs)} variables after "
                        f"{opt.known.iterations} steps and {waiting} of {count} calls for the next one"
                    ),
                    error=refusal.error,
                )
            except BaseException:
                if added is not None:
                    opt.take_back(added)
                raise
            assert added is not None
            if added.after is not None:
                return opt.known.iterations
            return self.step(opt, added.means, partial(opt.take_step, after=added.before))

    def _compare(self, new: Sequence[Slots], opt: AnyOptimizer) -> None:
        """Raise ValueError if new variables or their slots differ between ranks."""
        if not new or self._ranks.size == 1:
            return
        arrays = [[own.var, *own.arrays.values(), *([] if own.clocks is None else [own.clocks])] for own in new]
        sums = np.array([hash(tuple(map(checksum, of_one))) for of_one in arrays])
        everywhere = self._ranks.all_gather(sums).reshape(self._ranks.size, len(new))
        differing = (everywhere != everywhere[0]).any(axis=0)
        if differing.any():
            own = new[int(np.argmax(differing))]
            what = "or its slots differ" if opt.known.iterations else "differs"
            raise ValueError(
                f"{describe(own.name, own.var)} {what} between ranks; expected the same numbers on all, as after "
                "communicator.Bcast(variable) or from the same seed"
            )

    def _summed(self, ours: Sequence[Any], found: Sequence[Slots]) -> list[Any]:
        """Return the sum of all ranks' gradients of each variable, or None where no rank has one."""
        mine = np.array([_kind_and_entries(part) for part in ours], np.int64).reshape(len(found), 2)
        everywhere = self._ranks.all_gather(mine).reshape(self._ranks.size, len(found), 2)
        kinds = everywhere[:, :, 0].max(axis=0, initial=NONE)
        summed: list[Any] = [None] * len(found)
        for k, own in enumerate(found):
            if kinds[k] == ROWS:
                summed[k] = self._sum_rows(ours[k], own, everywhere[:, k, 1])
            elif kinds[k] == MATRIX:
                widths = np.where(everywhere[:, k, 0] == ROWS, math.prod(own.shape[1:]), 1)
                summed[k] = self._sum_matrices(ours[k], own, everywhere[:, k, 1] * widths)
        for dtype in dict.fromkeys(own.dtype for own in found):
            these = [k for k, own in enumerate(found) if kinds[k] == DENSE and own.dtype == dtype]
            parts = self._sum_dense([ours[k] for k in these], [found[k] for k in these], dtype)
            for k, part in zip(these, parts, strict=True):
                summed[k] = part
        return summed

    def _sum_dense(self, ours: Sequence[Any], found: Sequence[Slots], dtype: np.dtype[np.floating]) -> list[FloatArray]:
        """Return the sums of dense gradients of one dtype, which are sent as one array to need few messages."""
        ends = np.cumsum([own.var.size for own in found], dtype=np.int64)
        bucket = np.zeros(int(ends[-1]) if len(ends) else 0, dtype)
        parts = [part.reshape(own.shape) for part, own in zip(np.split(bucket, ends[:-1]), found, strict=False)]
        for part, gradient, own in zip(parts, ours, found, strict=True):
            if isinstance(gradient, Dense):
                part[...] = gradient.values
            elif isinstance(gradient, Rows):
                part.reshape(len(part), math.prod(own.shape[1:]))[gradient.indices] = gradient.values
            elif gradient is not None:
                part[...] = gradient.toarray().reshape(own.shape)
        self._ranks.all_reduce(bucket)
        return parts

    def _sum_rows(self, ours: Rows | None, own: Slots, counts: NDArray[np.int64]) -> IndexedSlices:
        """Return the rows of all ranks, in the order of the ranks, in which the step adds up equal ones."""
        if ours is None:
            ours = Rows(np.empty((0, math.prod(own.shape[1:])), own.dtype), np.empty(0, np.int64))
        indices = self._ranks.all_gather(ours.indices, counts)
        values = self._ranks.all_gather(ours.values, counts)
        return IndexedSlices(values.reshape(len(indices), *own.shape[1:]), indices)

    def _sum_matrices(self, ours: Any, own: Slots, counts: NDArray[np.int64]) -> Any:
        """Return the sum of all ranks' gradients as a sparse array."""
        columns = math.prod(own.shape[1:])
        if isinstance(ours, Rows):
            rows = np.repeat(ours.indices, columns), np.tile(np.arange(columns), len(ours.indices))
            ours = scipy.sparse.coo_array((ours.values.reshape(-1), rows), (len(own.var), columns))
        elif ours is None:
            ours = scipy.sparse.coo_array((len(own.var), columns), dtype=own.dtype)
        places, values = (
            self._ranks.all_gather(np.ascontiguousarray(array), counts)
            for array in (ours.row.astype(np.int64) * columns + ours.col, ours.data)
        )
        matrix = scipy.sparse.coo_array((values, np.divmod(places, columns)), (len(own.var), columns)).tocsr()
        return matrix if len(own.shape) == 2 else matrix.reshape(own.shape)


def _coalesced(grad: Any, own: Slots, opt: AnyOptimizer, occupied: Occupied) -> Any:
    """Return a gradient, checked, whose rows, or stored entries if it is a matrix, are all different."""
    if grad is None:
        return None
    gradient = as_gradient(grad, own.var, own.name, occupied)
    if opt.check_finite:
        gradient.check_finite(own.var, own.name)
    return coalesced(gradient, own)


def _kind_and_entries(ours: Any) -> tuple[int, int]:
    if isinstance(ours, Rows):
        return ROWS, len(ours.indices)
    if ours is None or isinstance(ours, Dense):
        return (NONE if ours is None else DENSE), 0
    return MATRIX, ours.nnz


def _key(opt: AnyOptimizer, found: Sequence[Slots], numbers: StepNumbers) -> tuple[float, ...]:
    """Return numbers that are equal on all ranks if these are about to take the same step."""
    limits = (-1.0 if limit is None else limit for limit in (opt.clipnorm, opt.global_clipnorm))
    form = opt.form
    rounding = -1 if form.seed is None else form.seed
    modes = opt.exact, "mg" in opt.slot_names, opt.check_finite, form.by_row, form.dtype is None, rounding
    starts = opt.corrects_bias, opt.gradient_accumulation_steps or 0, *(start for _, start in form.starts)
    norm = crc32(repr(opt.row_norm).encode())
    variables = (
        # Names and not numbers, since each rank lets a variable go when nobody holds it there any more.
        (
            *(crc32(own.name.encode()) if own in opt.known.registry else -1, ord(own.var.dtype.char)),
            *(len(own.shape), *own.shape, own.steps, own.floor, own.rho_product),
            *opt.variable_options(own.name),
        )
        for own in found
    )
    return (
        opt.known.iterations,
        *numbers.key,
        *limits,
        *modes,
        *starts,
        norm,
        *(number for own in variables for number in own),
    )


def _in_words(number: int, opt: AnyOptimizer, found: Sequence[Slots], numbers: StepNumbers | None) -> str:
    """Return the words for a step, of which :func:`_key` returns the numbers."""
    variables = ", ".join(
        f"{describe(own.name, own.var)} after {own.steps} steps, {own.floor} of them flushed"
        + (f", with a product of rho of {own.rho_product:.17g}" if opt.corrects_bias else "")
        for own in found
    )
    settings = {name: value for name, value in opt.get_config().items() if name not in ("name", "learning_rate")}
    rate = "none" if numbers is None else f"{numbers.of_rule.learning_rate:.9g}"
    return (
        f"apply_gradients of optimizer {number} after {opt.known.iterations} steps for {variables or 'no variables'}, "
        f"with learning rate {rate} and {settings}"
    )
