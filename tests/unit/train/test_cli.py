"""The command line: what is typed becomes a config, a run, an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.train.fakes import make_checkpoint
from train import supervise
from train.cli import main
from train.config import TrainConfig, load
from train.errors import GatewayLost
from train.run import RunDir, State, Status

Shown = Callable[..., dict[str, Any]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Return the config that --dry-run shows, flat enough to look into."""

    def show(*words: str) -> dict[str, Any]:
        assert main(["grpo", *words, "--dry-run"]) == 0
        read = yaml.safe_load(capsys.readouterr().out)
        assert isinstance(read, dict)
        return read

    return show


def at(config: dict[str, Any], key: str) -> Any:
    found: Any = config
    for word in key.split("."):
        found = found[word]
    return found


LEAST = ("--env", "key_door", "--model", "m")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--env tic_tac_toe", "env.name", "tic_tac_toe"),
        ("--env-arg size=4 --env-arg noisy=true", "env.args", {"size": 4, "noisy": True}),
        ("--model other", "model.path", "other"),
        ("--url http://h:1/v1", "gateway.url", "http://h:1/v1"),
        ("--strategy NO_HISTORY", "rollouts.strategy", "NO_HISTORY"),
        ("--steps 3", "learn.steps", 3),
        ("--mode sync", "learn.mode", "sync"),
        ("--seed 9", "learn.seed", 9),
        ("--lr 1e-4", "learn.learning_rate", 1e-4),
        ("--group-size 4", "rollouts.group_size", 4),
        ("--groups-per-step 6", "rollouts.groups_per_step", 6),
        ("--lora", "model.lora.r", 16),
        ("--out there", "out", "there"),
        ("--set publish.every=3", "publish.every", 3),
        ("--set model.name=null", "model.name", None),
    ],
)
def test_every_option_sets_its_key(shown: Shown, words: str, key: str, value: Any) -> None:
    before, after = shown(*LEAST), shown(*LEAST, *words.split())
    assert at(after, key) == value
    assert before["rollouts"]["group_size"] == 8


def test_set_wins_over_options_and_they_over_the_file(shown: Shown, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "env: {name: tic_tac_toe}\n"
        "model: {path: theirs, lora: {r: 4, alpha: 8}}\n"
        "learn: {steps: 1, seed: 1, learning_rate: 1.0e-3}\n"
    )
    config = shown(
        *("--config", str(file), "--steps", "2", "--seed", "2", "--lora"),
        *("--set", "learn.steps=3", "--set", "model.lora.alpha=9"),
    )
    assert config["learn"]["steps"] == 3
    assert config["learn"]["seed"] == 2
    assert config["learn"]["learning_rate"] == 1e-3
    assert config["env"]["name"] == "tic_tac_toe"
    assert config["model"]["lora"] == {
        "r": 4,
        "alpha": 9,
        "dropout": 0.0,
        "target_modules": "all-linear",
    }
    assert shown("--config", str(file), "--set", "model.lora=null")["model"]["lora"] is None


def test_what_a_dry_run_shows_is_a_config_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grpo", *LEAST, "--lora", "--steps", "5", "--dry-run"]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert load(file, {}).learn.steps == 5
    assert not (tmp_path / "runs").exists()


MODEL = "MODEL"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nope"], "argument COMMAND: invalid choice: 'nope'"),
        (["grpo", "--stepz", "3"], "unrecognized arguments: --stepz 3"),
        (["grpo", "--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["grpo"], "env: is missing; model: is missing"),
        (["grpo", *LEAST, "--set", "x"], "--set takes SECTION.KEY=VALUE, not 'x'"),
        (["grpo", *LEAST, "--set", "learn.stepz=1"], "learn.stepz: no such key"),
        (["grpo", *LEAST, "--env-arg", "x"], "--env-arg is NAME=VALUE, not 'x'"),
        (["grpo", "--config", "/nope.yaml"], "cannot read /nope.yaml: [Errno 2]"),
        (["grpo", "--env", "nope", "--model", MODEL], "env: no env is called 'nope'"),
        (
            ["grpo", "--env", "key_door", "--env-arg", "x=1", "--model", MODEL],
            "env: ",
        ),
        (
            ["grpo", "--env", "key_door", "--model", MODEL, "--strategy", "SOME"],
            "rollouts.strategy: no strategy 'SOME'",
        ),
        (
            ["grpo", "--env", "key_door", "--model", MODEL, "--set", "reward.name=bonus"],
            "no reward is named 'bonus'",
        ),
        (["grpo", "--env", "key_door", "--model", "./nope"], "there is no folder ./nope"),
        (["grpo", "--resume", "/nope"], "/nope is not a training run: there is no such folder"),
        (["tiny", "nope", "--out", "x"], "no recipe is called 'nope': there are key_door"),
        (["tiny", "key_door"], "the following arguments are required: --out"),
        (["checkpoints"], "the following arguments are required: ACTION"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_checkpoint(tmp_path / "m"))
    typed = [model if word == MODEL else word for word in words]
    if typed[:1] == ["grpo"] and "--resume" not in typed:
        typed += ["--out", str(tmp_path / "runs")]
    code = main(typed)
    told = capsys.readouterr()
    assert code == 2
    if words:
        assert told.err.count("\n") == 1
        assert told.err.startswith("error: ")
        assert said in told.err
    else:
        assert "COMMAND" in told.out
    assert not (tmp_path / "runs").exists()


class Supervised:
    """In the place of `train.supervise`: keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[TrainConfig, RunDir, bool]] = []
        self.raises: Exception | None = None

    def __call__(
        self, config: TrainConfig, run: RunDir, resume: bool, say: Callable[[str], None]
    ) -> int:
        assert run.lock_descriptor is not None
        self.calls.append((config, run, resume))
        say("said")
        if self.raises is not None:
            raise self.raises
        return 0


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Supervised:
    fake = Supervised()
    monkeypatch.setattr(supervise, "supervise", fake)
    return fake


def begin(tmp_path: Path, *words: str) -> int:
    model = str(make_checkpoint(tmp_path / "my-model"))
    typed = ["--env", "key_door", "--env-arg", "size=3", "--model", model]
    return main(["grpo", *typed, "--out", str(tmp_path / "runs"), *words])


def test_a_run_is_made_described_and_supervised(
    tmp_path: Path, supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(tmp_path, "--steps", "6") == 0
    ((config, run, resume),) = supervised.calls
    assert not resume
    assert run.path.parent == tmp_path / "runs"
    assert run.config() == config
    assert (config.model.path, config.model.name) == (str(tmp_path / "my-model"), "my-model")
    about = run.about()
    assert about["env"]["id"] == "key_door"
    assert len(about["env"]["digest"]) == 16
    assert about["env"]["params"]["size"] == 3
    assert {"palaestra", "python"} <= set(about["versions"])
    assert capsys.readouterr().out == "said\n"


def test_a_run_that_fails_ends_with_1(
    tmp_path: Path, supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    supervised.raises = GatewayLost("it is away\nfor long")
    assert begin(tmp_path) == 1
    assert capsys.readouterr().err == "error: it is away; for long\n"


@pytest.fixture
def begun(tmp_path: Path, supervised: Supervised) -> RunDir:
    assert begin(tmp_path, "--steps", "6", "--lora") == 0
    run = supervised.calls.pop()[1]
    run.write_status(Status(state=State.INTERRUPTED, step=4))
    return run


def test_a_run_goes_on_with_its_own_config(
    begun: RunDir, supervised: Supervised, tmp_path: Path
) -> None:
    assert main(["grpo", "--resume", str(begun.path)]) == 0
    ((config, run, resume),) = supervised.calls
    assert resume
    assert run.path == begun.path
    assert config.learn.steps == 6
    assert config.model.lora is not None
    (resumed,) = run.about()["resumed"]
    assert resumed["env"] == run.about()["env"]
    assert resumed["at"] >= run.about()["created"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_what_may_change_when_it_goes_on(begun: RunDir, supervised: Supervised) -> None:
    words = "--url http://h:1/v1 --steps 9 --set restarts=7 --set gateway.timeout_s=5"
    assert main(["grpo", "--resume", str(begun.path), *words.split()]) == 0
    ((config, run, _),) = supervised.calls
    assert (config.gateway.url, config.learn.steps) == ("http://h:1/v1", 9)
    assert (config.restarts, config.gateway.timeout_s) == (7, 5.0)
    assert run.config() == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr 1e-3", "learn.learning_rate would change it; only gateway.*, compute.*, volumes.*"),
        ("--seed 3 --env tic_tac_toe", "env.name, learn.seed would change it"),
        ("--set model.lora=null", "model.lora"),
        ("--set model.lora.r=4", "model.lora.r would change it"),
        ("--env-arg size=4", "env.args.size would change it"),
        ("--steps 5", "learn.steps of a run can only grow: 6 were asked for before"),
        ("--config x.yaml", "leave --config out"),
        ("--set learn.nope=1", "learn.nope: no such key"),
    ],
)
def test_what_may_not_change_when_it_goes_on(
    words: str,
    said: str,
    begun: RunDir,
    supervised: Supervised,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = begun.config()
    assert main(["grpo", "--resume", str(begun.path), *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert supervised.calls == []
    assert begun.config() == before


def test_values_that_are_the_same_are_no_change(begun: RunDir, supervised: Supervised) -> None:
    words = ["--env", "key_door", "--set", "learn.seed=0", "--lora"]
    assert main(["grpo", "--resume", str(begun.path), *words]) == 0
    assert len(supervised.calls) == 1


def test_a_run_that_is_done_goes_on_only_for_more_steps(
    begun: RunDir, supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.write_status(Status(state=State.FINISHED, step=6))
    assert main(["grpo", "--resume", str(begun.path)]) == 0
    assert supervised.calls == []
    assert capsys.readouterr().out.startswith("done: step 6 of 6\n")
    assert main(["grpo", "--resume", str(begun.path), "--steps", "7"]) == 0
    assert len(supervised.calls) == 1


def test_an_env_that_has_changed_is_said(
    begun: RunDir, supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    about = begun.about()
    begun.write_about({**about, "env": {**about["env"], "digest": "0" * 16}})
    assert main(["grpo", "--resume", str(begun.path)]) == 0
    assert "the env is another one than when the run began" in capsys.readouterr().out


def test_a_run_that_is_being_trained_is_not_resumed(
    begun: RunDir, supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    with begun.locked():
        assert main(["grpo", "--resume", str(begun.path)]) == 2
    assert f"is being trained by another process, {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["grpo"], ["tiny"], ["checkpoints"]], ids=lambda words: " ".join(words) or "-"
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    assert f"usage: python -m train{''.join(f' {word}' for word in words)}" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("words", [["--help"], ["checkpoints", "--help"], ["grpo", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = f"""
import sys
from train.cli import main
try:
    main({words!r})
finally:
    heavy = {{"torch", "trl", "transformers", "peft", "numpy", "pydantic", "httpx", "yaml"}}
    print("heavy", sorted(heavy & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "heavy []", ran.stderr


def test_the_parent_needs_no_torch() -> None:
    program = """
import sys, train.supervise, train.preflight, train.run, train.gateway
print(sorted({"torch", "trl", "transformers", "peft", "serve.up", "fastapi"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr
