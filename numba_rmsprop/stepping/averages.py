"""The moving averages of variables: read, or put in the place of the variables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray, describe
from ..gradients.pairs import as_variables
from ..runtime.interrupts import Call
from ..runtime.whole_calls import carry_out, in_turn
from ..state.slots import Slots
from ..state.weights import WeightStore


class Averages(WeightStore):
    """The calls of an optimizer that read averages."""

    def average(self, var: FloatArray) -> NDArray[Any]:
        """Return the moving average of a variable (``use_ema``): the slot itself, with all rows current.

        A later step goes on writing to it. Before the first step it is the variable.

        Raises
        ------
        KeyError
            If the variable was not seen yet.
        ValueError
            If the optimizer keeps no averages.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> var, opt = np.zeros(1), RMSprop(learning_rate=0.1, rho=0.0, use_ema=True, ema_momentum=0.5)
        >>> for _ in range(3):
        ...     step_count = opt.apply_gradients([(np.ones(1), var)])
        >>> var.round(3), opt.average(var).round(3)  # -0.1, then halfway to -0.2, then halfway from there to -0.3
        (array([-0.3]), array([-0.225]))
        """
        self.averaged_slots(var)
        return self.get_slot(var, "average")

    def averaged_slots(self, var: FloatArray) -> Slots:
        """Return the slots of a variable with an average; raise if there is none."""
        if "average" not in self.slot_names:
            raise ValueError("the optimizer keeps no averages; make it with use_ema=True")
        slots = self.known.find_or_check(var)
        if slots is None:
            raise KeyError(f"{describe('the variable', var)} has no average yet; opt.build([var]) makes it")
        return slots

    def finalize_variable_values(self, var_list: Iterable[FloatArray]) -> None:
        """Overwrite variables with their averages, as at the end of training; without ``use_ema``, do nothing.

        Parameters
        ----------
        var_list : iterable of ndarray
            The variables.

        Raises
        ------
        KeyError
            If a variable was not seen yet.
        ValueError
            If a variable is read-only, or was changed in place. Nothing is written then.
        """
        if "average" in self.slot_names:
            in_turn(carry_out, self._add_averages, as_variables(var_list))

    def _add_averages(self, calls: list[Call], variables: list[FloatArray]) -> bool:
        found = [self.averaged_slots(var) for var in variables]
        for slots in found:
            slots.check_memory(written=True)
        self.flush(*variables)  # if any row was behind, this is a commit, and the look begins again
        for slots in found:
            calls.append((setattr, slots.changes, "everything", True))
            calls.append((_overwrite, slots.var, slots.slots["average"]))
        return True


def _overwrite(var: FloatArray, average: FloatArray) -> None:
    with np.errstate(all="ignore"):  # a variable of 16 bits may overflow, and others are overwritten already
        var[...] = average
