"""Folders that can be trained, and what is said of those that cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.train.fakes import make_checkpoint
from train.checkpoint_folder import check, find
from train.errors import BadModel


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    found = check(make_checkpoint(tmp_path))
    assert (found.path, found.context) == (tmp_path, 512)


def test_a_template_of_its_own_file(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, template=False)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    check(folder)


def test_sharded_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    whole = folder / "model.safetensors"
    (folder / "model-2.safetensors").write_bytes(whole.read_bytes())
    whole.rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    check(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(BadModel, match=r"is not whole: model-2.safetensors is missing"):
        check(folder)
    index.write_text("{}")
    with pytest.raises(BadModel, match="it has no weight_map"):
        check(folder)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def garbled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs")


def unpickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def mute(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def plain(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"chat_template": null}')


def torn(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"chat_')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (an_adapter, "it is an adapter: give its base model's folder"),
        (cut, r"is damaged: it has \d+ bytes of \d+"),
        (emptied, "is no safetensors file"),
        (garbled, "is no safetensors file, or is cut off"),
        (unpickled, "is empty"),
        (mute, "has no tokenizer"),
        (plain, "has no chat template"),
        (torn, "tokenizer_config.json is damaged"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    folder = make_checkpoint(tmp_path / "m")
    damage(folder)
    with pytest.raises(BadModel, match=said) as caught:
        check(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_is_found_as_it_is(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "mine")
    assert find(f"{folder}/", print) == (folder, "mine")


@pytest.mark.parametrize("model", ["./nope", "/nope/m", "~/nope", "a/b/c", "runs/"])
def test_a_path_that_leads_nowhere(model: str) -> None:
    with pytest.raises(BadModel, match="there is no folder"):
        find(model, print, pull=("false",))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_text("")
    with pytest.raises(BadModel, match="is a file"):
        find(str(file), print)


def test_a_name_is_pulled(tmp_path: Path) -> None:
    program = f"import sys; print('step ...', file=sys.stderr); print({str(tmp_path)!r})"
    said: list[str] = []
    found = find("org/name", said.append, pull=(sys.executable, "-c", program))
    assert found == (tmp_path, "org/name")
    assert said == ["there is no folder org/name: python -m serve pull org/name", "step ..."]


def test_a_name_that_serve_does_not_know() -> None:
    with pytest.raises(BadModel, match="it cannot be pulled: nothing to pull under 'nope'"):
        find("nope", print)
