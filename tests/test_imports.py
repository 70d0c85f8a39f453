"""Imports within the package run one way: from what stands above to what stands below, and never back."""

import ast
from pathlib import Path

import numba_rmsprop

PACKAGE = Path(numba_rmsprop.__file__).parent

LAYERS = [
    "kernels",
    "runtime",
    "arrays",
    "schedules",
    "settings",
    "state",
    "gradients",
    "stepping",
    "files",
    "mpi",
    "base_optimizer",
    "optimizer",
    "keyed",
    "distributed",
    "fitting",
    "torch",
    "compile",
    "__init__",
]
"""Folders and modules of the package; each may import from those before it."""

APART = {"distributed", "fitting", "torch"}
"""Doors beside one another: none imports another. Tables of several ranks are made of those of one."""


def imports_of(file):
    """Return the modules of the package that a file imports, at whatever place, as paths of names."""
    place = file.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*place[: len(place) - node.level], *(node.module or "").split(".")]
            base = [name for name in base if name]
            yield from ([tuple(base)] if base else [(alias.name,) for alias in node.names])


def layer_of(path):
    return path[0] if path else "__init__"


def test_every_folder_and_module_has_its_layer():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found == set(LAYERS)


def test_imports_run_one_way():
    back = []
    for file in PACKAGE.rglob("*.py"):
        own = layer_of(file.relative_to(PACKAGE).with_suffix("").parts)
        for path in imports_of(file):
            other = layer_of(path)
            above = LAYERS.index(other) > LAYERS.index(own) if other in LAYERS else other != "__version__"
            if above or (own != other and {own, other} <= APART):
                back.append(f"{file.relative_to(PACKAGE)} imports {'.'.join(path)}")
    assert not back


def test_no_circle_within_a_folder():
    graph = {}
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).with_suffix("").parts
        graph[own] = {path for path in imports_of(file) if PACKAGE.joinpath(*path).with_suffix(".py").exists()}
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " imports ".join(".".join(one) for one in [*under_way, module])
        if module in done:
            return
        under_way.append(module)
        for other in graph.get(module, ()):
            visit(other)
        under_way.pop()
        done.add(module)

    for module in graph:
        visit(module)
