"""Slips that a change could bring in, by area, for tests/support/mutants.py: mutations.txt lists them.

A line with ``#`` names an area, and one with ``@`` a file of the package and the tests that find slips in it, as pytest
takes them. Each line with ``-`` is a slip: what stands once in the file, ``=>``, and what takes its place; without
``=>``, ``pass`` does. A line may end in between, as ``\\n``. Where no test can see a slip, ``=`` says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_name("mutations.txt")


class Mutation(NamedTuple):
    """A slip in one file, and the tests that must fail with it."""

    area: str
    file: str
    tests: str
    old: str
    new: str
    equivalent: str


def mutations() -> list[Mutation]:
    """Return all mutations."""
    found: list[Mutation] = []
    area = file = tests = ""
    for line in PATH.read_text("utf-8").splitlines():
        sign, rest = line[:1], line[2:]
        if sign == "#":
            area = rest
        elif sign == "@":
            file, _, tests = rest.partition(" ")
        elif sign == "-":
            old, arrow, new = rest.replace("\\n", "\n").partition(" =>")
            found.append(Mutation(area, file, tests, old, new.removeprefix(" ") if arrow else "pass", ""))
        elif sign == "=":
            found[-1] = found[-1]._replace(equivalent=rest)
    return found
