"""The interface of an optimizer for the rest of this package, whatever its rule."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.rule import Rule
from ..runtime.whole_calls import carry_out, in_turn
from ..settings.form import USUAL, Form
from ..settings.row_norms import Bounds
from ..settings.step_numbers import StepNumbers
from ..settings.variable_options import USUAL_OPTIONS, VariableOptions
from .known_variables import KnownVariables
from .slots import Slots
from .variable_names import named


class AnyOptimizer:
    """An optimizer, as steps, files and other ranks know it.

    A subclass has a rule and hyperparameters, and overrides what stands here where the answer is another.

    Attributes
    ----------
    known : KnownVariables
        The variables, with their state.
    own_weights : dict of str to ndarray
        Arrays that were added with ``add_weight``.
    slots_folder : path-like or None
        A folder for files that hold the slots; None for memory.
    check_finite : bool
        Whether to refuse gradients that hold NaN or infinity.
    gradient_accumulation_steps : int or None
        After how many calls a step is taken with the mean of their gradients; None for each call.
    row_norm : object
        None where the norms of rows are not bounded.
    clipnorm, global_clipnorm : float or None
        Limits of the norm of each gradient, and of all together.
    clips_norms : bool
        Whether there is such a limit.
    """

    known: KnownVariables
    own_weights: dict[str, NDArray[Any]]
    slots_folder: str | os.PathLike[str] | None = None
    check_finite: bool = False
    gradient_accumulation_steps: int | None = None
    row_norm: Any = None
    clipnorm: float | None = None
    global_clipnorm: float | None = None
    clips_norms: bool = False

    def __init__(self, slots_folder: str | os.PathLike[str] | None = None) -> None:
        self.slots_folder = slots_folder
        self.known = KnownVariables()
        self.own_weights = {}

    @property
    def rule(self) -> Rule:
        """The mathematics of a step."""
        raise NotImplementedError

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The slots that every variable has, in the order of ``weights``: all of the rule."""
        return self.rule.slots

    @property
    def exact(self) -> bool:
        """True if rows that a sparse step leaves out take a step with gradient 0; False if they take none."""
        return True

    @property
    def drifts(self) -> bool:
        """True if the value of a row moves in a step with gradient 0."""
        return False

    @property
    def form(self) -> Form:
        """The form in which state is kept."""
        return USUAL

    def new_slots(self, var: FloatArray, name: str) -> Slots:
        """Return the slots of a new variable."""
        return Slots(
            var,
            name,
            self.rule,
            self.slot_names,
            exact=self.exact,
            drifts=self.drifts,
            folder=self.slots_folder,
            form=self.form,
        )

    def numbers_at(self, step: int) -> StepNumbers:
        """Return the hyperparameters of a step."""
        raise NotImplementedError

    @property
    def corrects_bias(self) -> bool:
        """True if the numbers of a step depend on how many a variable has taken."""
        return False

    has_variable_options: bool = False
    """Whether some settings differ between variables."""

    def variable_options(self, name: str) -> VariableOptions:
        """Return what is different for a variable of this name."""
        return USUAL_OPTIONS

    def unmatched_options(self, names: Iterable[str]) -> str:
        """Return words for options that name none of these variables; no words where there are none."""
        return ""

    def row_bounds(self, name: str) -> Bounds | None:
        """Return between what the norms of the rows of a variable of this name are kept."""
        return None

    def numbers_with(self, options: VariableOptions, numbers: StepNumbers) -> StepNumbers:
        """Return the numbers of a step for a variable with options of its own."""
        return numbers

    def product_after(self, steps: int) -> float:
        """Return the product of rho over so many steps of a variable, where bias correction needs it; else 1."""
        return 1.0

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON can hold them."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Return the optimizer that :meth:`get_config` described, without slots."""
        return cls(**config)

    def weights_in_file(self, rows: Sequence[NDArray[np.int64] | None]) -> dict[str, NDArray[Any]]:
        """Return what a file holds beside the variables, of which it holds these rows each, or None for all."""
        return self.own_weights

    def take_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Take over what a file holds beside the variables."""
        self.own_weights.update({name: np.array(array) for name, array in weights.items()})

    def note_saved(self) -> None:
        """Note that a file with what :meth:`weights_in_file` returned has taken its name."""

    def build(self, variables: Iterable[FloatArray] | Mapping[str, FloatArray]) -> None:
        """Make the slots of variables before their first step, and give them names.

        Parameters
        ----------
        variables : iterable of ndarray, one ndarray, or mapping of str to ndarray
            The variables; in a mapping, by their names, which messages and files then tell, so that :meth:`load` need
            not know the order. Variables that were seen before without a name get theirs.

        Raises
        ------
        TypeError, ValueError
            If one of them cannot be a variable, or a name is no text, or another variable's, or not the one that the
            variable has already.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> users, items = np.zeros((9, 2)), np.zeros((5, 2))
        >>> opt = RMSprop()
        >>> opt.build({"users": users, "items": items})
        """
        names, arrays = named(variables)
        in_turn(self.known.build, self.new_slots, names, arrays)

    def rebind(self, variable: FloatArray | int | str, array: FloatArray) -> None:
        """Let a variable go on at another array, with the state that it has.

        For arrays that cannot be updated in place, and after loading or unpickling an optimizer without its variables.

        Parameters
        ----------
        variable : ndarray, int or str
            The variable: the array that it was, its number in the order of :attr:`weights`, or its name.
        array : ndarray
            Where it goes on: of its shape and dtype; float32 and the dtypes of 16 bits may also take one another's
            place, since the state is the same. Its values are taken as they are; rows that are behind (in exact mode
            with momentum, weight decay or averages) stay as far behind, so compute them from an array that was
            flushed.

        Raises
        ------
        KeyError
            If there is no such variable.
        TypeError, ValueError
            If ``array`` has another shape or dtype, is another variable, or cannot be one.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.array([[3.0, 4.0]]), RMSprop()
        >>> step_count = opt.apply_gradients([(np.ones((1, 2)), table)])
        >>> normed = table / np.linalg.norm(table, axis=1, keepdims=True)
        >>> opt.rebind(table, normed)
        >>> opt.get_slot(normed, "rms")
        array([[0.1, 0.1]])
        """
        in_turn(carry_out, self.known.add_rebind, variable, array)

    def forget(self, *variables: FloatArray | int | str) -> None:
        """Drop variables with their state, each given as in :meth:`rebind`; seen again, they start from nothing.

        Rows that are behind stay so: :meth:`flush` first if you go on reading the array. After this,
        :meth:`save_delta` wants a :meth:`save` to go on from.

        Raises
        ------
        KeyError
            If there is no such variable.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop import RMSprop
        >>> table, opt = np.zeros((3, 2)), RMSprop()
        >>> opt.build([table])
        >>> opt.forget(table)
        >>> len(opt.weights)  # the number of iterations alone
        1
        """
        in_turn(carry_out, self.known.add_forget, variables)
