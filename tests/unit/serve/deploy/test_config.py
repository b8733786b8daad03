import json
from pathlib import Path

import pytest

from serve.deploy import plan
from serve.deploy.config import PREFIX, VARIABLE, ServingConfig, load, load_dotenv
from serve.deploy.sections import Snapshot
from serve.errors import ConfigError
from serve.settings import load as load_up
from tests.unit.serve.deploy.configs import ALL, BASE


def app_of(path: Path | None, sets: list[str], environ: dict[str, str], flag: str | None) -> str:
    return load(path, sets=sets, environ=environ, flags={"deploy.app": flag}).deploy.app


def test_the_command_line_wins_over_the_environment_over_yaml_over_the_default(
    tmp_path: Path,
) -> None:
    bare, given = tmp_path / "bare.yaml", tmp_path / "given.yaml"
    bare.write_text("model: a/b")
    given.write_text("model: a/b\ndeploy: {app: yaml}")
    said = {f"{PREFIX}DEPLOY__APP": "environment"}
    assert app_of(bare, [], {}, None) == "palaestra"
    assert app_of(given, [], {}, None) == "yaml"
    assert app_of(given, [], said, None) == "environment"
    assert app_of(given, [], said, "flag") == "flag"
    assert app_of(given, ["deploy.app=set"], said, "flag") == "set"


def test_without_a_path_it_is_what_the_environment_names_or_the_shipped_one(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: my/model")
    assert load(environ={}).model == load(BASE, environ={}).model
    assert load(environ={VARIABLE: str(mine)}).model == "my/model"


def test_a_container_takes_what_was_resolved_and_nothing_else() -> None:
    config = load(BASE, environ={}, sets=["deploy.app=mine"])
    resolved = {VARIABLE: config.to_json(), f"{PREFIX}DEPLOY__APP": "other"}
    assert load(environ=resolved) == config


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_what_is_shipped_loads_and_serve_up_takes_what_follows(path: Path) -> None:
    config = load(path, environ={})
    assert ServingConfig.model_validate_json(config.to_json()) == config
    replica = plan.policy_settings(config, 8000, Path("/state"))
    gateway = plan.gateway_settings(config, 8000, Path("/state"))
    assert load_up(None, replica).policies_read_only
    assert load_up(None, gateway).edge_tls
    assert load_up(None, plan.local_settings(config)).model == config.model


def test_the_digest_is_of_everything_and_of_nothing_else() -> None:
    one, same = load(BASE, environ={}), load(BASE, environ={}, sets=["deploy.app=palaestra"])
    other = load(BASE, environ={}, sets=["front.hold_s=1"])
    assert one.digest == same.digest != other.digest


def test_the_gateway_holds_as_long_as_a_cold_start_may_take_and_a_replica_does_not() -> None:
    for sets, expected in (([], 900.0), (["front.hold_s=300"], 300.0), (["front={}"], 900.0)):
        config = load(BASE, environ={}, sets=sets)
        config = load(environ={VARIABLE: config.to_json()})
        gateway = plan.gateway_settings(config, 8000, Path("/state"))
        replica = plan.policy_settings(config, 8000, Path("/state"))
        assert load_up(None, gateway).front.hold_s == expected
        assert load_up(None, replica).front.hold_s == 60.0


def test_off_is_a_word_in_yaml_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: a/b\ndeploy: {snapshot: off}")
    assert load(path, environ={}).deploy.snapshot is Snapshot.OFF


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["deploy.apx=1"], "deploy.apx: there is no such key"),
        (["deploy=1"], "deploy: Input should be a valid dictionary"),
        (["model.x=1"], "--set model.x: model has no keys of its own, it is 'Qwen"),
        (["deploy.app"], "--set deploy.app: expected KEY=VALUE"),
        (["deploy.app=["], "--set deploy.app: while parsing"),
        (["deploy.app=a b"], "deploy.app: expected letters"),
        (["deploy.policy.gpu=[H100 x]"], "expected a GPU such as H100"),
        (["deploy.policy.gpu=[H100:2,L4]"], "as many GPUs in each choice"),
        (["deploy.policy.min_containers=9"], "min_containers is 9, max_containers 4"),
        (["deploy.policy.target_concurrency=99"], "target_concurrency is 99, max_concurrency 64"),
        (["deploy.policy.exit_grace_s=3601"], "less than or equal to 3600"),
        (["deploy.volumes.root=there"], "expected an absolute folder"),
        (["deploy.gateway.target_concurrency=9"], "keys and usage live in one gateway"),
        (["deploy.snapshot=gpu", "deploy.policy.gpu=[H100:2]"], "works with a single GPU"),
        (["deploy.snapshot=gpu", "deploy.policy.gpu=[]"], "works with a single GPU"),
        (["deploy.snapshot=cpu"], "cpu is for policies without a GPU"),
        (["model=./here", "revision=main"], "revision: only for a hub id"),
        (["revision=refs/pr/1"], "without a slash"),
        (["engine.program=[vllm]"], "expected {model} and {port} among its words"),
    ],
)
def test_bad_input_is_one_clear_line(sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(BASE, sets=sets, environ={})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "expected keys and values, got list"),
        ("a: [", "while parsing"),
        ("model: a/b\nmodle: c/d", "modle: there is no such key"),
        ("deploy:", "model: Field required"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml") as caught:
        load(path, environ={})
    assert said in str(caught.value)


def test_no_file_and_no_json_are_clear_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml", environ={})
    with pytest.raises(ConfigError, match="expected JSON"):
        load(environ={VARIABLE: "{nothing"})


@pytest.mark.parametrize(
    ("model", "revision", "name", "folder"),
    [
        ("Qwen/Qwen3-0.6B", None, "Qwen/Qwen3-0.6B", "models/Qwen--Qwen3-0.6B@main"),
        ("Qwen/Qwen3-0.6B", "abc", "Qwen/Qwen3-0.6B", "models/Qwen--Qwen3-0.6B@abc"),
        ("./runs/mine", None, "mine", "models/mine"),
        ("/runs/of/mine", None, "mine", "models/mine"),
    ],
)
def test_where_a_model_lies_and_what_it_is_called(
    model: str, revision: str | None, name: str, folder: str
) -> None:
    config = load(BASE, environ={}, flags={"model": model, "revision": revision})
    assert (config.policy_name, str(config.folder)) == (name, folder)


def test_dotenv_gives_way_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".env"
    path.write_text('# a comment\nexport HF_TOKEN="hf_x"\nKNOWN=theirs\n\nnonsense\n')
    monkeypatch.setenv("KNOWN", "ours")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("HF_TOKEN")
    load_dotenv(path)
    load_dotenv(tmp_path / "none")
    import os

    assert (os.environ["HF_TOKEN"], os.environ["KNOWN"]) == ("hf_x", "ours")
    monkeypatch.delenv("HF_TOKEN")


def test_the_config_holds_no_secret() -> None:
    config = load(BASE, environ={})
    secrets = json.loads(config.to_json())["deploy"]["gateway"]
    assert secrets["admin_secret"] == "palaestra-admin"
    assert "PALAESTRA_ADMIN_KEY" not in plan.container_env(config)
