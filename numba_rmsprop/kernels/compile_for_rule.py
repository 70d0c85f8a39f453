"""The kernels of a step, for any rule.

The modules below import the functions of RMSprop by name, and so are compiled for it as they stand. For another rule,
their functions are made once more, with that rule's functions under the same names.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from . import csr, dense, gather_and_flush, rows, skip_factors
from .jit import compiled_as, python_function
from .rmsprop import RMSPROP
from .rule import Rule

MODULES: tuple[ModuleType, ...] = (skip_factors, rows, csr, dense, gather_and_flush)


@cache
def kernels_of(rule: Rule) -> Any:
    """Return the kernels of a step, by their names in the modules of this folder.

    Those of rules of other packages are compiled in each process anew: where a rule has changed, Numba's cache on the
    disk would not notice, since the kernels' files have not.
    """
    own = {name: kernel for module in MODULES for name, kernel in _kernels(module).items()}
    if rule is RMSPROP:
        return SimpleNamespace(**own)
    spaces = {module.__name__: vars(module) | rule.names for module in MODULES}
    made = {name: _made_for(kernel, spaces, rule) for name, kernel in own.items()}
    for space in spaces.values():
        space.update({name: kernel for name, kernel in made.items() if name in space})
    return SimpleNamespace(**made)


def _kernels(module: ModuleType) -> dict[str, Any]:
    """Return the compiled functions that stand in a module, and not those that it imports."""
    found = {name: python_function(value) for name, value in vars(module).items()}
    return {
        name: vars(module)[name]
        for name, function in found.items()
        if function is not None and function.__module__ == module.__name__
    }


def _made_for(kernel: Any, spaces: dict[str, dict[str, Any]], rule: Rule) -> Any:
    """Return a kernel compiled with other functions under the names that it calls."""
    function = python_function(kernel)
    assert function is not None
    made = FunctionType(function.__code__, spaces[function.__module__], function.__name__)
    # By this name, Numba's cache on the disk tells it from RMSprop's, which stands at the same place of the same file.
    made.__qualname__ = f"{function.__qualname__}_{rule.name.rpartition('.')[2]}"
    own_package = __name__.partition(".")[0]
    return compiled_as(kernel, made, on_disk=rule.name.partition(".")[0] == own_package)
