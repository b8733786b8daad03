"""What the environment says: settings, a .env, experiments that stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.environment import Node, experiment, load_dotenv, node, settings, without_settings
from train.errors import BadConfig


def test_settings_are_dotted_yaml() -> None:
    told = {
        "PALAESTRA_TRAIN__LEARN__STEPS": "200",
        "PALAESTRA_TRAIN__MODEL__LORA": "null",
        "PALAESTRA_TRAIN__ENV__ARGS": "{size: 4}",
        "PALAESTRA_TRAIN_CONFIG": "x",
        "PALAESTRA_TRAIN__": "x",
        "PATH": "/bin",
    }
    assert settings(told) == {
        "learn.steps": 200,
        "model.lora": None,
        "env.args": {"size": 4},
    }
    assert without_settings(told) == {"PALAESTRA_TRAIN_CONFIG": "x", "PATH": "/bin"}


def test_a_setting_that_is_no_yaml_is_named() -> None:
    with pytest.raises(BadConfig, match="PALAESTRA_TRAIN__LEARN__STEPS: the value is no YAML"):
        settings({"PALAESTRA_TRAIN__LEARN__STEPS": "["})


def test_a_dotenv_adds_what_is_not_set(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# keys\nHF_TOKEN=hf_1\nexport WANDB_API_KEY = 'a b' \n\n"
        'EXPERIMENTER="ann"\nEMPTY=\nNOTED=x # why\nHASH=a#b\n'
    )
    environment = {"HF_TOKEN": "mine"}
    assert load_dotenv(file, environment) == [
        *("WANDB_API_KEY", "EXPERIMENTER", "EMPTY", "NOTED", "HASH")
    ]
    assert environment == {
        "HF_TOKEN": "mine",
        "WANDB_API_KEY": "a b",
        "EXPERIMENTER": "ann",
        "EMPTY": "",
        "NOTED": "x",
        "HASH": "a#b",
    }
    assert load_dotenv(tmp_path / "none", environment) == []


def test_a_line_that_is_none_is_named_by_its_number_only(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("A=1\nhf_secret\n")
    with pytest.raises(BadConfig) as caught:
        load_dotenv(file, {})
    assert str(caught.value) == f"{file}, line 2: expected NAME=value"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({}, "runs-default-default"),
        ({"EXPERIMENTER": "ann"}, "runs-ann-default"),
        ({"EXPERIMENTER": "Ann Lee", "EXPERIMENT_NAME": "a/b"}, "runs-Ann-Lee-a-b"),
        ({"EXPERIMENT_NAME": "//"}, "runs-default-default"),
    ],
)
def test_experiments_have_volumes_of_their_own(told: dict[str, str], name: str) -> None:
    assert experiment("runs-{EXPERIMENTER}-{EXPERIMENT_NAME}", told) == name


def test_a_machine_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node() is None
    machine = Node(rank=1, size=2, main="10.0.0.1")
    monkeypatch.setenv("PALAESTRA_TRAIN_NODE", machine.dump())
    assert node() == machine
