"""What a folder of safetensors holds, by its headers. Standard library only; reads no weight.

The store of policies asks before it publishes, and the plugin inside vLLM before it loads: a
folder that passes has every byte that its headers promise.
"""

import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import BadCheckpoint

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_MOST_HEADER_BYTES = 100_000_000
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F4", "F6_E2M3", "F6_E3M2"), None),
}

Shapes = dict[str, tuple[int, ...]]
"""A tensor's name -> its shape."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How the tensors of one checkpoint differ from those of another."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        told = {
            "missing": self.missing,
            "not expected": self.unexpected,
            "of another shape": self.reshaped,
        }
        return "; ".join(
            f"{len(names)} {what}, such as {names[0]}" for what, names in told.items() if names
        )


def weight_files(folder: Path) -> tuple[str, ...]:
    """Return the names of a full checkpoint's files of weights; raise BadCheckpoint."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise BadCheckpoint(f"{folder} has neither {WEIGHTS} nor {INDEX}")
        return (WEIGHTS,)
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise BadCheckpoint(f"{index} has no weight_map")
    names = sorted({str(name) for name in placed.values()})
    missing = [name for name in names if "/" in name or not (folder / name).is_file()]
    if missing:
        raise BadCheckpoint(f"{index} names files that are not there: {', '.join(missing)}")
    if WEIGHTS not in names and (folder / WEIGHTS).is_file():
        raise BadCheckpoint(f"{folder} has both {WEIGHTS} and an {INDEX} that does not name it")
    return tuple(names)


def shapes_of(folder: Path, files: Sequence[str]) -> Shapes:
    """Return the shapes of all tensors in these files; raise BadCheckpoint."""
    shapes: Shapes = {}
    for file in files:
        for name, shape in header(folder / file).items():
            if name in shapes:
                raise BadCheckpoint(f"{folder} has {name} in two of its files")
            shapes[name] = shape
    return shapes


def differences(expected: Shapes, found: Shapes) -> Difference:
    """Compare two checkpoints; a tied output layer may be written out or left out."""
    heads = {"lm_head.weight"} if _is_tied(expected, found) else set()
    return Difference(
        missing=tuple(sorted(expected.keys() - found.keys() - heads)),
        unexpected=tuple(sorted(found.keys() - expected.keys() - heads)),
        reshaped=tuple(
            sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
        ),
    )


def _is_tied(expected: Shapes, found: Shapes) -> bool:
    """Whether one of them left the output layer out, as only tied models can."""
    return ("lm_head.weight" in expected) is not ("lm_head.weight" in found)


def header(path: Path) -> Shapes:
    """Return the shapes of one file's tensors; raise BadCheckpoint if it is cut or not one."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MOST_HEADER_BYTES + 1
            if length > min(_MOST_HEADER_BYTES, size_bytes - 8):
                raise BadCheckpoint(f"{path} is not a safetensors file, or was cut short")
            described = json.loads(file.read(length))
        return _checked(described, size_bytes - 8 - length)
    except OSError as error:
        raise BadCheckpoint(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} is not a whole safetensors file: {error}") from error


def _checked(described: dict[str, Any], data_bytes: int) -> Shapes:
    """Return the shapes in a header that promises exactly these many bytes; raise ValueError."""
    shapes: Shapes = {}
    covered = 0
    tensors = [(name, entry) for name, entry in described.items() if name != "__metadata__"]
    for name, entry in sorted(tensors, key=lambda tensor: tensor[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        shape = tuple(int(size) for size in entry["shape"])
        bits = _DTYPE_BITS[entry["dtype"]]
        if begin != covered or (bits and math.prod(shape) * bits != 8 * (end - begin)):
            raise ValueError(f"the bytes of {name} are not where they should be")
        covered = end
        shapes[name] = shape
    if covered != data_bytes:
        raise ValueError(f"expected {covered} bytes of weights, found {data_bytes}")
    return shapes


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; raise BadCheckpoint."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BadCheckpoint(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path} does not hold a JSON object")
    return value
