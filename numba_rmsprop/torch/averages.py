"""The moving averages of parameters in the place of the parameters, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..runtime.caller_warnings import warn
from ..runtime.interrupts import Uninterrupted
from ..runtime.whole_calls import in_turn
from .tensor_views import describe
from .undocumented import version_of

EXCHANGED = 1 << 20
"""So many elements are exchanged at a time, or a row, so that no table has to fit into memory twice."""


class Averages:
    """The call of an optimizer that lets parameters hold their averages."""

    param_groups: list[dict[str, Any]]
    state: Any
    flush: Callable[..., None]
    _shows_averages = False

    @contextmanager
    def averages(self) -> Iterator[None]:
        """Let parameters with ``use_ema`` hold their averages within a ``with`` statement, for an evaluation.

        Do not write to them meanwhile: that changes the averages, and is told by a warning. Steps, ``state_dict`` and
        ``load_state_dict`` are refused. All parameters of the optimizer are flushed, and those with averages take
        another pass, and one more at the end.

        Raises
        ------
        ValueError
            If no parameter has an average, or ``use_ema`` is no longer True in its group.
        RuntimeError
            If they hold their averages already.

        Examples
        --------
        >>> from numba_rmsprop.torch import RMSprop
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = RMSprop(layer.parameters(), use_ema=True, ema_momentum=0.5)
        >>> for _ in range(3):
        ...     loss = layer(torch.ones(1)).backward()
        ...     optimizer.step()
        >>> now = layer.weight.item()
        >>> with optimizer.averages():
        ...     layer.weight.item() > now
        True
        >>> layer.weight.item() == now
        True
        """
        self.refuse_averages("averages")
        self.flush()
        parameters = {id(p): p for group in self.param_groups if group["use_ema"] for p in group["params"]}
        pairs = [(p, dict.get(self.state.get(p, {}), "average")) for p in parameters.values()]  # an Entry would flush
        pairs = [(parameter, average) for parameter, average in pairs if average is not None]
        if not pairs:
            raise ValueError(
                "averages: expected parameters with one, got none; set use_ema=True in their groups and take a step"
            )
        self._shows_averages = True
        try:
            with exchanged(pairs):
                yield
        finally:
            self._shows_averages = False

    def refuse_averages(self, call: str) -> None:
        """Raise RuntimeError if parameters hold their averages, and a call is made that needs the parameters."""
        if self._shows_averages:
            raise RuntimeError(
                f"{call}: expected parameters, got their averages; leave `with optimizer.averages():` first"
            )


class Pair:
    """A parameter and its average, which can change places.

    An average of another dtype stays as it is, and the parameter, which has 16 bits, is copied meanwhile.
    """

    def __init__(self, parameter: Tensor, average: Tensor) -> None:
        self.parameter = parameter
        ours, theirs = (each.reshape(1) if each.ndim == 0 else each for each in (parameter.detach(), average))
        self._ours, self._theirs = ours, theirs
        self._alike = ours.dtype is theirs.dtype
        self._rows = max(1, EXCHANGED * len(ours) // max(1, ours.numel()))
        self._kept = torch.empty_like(ours[: self._rows] if self._alike else ours)  # now, since there may be no memory
        self.version: int | None = None

    def show(self) -> None:
        """Let the parameter hold the average."""
        if self._alike:
            self._exchange()
        else:
            self._kept.copy_(self._ours)
            self._ours.copy_(self._theirs)

    def put_back(self) -> None:
        """Let the parameter hold its values again."""
        if self._alike:
            self._exchange()
        else:
            self._ours.copy_(self._kept)

    def _exchange(self) -> None:
        for begin in range(0, len(self._ours), self._rows):
            ours, theirs = (each[begin : begin + self._rows] for each in (self._ours, self._theirs))
            kept = self._kept[: len(ours)].copy_(ours)
            ours.copy_(theirs)
            theirs.copy_(kept)


@contextmanager
def exchanged(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let parameters hold their averages, and averages the parameters, until the context is left."""
    made = [Pair(parameter, average) for parameter, average in pairs]
    shown: list[Pair] = []
    try:
        with Uninterrupted():
            in_turn(_show, made, shown)
        yield
    finally:
        try:
            _put_back(shown)
        finally:
            _put_back(shown)  # where a signal handler has raised before the first one began


def _show(pairs: list[Pair], shown: list[Pair]) -> None:
    for pair in pairs:
        shown.append(pair)
        pair.show()
    for pair in pairs:  # afterwards, since parameters may share memory, and so the count of writes
        pair.version = version_of(pair.parameter)


def _put_back(shown: list[Pair]) -> None:
    written = [pair.parameter for pair in shown if version_of(pair.parameter) != pair.version]
    with Uninterrupted():
        while shown:
            in_turn(shown.pop().put_back)  # the last one first, for the same reason
    if written:
        warn(
            f"{describe('a parameter', written[0])} was written to within `with optimizer.averages():`, and what was "
            "written is in its average now, or lost where the parameter has 16 bits; write to it outside"
        )
