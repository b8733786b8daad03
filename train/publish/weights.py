"""The trained weights as a folder in Hugging Face's layout, ready to be published. Torch's door."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from train.errors import SaveFailed

_NOT_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
_INDEXES = {"model.safetensors.index.json", "pytorch_model.bin.index.json", "trainer_state.json"}


def write_full(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], like: Path, *, write: bool = True
) -> None:
    """Write a whole model: its tensors, and config and tokenizer as the checkpoint `like` has them.

    With `write` False the tensors are only gone through, as other processes must where each takes
    part in gathering them. Raises SaveFailed.
    """
    gathered = {}
    for name, tensor in tensors:
        if write:
            gathered[name] = tensor.detach().cpu().contiguous()
    if not write:
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for pattern in _NOT_WEIGHTS:
            for file in like.glob(pattern):
                if file.name not in _INDEXES:
                    shutil.copyfile(file, folder / file.name)
        save_file(gathered, folder / "model.safetensors", metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise SaveFailed(f"cannot write {folder}: {error}") from error
