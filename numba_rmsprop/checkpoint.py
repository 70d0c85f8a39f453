"""An optimizer's state as a safetensors file, which any other tool can read and which can run no code.

Tensors are named ``variables.{i}.{slot}``, ``variables.{i}.custom.{slot}`` and ``weights.{name}``;
``variables.{i}.clocks`` and ``variables.{i}.runs`` say how far behind the rows are. The rest stands in the file's
metadata, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from .threads import launch_lock
from .variables import FloatArray, describe

if TYPE_CHECKING:
    from .optimizer import RMSprop

FORMAT = "numba_rmsprop"
FORMAT_VERSION = 1
METADATA = {"config", "iterations", "variables", "weights"}

Optimizer = TypeVar("Optimizer", bound="RMSprop")


def save(opt: RMSprop, path: str | os.PathLike[str]) -> None:
    """Write ``opt`` to ``path``; the file takes its name only once it is whole."""
    with launch_lock:
        tensors = {name: _contiguous(array) for name, array in _tensors(opt)}
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "config": json.dumps(opt.get_config()),
            "iterations": str(opt.iterations),
            "variables": json.dumps(
                [
                    {
                        "shape": slots.var.shape,
                        "dtype": str(slots.var.dtype),
                        "steps": slots.steps,
                        "floor": slots.floor,
                        "custom_slots": list(slots.custom),
                    }
                    for slots in opt._slots
                ]
            ),
            "weights": json.dumps(list(opt._own_weights)),
        }
        temporary = f"{os.fsdecode(path)}.part"
        safetensors.numpy.save_file(tensors, temporary, metadata)
        os.replace(temporary, path)


def load(
    cls: type[Optimizer],
    path: str | os.PathLike[str],
    variables: Sequence[FloatArray],
    custom_objects: Mapping[str, Any] | None,
) -> Optimizer:
    """Return a new optimizer of class ``cls`` with the state in ``path``."""
    tensors, metadata = _read(path)
    opt = cls.from_config(json.loads(metadata["config"]), custom_objects)
    described = json.loads(metadata["variables"])
    if len(variables) != len(described):
        raise ValueError(f"{path}: expected {len(described)} variables, got {len(variables)}")
    for i, (var, saved) in enumerate(zip(variables, described, strict=True)):
        if list(np.shape(var)) != saved["shape"] or str(getattr(var, "dtype", None)) != saved["dtype"]:
            raise ValueError(
                f"{path}: expected variables[{i}] ({saved['dtype']}, shape {tuple(saved['shape'])}), "
                f"got {describe(f'variables[{i}]', np.asarray(var))}"
            )
    opt.build(variables)
    if len(opt._slots) != len(described):
        raise ValueError(f"{path}: expected {len(described)} different variables, got one of them twice")
    for i, (slots, saved) in enumerate(zip(opt._slots, described, strict=True)):
        for name, array in slots.arrays.items():
            array[...] = _take(tensors, f"variables.{i}.{name}", array.shape, path)
        for name in saved["custom_slots"]:
            slots.custom[name] = _take(tensors, f"variables.{i}.custom.{name}", None, path)
        clocks = tensors.get(f"variables.{i}.clocks")
        slots.restore(clocks, saved["steps"], saved["floor"], _take(tensors, f"variables.{i}.runs", None, path))
    for name in json.loads(metadata["weights"]):
        opt._own_weights[name] = _take(tensors, f"weights.{name}", None, path)
    opt.iterations = int(metadata["iterations"])
    return opt


def _tensors(opt: RMSprop) -> Iterator[tuple[str, NDArray[Any]]]:
    for i, slots in enumerate(opt._slots):
        for name, array in slots.arrays.items():
            yield f"variables.{i}.{'custom.' * (name in slots.custom)}{name}", array
        if slots.clocks is not None:
            yield f"variables.{i}.clocks", slots.clocks
        yield f"variables.{i}.runs", slots.history.runs
    for name, array in opt._own_weights.items():
        yield f"weights.{name}", array


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    # safetensors writes the memory of other arrays in the wrong order, without a word
    return np.asarray(array, order="C")


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("format_version") != str(FORMAT_VERSION):
                raise ValueError(
                    f"{path}: expected format {FORMAT} version {FORMAT_VERSION}, got "
                    f"{metadata.get('format')} version {metadata.get('format_version')}"
                )
            if missing := METADATA - metadata.keys():
                raise ValueError(f"{path}: expected {sorted(missing)} in the metadata, got {sorted(metadata)}")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file that RMSprop.save wrote; {error}") from error


def _take(
    tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...] | None, path: str | os.PathLike[str]
) -> NDArray[Any]:
    if name not in tensors:
        raise ValueError(f"{path}: expected a tensor {name!r}, got {sorted(tensors)}")
    if shape is not None and tensors[name].shape != shape:
        raise ValueError(f"{path}: expected {name!r} of shape {shape}, got {tensors[name].shape}")
    return tensors[name]
