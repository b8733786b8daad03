"""The config: every key known, every value checked, the same again after writing and reading."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from train.config import (
    Loss,
    Mode,
    TrainConfig,
    dumps,
    load,
    parse_setting,
    read_tree,
    resolve,
)
from train.errors import BadConfig

LEAST: dict[str, Any] = {"env": {"name": "key_door"}, "model": {"path": "m", "lora": {}}}


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return the dotted names of a tree's sections, the root's being empty."""
    yield prefix
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind, f"{prefix}{name}.")


def leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def refused(overrides: dict[str, Any]) -> str:
    with pytest.raises(BadConfig) as caught:
        resolve(LEAST, overrides)
    return str(caught.value)


def test_all_sections_are_found() -> None:
    assert {"", "env.", "model.", "model.lora.", "gateway.", "learn.", "track."} <= {
        *sections(TrainConfig)
    }


@pytest.mark.parametrize("section", sorted(sections(TrainConfig)))
def test_unknown_keys_are_refused_at_every_level(section: str) -> None:
    assert refused({f"{section}nonsense": 1}) == f"{section}nonsense: no such key"


def test_a_file_is_named_in_complaints_and_each_fault_has_a_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("env: {name: key_door}\nlearn: {steps: 0, stesp: 3}\n")
    with pytest.raises(BadConfig) as caught:
        load(file, {})
    assert str(caught.value).splitlines() == [
        f"{file}: model: is missing",
        f"{file}: learn.steps: Input should be greater than or equal to 1",
        f"{file}: learn.stesp: no such key",
    ]


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "env: {name: key_door, args: {size: 3, max_turns: 9}}\n"
        "model: {path: m}\nlearn: {steps: 7, seed: 5}\n"
    )
    config = load(file, {"learn.steps": 8, "env.args.size": 4, "model.lora.r": 4})
    assert (config.learn.steps, config.learn.seed, config.learn.max_staleness) == (8, 5, 1)
    assert config.env.args == {"size": 4, "max_turns": 9}
    assert config.model.lora is not None
    assert config.model.lora.r == 4


def test_none_is_a_value() -> None:
    assert resolve(LEAST, {"model.lora": None}).model.lora is None


def test_resolving_leaves_the_tree_alone() -> None:
    resolve(LEAST, {"env.name": "tic_tac_toe", "learn.steps": 3})
    assert LEAST == {"env": {"name": "key_door"}, "model": {"path": "m", "lora": {}}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learn.steps=5", ("learn.steps", 5)),
        (" a.b =x=y", ("a.b", "x=y")),
        ("gateway.url=null", ("gateway.url", None)),
        ("gateway.engine_args=[--a, b]", ("gateway.engine_args", ["--a", "b"])),
        ("env.args={size: 3}", ("env.args", {"size": 3})),
    ],
)
def test_settings_are_yaml(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [("steps", "--set takes SECTION.KEY=VALUE, not 'steps'"), ("=3", "not '=3'"), ("a=[", "YAML")],
)
def test_settings_that_are_none(text: str, said: str) -> None:
    with pytest.raises(BadConfig, match="--set") as caught:
        parse_setting(text)
    assert said in str(caught.value)


def test_a_value_is_no_section() -> None:
    assert refused({"out.folder": "x"}) == "out: Input should be a valid string"
    with pytest.raises(BadConfig, match=r"learn\.steps\.x: steps is a value, not a section"):
        resolve({**LEAST, "learn": {"steps": 3}}, {"learn.steps.x": 1})


@pytest.mark.parametrize("content", ["[1, 2]", "", "a: [", "just text"])
def test_files_that_hold_no_config(tmp_path: Path, content: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(BadConfig, match=str(file)):
        read_tree(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"cannot read .*No such file"):
        load(tmp_path / "no.yaml", {})


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"env: \xff\xfe")
    with pytest.raises(BadConfig, match="cannot read"):
        load(file, {})


FAULTS = [
    ("rollouts.group_size", 1, "greater than or equal to 2"),
    ("rollouts.groups_per_step", 0, "greater than or equal to 1"),
    ("rollouts.temperature", 0, "greater than 0"),
    ("rollouts.top_p", 1.1, "less than or equal to 1"),
    ("learn.learning_rate", 0, "greater than 0"),
    ("learn.learning_rate", float("inf"), "finite number"),
    ("learn.learning_rate", float("nan"), "finite number"),
    ("learn.epsilon_low", 1, "less than 1"),
    ("learn.importance_cap", 1, "greater than 1"),
    ("learn.max_staleness", -1, "greater than or equal to 0"),
    ("learn.loss", "ppo", "'grpo', 'dr_grpo', 'dapo' or 'cispo'"),
    ("learn.mode", "off", "'async' or 'sync'"),
    ("learn.schedule", "step", "'constant', 'linear' or 'cosine'"),
    ("publish.swap", "abort", "'wait' or 'keep'"),
    ("publish.tolerance", 0, "greater than 0"),
    ("model.lora.r", 513, "less than or equal to 512"),
    ("model.lora.dropout", 1.0, "less than 1"),
    ("checkpoints.keep", 0, "greater than or equal to 1"),
    ("restarts", -1, "greater than or equal to 0"),
    ("gateway.wait_s", -1, "greater than or equal to 0"),
    ("gateway.timeout_s", "soon", "valid number"),
]


@pytest.mark.parametrize(("key", "value", "said"), FAULTS)
def test_values_out_of_range(key: str, value: Any, said: str) -> None:
    complaint = refused({key: value})
    assert complaint.startswith(f"{key}: ")
    assert said in complaint


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"learn.accumulation": 3},
            "config: learn.accumulation (3) must divide rollouts.groups_per_step (8)",
        ),
        (
            {"learn.mode": "sync", "rollouts.strategy": "SCRATCHPAD"},
            "FULL_HISTORY without drop_oldest, not SCRATCHPAD",
        ),
        (
            {"learn.mode": "sync", "rollouts.strategy": "FULL_HISTORY(overflow=drop_oldest)"},
            "without drop_oldest, not FULL_HISTORY(overflow=drop_oldest)",
        ),
        (
            {"learn.mode": "sync", "learn.processes": 2},
            "learn.mode=sync needs learn.processes and publish.every to be 1, not [2, 1]",
        ),
        ({"learn.mode": "sync", "publish.every": 3}, "publish.every to be 1, not [1, 3]"),
        ({"rollouts.top_p": 0.9}, "config: rollouts.top_p must be 1, not 0.9: a sampler"),
        (
            {"publish.channel": "lora", "model.lora": None},
            "config: publish.channel=lora needs model.lora",
        ),
    ],
)
def test_settings_that_do_not_go_together(overrides: dict[str, Any], said: str) -> None:
    assert said in refused(overrides)


def test_settings_that_do_go_together() -> None:
    config = resolve(
        LEAST, {"learn.accumulation": 4, "learn.mode": "sync", "publish.channel": "lora"}
    )
    assert config.learn.mode is Mode.SYNC


def test_exponents_without_a_point_are_numbers() -> None:
    """YAML 1.1 takes 1e-5 for a text."""
    key, value = parse_setting("learn.learning_rate=1e-5")
    assert resolve(LEAST, {key: value}).learn.learning_rate == 1e-5


def test_cispo_takes_the_cap_of_the_ratio_itself() -> None:
    with pytest.raises(BadConfig, match="cap of the ratio itself"):
        resolve(LEAST, {"learn.loss": "cispo"})


def test_every_key_comes_back_from_the_file(tmp_path: Path) -> None:
    config = resolve(
        LEAST,
        {
            "learn.loss": "cispo",
            "learn.epsilon_high": 5.0,
            "gateway.engine_args": ["--max-num-seqs", "4"],
            "env.args": {"size": 3, "nested": {"a": [1, None]}},
            "model.lora.target_modules": ["q_proj", "v_proj"],
        },
    )
    assert config.learn.loss is Loss.CISPO
    file = tmp_path / "config.yaml"
    file.write_text(dumps(config))
    assert load(file, {}) == config
    written = yaml.safe_load(dumps(config))
    for key, _ in leaves(config):
        at = written
        for word in key.split("."):
            at = at[word]


@settings(deadline=None, max_examples=30)  # the machine may be busy
@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-12, 1.0),
    name=st.text(string.printable, min_size=1),
    url=st.none() | st.text(string.ascii_letters, min_size=1),
    tolerance=st.none() | st.floats(1e-9, 10),
)
def test_any_config_comes_back(
    steps: int, rate: float, name: str, url: str | None, tolerance: float | None
) -> None:
    config = resolve(
        LEAST,
        {
            "learn.steps": steps,
            "learn.learning_rate": rate,
            "model.name": name,
            "gateway.url": url,
            "publish.tolerance": tolerance,
        },
    )
    assert TrainConfig.model_validate(yaml.safe_load(dumps(config))) == config


def test_a_config_does_not_change() -> None:
    config = resolve(LEAST, {})
    with pytest.raises(ValueError, match="frozen"):
        config.learn.steps = 3
