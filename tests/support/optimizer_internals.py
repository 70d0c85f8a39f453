"""The one place where tests read what an optimizer keeps to itself; all else they know from its public members.

Tests need it where the public members would change what they read: :attr:`RMSprop.weights` and
:meth:`RMSprop.get_slot` first bring every row up to date.
"""

import json

import numpy as np


def all_slots(opt):
    """Return the state of every variable, in the order in which the optimizer first saw them."""
    return opt.known.slots


def slots_of(opt, variable):
    """Return the state of one variable, which is an array or a number in the order of first sight."""
    if isinstance(variable, int):
        return opt.known.slots[variable]
    return next(slots for slots in opt.known.slots if slots.var is variable)


def names_of(opt):
    """Return the names of the variables, in the order of first sight."""
    return [slots.name for slots in opt.known.slots]


def state_of(opt, variables):
    """Return every bit that later steps depend on, and that of the variables; rows that are behind stay so."""
    found = [
        (
            {name: array.tobytes() for name, array in slots.arrays.items()},
            None if slots.clocks is None else slots.clocks.tobytes(),
            *(slots.steps, slots.floor, slots.history.runs.tobytes()),
        )
        for slots in opt.known.slots
    ]
    own_weights = {name: array.tobytes() for name, array in opt.own_weights.items()}
    return found, own_weights, opt.iterations, json.dumps(opt.get_config()), [var.tobytes() for var in variables]


def row_clocks(opt, variable):
    """Return the number of steps that each row of a variable has seen; all 0 before the first sparse step."""
    return slots_of(opt, variable).row_clocks()


def has_marked_rows(opt, variable):
    """Return whether marks of the kernels that look for duplicates are left, which each step must remove."""
    marks = slots_of(opt, variable).scratch.marks
    return marks is not None and bool(marks.any())


def let_steps_pass(opt, steps):
    """Let steps with gradient 0 pass for every variable, without the time that they take."""
    for slots in opt.known.slots:
        slots.restore(slots.clocks, slots.steps + steps, slots.floor, slots.history.runs.copy())


def shift_clocks(opt, by):
    """Let every variable look as if ``by`` more steps had come before its first."""
    for slots in opt.known.slots:
        runs = slots.history.runs.copy()
        runs[:, 0] += by
        slots.restore(slots.clocks + np.int32(by), slots.steps + by, slots.floor + by, runs)


def occupied_memory(opt):
    """Return the memory of all variables and slots."""
    return opt.known.occupied


def shared_variables(opt):
    """Return the variables that other optimizers, as far as this one knows, may have left rows behind of."""
    return opt.known.registry.shared


def remembered_call(opt):
    """Return what the next step takes over from the last call, or None where it checks everything."""
    return opt.known.remembered.get("plan")


def forget_call(opt):
    """Let the next step check everything, as the first did."""
    opt.known.remembered.clear()


def refuse_closer_looks(opt, monkeypatch):
    """Let every step fail that checks more than what it takes over from the last call."""
    monkeypatch.setattr(opt, "_parts", None)


# numba_rmsprop.torch


def known_parameters(opt):
    """Return what a PyTorch optimizer remembers of its parameters, by their ids."""
    return opt._steps.known


def slots_of_parameter(opt, parameter):
    """Return the state of one parameter of a PyTorch optimizer."""
    return opt._steps.known[id(parameter)].slots


def remembered_group(opt, number):
    """Return what the next step takes over from the last one for the small parameters of a group."""
    return opt._steps._plans[number]
