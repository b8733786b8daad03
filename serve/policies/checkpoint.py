"""What a folder that is to be published holds, and whether it can be served. Reads headers only.

Knows no version, no store and no engine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serve.engine.tensors import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    Shapes,
    differences,
    read_json,
    shapes_of,
    weight_files,
)
from serve.errors import BadCheckpoint
from serve.wire import PolicyKind

_BESIDE_WEIGHTS = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
_NOT_SERVED = {"state.json", "trainer_state.json", "manifest.json", "probes.json"}
"""Trainers' states; and what a store writes beside a version, which may be published again."""
_LORA_PREFIX = "base_model.model."
_LORA_A = ".lora_A.weight"
_LORA_B = ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint: every file that serving needs, and no other."""

    folder: Path
    kind: PolicyKind
    files: tuple[str, ...]
    shapes: Shapes


def read_checkpoint(folder: Path, kind: PolicyKind | None = None) -> Checkpoint:
    """Look at a folder, and hold it to be of that kind if one is given; raise BadCheckpoint."""
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder} is not a folder")
    found = PolicyKind.LORA if (folder / ADAPTER_CONFIG).is_file() else PolicyKind.FULL
    if kind not in (None, found):
        raise BadCheckpoint(f"{folder} holds a checkpoint of kind {found.value}, not {kind}")
    if found is PolicyKind.LORA:
        weights = _adapter_files(folder)
    else:
        if not read_json(folder / CONFIG).get("model_type"):
            raise BadCheckpoint(f"{folder / CONFIG} does not say its model_type")
        weights = weight_files(folder)
    return Checkpoint(
        folder=folder,
        kind=found,
        files=tuple(sorted({*weights, *_beside(folder)})),
        shapes=shapes_of(folder, weights),
    )


def shapes_in(folder: Path) -> Shapes:
    """Return the shapes of a full checkpoint's tensors; raise BadCheckpoint."""
    return shapes_of(folder, weight_files(folder))


def ensure_fits(checkpoint: Checkpoint, base: Shapes, base_name: str) -> None:
    """Raise BadCheckpoint unless an engine that serves `base` can go over to this checkpoint."""
    if checkpoint.kind is PolicyKind.FULL:
        if different := differences(base, checkpoint.shapes):
            raise BadCheckpoint(f"{checkpoint.folder} does not fit {base_name}: {different}")
        return
    adapted = 0
    for name, shape in checkpoint.shapes.items():
        stem = name.removeprefix(_LORA_PREFIX).removesuffix(_LORA_A).removesuffix(_LORA_B)
        weight = base.get(f"{stem}.weight")
        if weight is None or len(weight) != 2:
            continue
        expected = weight[1] if name.endswith(_LORA_A) else weight[0]
        if expected not in shape:
            raise BadCheckpoint(
                f"{checkpoint.folder} was not made for {base_name}: {name} is {shape}, "
                f"its base {weight}"
            )
        adapted += 1
    if not adapted:
        raise BadCheckpoint(f"{checkpoint.folder} adapts no layer of {base_name}")


def _adapter_files(folder: Path) -> tuple[str, ...]:
    if read_json(folder / ADAPTER_CONFIG).get("peft_type") != "LORA":
        raise BadCheckpoint(f"{folder / ADAPTER_CONFIG} does not describe a LoRA")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise BadCheckpoint(f"{folder} has no {ADAPTER_WEIGHTS}")
    shapes = shapes_of(folder, (ADAPTER_WEIGHTS,))
    other = [name for name in shapes if not name.endswith((_LORA_A, _LORA_B))]
    if other or not shapes:
        raise BadCheckpoint(
            f"{folder / ADAPTER_WEIGHTS} cannot be served: expected lora_A and lora_B weights, "
            f"found {other[0] if other else 'nothing'}"
        )
    return (ADAPTER_WEIGHTS,)


def _beside(folder: Path) -> Iterable[str]:
    """Name the tokenizer's and the model's small files, and nobody else's."""
    for path in folder.iterdir():
        wanted = path.suffix in _BESIDE_WEIGHTS and path.name not in _NOT_SERVED
        if wanted and not path.name.startswith(".") and path.is_file():
            yield path.name
