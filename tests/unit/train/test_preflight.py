"""What is found wrong before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.train.fakes import make_checkpoint
from train.config import TrainConfig, resolve
from train.errors import BadModel
from train.preflight import ready


def told(model: Path, **overrides: Any) -> TrainConfig:
    tree = {"env": {"name": "key_door"}, "model": {"path": str(model)}}
    return resolve(tree, {key.replace("__", "."): value for key, value in overrides.items()})


def test_the_model_gets_its_folder_and_its_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    config, about = ready(told(folder, model__name="mine"), print)
    assert (config.model.path, config.model.name) == (str(folder), "mine")
    assert (about["model"], about["env"]["version"]) == ("mine", about["env"]["version"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"rollouts__max_tokens": 512}, r"max_tokens \(512\) leaves no room .* 512 tokens in all"),
        (
            {"gateway__max_model_len": 64, "rollouts__max_tokens": 64},
            r"max_tokens \(64\) leaves no room .* 64 tokens in all",
        ),
        ({"gateway__max_model_len": 513}, "max_model_len is 513, but .* has room for 512"),
    ],
)
def test_a_model_that_is_too_small(tmp_path: Path, overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(BadModel, match=said):
        ready(told(make_checkpoint(tmp_path / "m"), **overrides), print)


def test_a_gateway_elsewhere_has_its_own_length(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    ready(told(folder, gateway__max_model_len=513, gateway__url="http://h/v1"), print)
