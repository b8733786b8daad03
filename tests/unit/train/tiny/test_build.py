from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from train.errors import BadConfig, SaveFailed
from train.tiny.__main__ import main
from train.tiny.build import build, shortened
from train.tiny.recipes import recipe

QUICK = dataclasses.replace(recipe("key_door"), steps=2, batch=2)


def digest(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(QUICK, tmp_path_factory.mktemp("tiny") / "policy")


def test_transformers_loads_what_was_saved(built: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(built)
    tokenizer = AutoTokenizer.from_pretrained(built)
    settings = GenerationConfig.from_pretrained(built)
    assert 0.9e6 < model.num_parameters() < 1.1e6
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert model.config.head_dim == 64
    assert model.config.max_position_embeddings == 2048
    assert settings.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert settings.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert sum(path.stat().st_size for path in built.iterdir()) < 5e6


def test_equal_seeds_give_equal_files(built: Path, tmp_path: Path) -> None:
    again = digest(build(QUICK, tmp_path / "again"))
    other = digest(build(QUICK, tmp_path / "other", seed=1))
    assert again == digest(built)
    assert again["model.safetensors"] != other["model.safetensors"]


def test_what_is_there_is_not_overwritten(built: Path) -> None:
    before = digest(built)
    with pytest.raises(BadConfig, match="is there already"):
        build(QUICK, built)
    assert digest(built) == before
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_a_place_where_no_folder_can_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with pytest.raises(BadConfig, match="cannot make"):
        build(QUICK, tmp_path / "file" / "below", say=said.append)
    assert not said


def test_a_folder_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def take_its_place(_: str) -> None:
        out.mkdir(exist_ok=True)
        (out / "mine").touch()

    with pytest.raises(SaveFailed, match="cannot write"):
        build(QUICK, out, say=take_its_place)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"env": "nothing"}, "nothing"),
        ({"strategy": "NOTHING"}, "NOTHING"),
        ({"vocabulary": 9}, "259"),
    ],
)
def test_a_recipe_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    with pytest.raises(BadConfig, match=said):
        build(dataclasses.replace(QUICK, **wrong), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="seed"):
        build(QUICK, tmp_path / "out", seed=-1)
    assert not list(tmp_path.iterdir())


def test_steps_can_be_changed() -> None:
    assert shortened(QUICK, None) is QUICK
    assert shortened(QUICK, 7).steps == 7


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    assert (
        main(["key_door", "--out", str(out), "--steps", "1", "--seed", "3", "--threads", "1"]) == 0
    )
    assert (out / "model.safetensors").is_file()
    assert "step 1 of 1" in capsys.readouterr().out
    assert main(["chess", "--out", str(out)]) == 2
    assert "error: no recipe is called 'chess'" in capsys.readouterr().err
    assert main(["key_door", "--out", str(out), "--steps", "0"]) == 2


def test_help_is_light() -> None:
    program = "import sys, train.tiny.__main__, train.tiny.teacher; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "tokenizers"} & set(ran.stdout.split())
