"""A whole model as a folder: what can be read back, and what becomes of a disk that is full."""

from __future__ import annotations

import json
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.train.tinies import WORDS, make_checkpoint
from train.errors import SaveFailed

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.publish.weights import write_full


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Let this process write no longer files: a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return make_checkpoint(tmp_path / "model", tied=request.param)


def test_what_is_written_is_read_back(checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    folder = tmp_path / "versions" / "step-000001"
    write_full(folder, model.named_parameters(), checkpoint)
    again = AutoModelForCausalLM.from_pretrained(folder)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert len(AutoTokenizer.from_pretrained(folder)) == len(WORDS)
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_a_folder_that_is_there_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "left-over").write_text("x")
    weights = AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters()
    write_full(folder, weights, checkpoint)
    assert not (folder / "left-over").exists()
    assert (folder / "model.safetensors").exists()


def test_what_belongs_to_the_old_weights_alone_is_left_behind(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    told = {"weight_map": {"w": "model-00001-of-00002.safetensors"}, "metadata": {}}
    for name in ("model.safetensors.index.json", "trainer_state.json"):
        (checkpoint / name).write_text(json.dumps(told))
    (checkpoint / "optimizer.pt").write_bytes(b"x")
    folder = tmp_path / "out"
    weights = AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters()
    write_full(folder, weights, checkpoint)
    assert {file.name for file in folder.iterdir()} == {
        *("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


def test_views_and_gradients_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "like").mkdir()
    whole = torch.arange(12.0).reshape(3, 4).requires_grad_()
    write_full(tmp_path / "out", iter([("t", whole.t())]), tmp_path / "like")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["t"], whole.detach().t())


def test_other_processes_only_take_part(tmp_path: Path) -> None:
    seen = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in "ab":
            seen.append(name)
            yield name, torch.zeros(1)

    write_full(tmp_path / "out", tensors(), tmp_path, write=False)
    assert seen == ["a", "b"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size_bytes", [100, 8000], ids=["config", "weights"])
def test_a_full_disk_is_said(tmp_path: Path, size_bytes: int) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    weights = list(AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters())
    with (
        files_of_at_most(size_bytes),
        pytest.raises(SaveFailed, match=rf"cannot write {tmp_path}/out.*too large"),
    ):
        write_full(tmp_path / "out", weights, checkpoint)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveFailed, match=r"cannot write .*/file/out"):
        write_full(tmp_path / "file" / "out", iter(()), tmp_path)
