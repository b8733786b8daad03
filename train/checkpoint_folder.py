"""Whether a folder is a checkpoint that can be trained, found out before anything is started.

Reads the JSON files and the weights' headers; imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.errors import BadModel

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_PULL = (sys.executable, "-m", "serve", "pull")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """A checkpoint in Hugging Face's layout that was found whole."""

    path: Path
    context: int | None
    """Longest prompt and completion, in tokens, where its config says so."""


def find(
    model: str, say: Callable[[str], None], *, pull: Sequence[str] = _PULL
) -> tuple[Path, str]:
    """Return the folder of a model, given by path or name, and what requests call it.

    What is not a folder is left to `python -m serve pull`, which fetches it if it is not there.

    Raises:
        BadModel: there is none, or it cannot be fetched.

    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve(), folder.resolve().name
    if folder.exists():
        raise BadModel(f"{model} is a file: expected the folder of a checkpoint")
    if _looks_like_path(model):
        raise BadModel(f"there is no folder {model}")
    say(f"there is no folder {model}: python -m serve pull {model}")
    said = []
    with subprocess.Popen(  # noqa: S603  # ours
        [*pull, model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.strip())
            if line.endswith(" ...\n"):
                say(said[-1])
        printed = process.stdout.read().strip().splitlines()
    if process.returncode or not printed:
        reason = said[-1].removeprefix("error: ") if said else f"exit code {process.returncode}"
        raise BadModel(f"there is no folder {model}, and it cannot be pulled: {reason}")
    return Path(printed[-1]), model


def check(folder: Path) -> CheckpointFolder:
    """Check that a folder has a config, whole weights, and a tokenizer with a chat template.

    Raises:
        BadModel: something is missing or damaged; says what.

    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise BadModel(f"{folder} is no checkpoint: it has no config.json")
    config = _read_json(config_path)
    _check_weights(folder)
    _check_tokenizer(folder)
    context = config.get("max_position_embeddings")
    return CheckpointFolder(path=folder, context=context if isinstance(context, int) else None)


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1


def _check_weights(folder: Path) -> None:
    for name in _INDEXES:
        index = folder / name
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise BadModel(f"{index} is damaged: it has no weight_map")
            missing = sorted(
                {str(shard) for shard in shards.values() if not (folder / shard).is_file()}
            )
            if missing:
                raise BadModel(f"{folder} is not whole: {', '.join(missing)} is missing")
            for shard in sorted(set(shards.values())):
                _check_file(folder / shard)
            return
    for name in _WHOLE:
        if (folder / name).is_file():
            _check_file(folder / name)
            return
    hint = ""
    if (folder / "adapter_config.json").is_file():
        hint = "; it is an adapter: give its base model's folder"
    raise BadModel(f"{folder} has no weights: expected model.safetensors{hint}")


def _check_file(path: Path) -> None:
    """Compare the file's size with what its header promises."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        if size == 0:
            raise BadModel(f"{path} is empty")
        return
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise BadModel(f"{path} is no safetensors file, or is cut off")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{path} is no safetensors file: {error}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise BadModel(f"{path} is damaged: it has {size} bytes of {expected}")


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise BadModel(f"{folder} has no tokenizer: expected tokenizer.json")
    if (folder / "chat_template.jinja").is_file():
        return
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if path.is_file() and _read_json(path).get("chat_template"):
            return
    raise BadModel(
        f"the tokenizer of {folder} has no chat template: episodes are chats, so put one into "
        "chat_template.jinja, or take an instruction-tuned model"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadModel(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise BadModel(f"{path} is damaged: expected a JSON object")
    return found
