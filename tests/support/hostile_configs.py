"""Calls of set_weights and from_config with values that are nearly right."""

from __future__ import annotations

import json

import all_schedules
import numpy as np
from hostile_gradients import VARIANTS
from hostile_source import REFUSALS, WORDS, is_refused, little_memory, numerics
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop


def weights(source, variants=VARIANTS):
    """Call ``set_weights`` of an optimizer with rows that are behind."""
    momentum, centered = source.choose(variants)
    opt = RMSprop(0.1, momentum=0.9 * momentum, centered=centered, weight_decay=0.1 * source.flag())
    variables = [np.ones((4, 2), "f4"), np.ones((2, 3)), np.ones((), "f4")][: source.integer(0, 3)]
    opt.build(variables)
    for var in variables[:2]:
        opt.apply_gradients([(IndexedSlices(np.ones((1, var.shape[1]), var.dtype), [1]), var)])
        opt.apply_gradients([(IndexedSlices(np.ones((1, var.shape[1]), var.dtype), [0]), var)])
    if source.rarely():
        opt.add_weight("total", (2,), source.choose(["f4", "i4", "?"]))
    for _ in range(source.integer(1, 3)):
        given = [some_weight(source, array) for array in opt.get_weights()]
        if source.rarely():
            given = source.choose([given[1:], [*given, 1.0], given[:1], None, 5, iter(given), opt.weights[::-1]])

        def call(given=given):
            with numerics(source):
                opt.set_weights(given)

        is_refused(call, lambda: state_of(opt, variables), REFUSALS)
        opt.get_weights()


def some_weight(source, array):
    if not source.rarely(4):
        return array
    if array.ndim == 0 and source.flag():
        return source.choose([source.any_integer(), source.number(), np.uint64(2**63), "5", True, 2**70, None, 2.5])
    dtype = source.dtype() if source.flag() else array.dtype
    return source.array(source.shape() if source.rarely(4) else array.shape, dtype)


def config(source):
    """Call ``from_config`` with a config some parts of which were replaced."""
    made = {
        name: source.choose(VALUES[name]) if name in VALUES and source.rarely(3) else value
        for name, value in RMSprop().get_config().items()
    }
    made["learning_rate"] = schedule_config(source) if source.flag() else made["learning_rate"]
    for _ in range(source.integer(0, 3)):
        name = source.choose((*made, "lr", *WORDS)) if source.rarely() else source.choose(made or [""])
        made[name] = json_value(source, 3)
    given = json_value(source, 3) if source.rarely(24) else made
    opts = []
    with little_memory():
        refused = is_refused(lambda: opts.append(RMSprop.from_config(given)), lambda: None, (TypeError, ValueError))
    if not refused:
        opt = opts[0]
        text = json.dumps(opt.get_config())
        assert json.dumps(RMSprop.from_config(json.loads(text)).get_config()) == text
        take_a_step(source, opt)


VALUES = {
    "rho": [0.0, 1.0, 0.5],
    "momentum": [0.0, 0.9],
    "epsilon": [None, 0.0],
    "centered": [True],
    "sparse_update": ["lazy"],
    "epsilon_in_sqrt": [True, False],
    "clipvalue": [1.0],
    "clipnorm": [1.0],
    "decay": [0.1],
}


def json_value(source, depth):
    kind = source.integer(0, 8 if depth else 6)
    if kind == 0:
        return source.choose([None, True, False])
    if kind == 1:
        return source.any_integer()
    if kind in (2, 3):
        return source.number()
    if kind == 4:
        return source.choose(WORDS)
    if kind == 5:
        return source.choose([10**400, -(10**400), "5", "1e400", [], {}])
    if kind == 6:
        return schedule_config(source) if depth else 0.5
    if kind == 7:
        return [json_value(source, depth - 1) for _ in range(source.length(4))]
    return {source.choose(WORDS): json_value(source, depth - 1) for _ in range(source.length(3))}


def schedule_config(source):
    schedule = source.choose(all_schedules.ALL)
    made = {"class_name": type(schedule).__name__, "config": schedule.get_config()}
    for _ in range(source.integer(0, 3)):
        made["config"][source.choose(made["config"])] = json_value(source, 1)
    if source.rarely():
        made[source.choose(["class_name", "config", "function"])] = json_value(source, 1)
    if source.rarely(16):
        del made[source.choose(made)]
    return made


def take_a_step(source, opt):
    """Take a step, which is refused if the schedule gives no valid rate."""
    var = np.ones(3)
    opt.iterations = source.choose([0, 1, 12, 10**6, 2**40])
    is_refused(lambda: opt.apply_gradients([(np.ones(3), var)]), lambda: state_of(opt, [var]), (TypeError, ValueError))
