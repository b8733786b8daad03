"""Checkpoints of a few bytes, whole in form, and the name that a FakeEngine gives their weights."""

import hashlib
import json
import random
import struct
from pathlib import Path

_FULL = {"model.embed_tokens.weight": (8, 4), "model.layers.0.q_proj.weight": (4, 4)}
_LORA = {
    "base_model.model.model.layers.0.q_proj.lora_A.weight": (2, 4),
    "base_model.model.model.layers.0.q_proj.lora_B.weight": (4, 2),
}


def full(folder: Path, seed: int, width: int = 4) -> str:
    """Write a full checkpoint and return the name of its weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    shapes = {name: (rows, width) for name, (rows, _) in _FULL.items()}
    return _write(folder / "model.safetensors", shapes, seed)


def lora(folder: Path, seed: int) -> str:
    """Write an adapter over any of the full ones and return the name of its weights."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    return _write(folder / "adapter_model.safetensors", _LORA, seed)


def _write(path: Path, shapes: dict[str, tuple[int, int]], seed: int) -> str:
    header, data, draw = {}, b"", random.Random(seed)
    for name, (rows, columns) in shapes.items():
        end = len(data) + 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [len(data), end]}
        data += draw.randbytes(4 * rows * columns)
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + data
    path.write_bytes(whole)
    return hashlib.blake2b(whole).hexdigest()[:8]
