import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import BadEnvParams, UnknownEnv, digest, env_class, env_id, make
from envs.games.key_door import KeyDoor
from envs.registry import SHIPPED, shipped_id

KNOWN = "function_calling, gsm8k, key_door, tic_tac_toe, tool_test, wordle"
THEIR_ENV = Path(__file__).parent / "their_env.py"


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_envs_go_by_their_id(name: str) -> None:
    env = make(name)
    assert env_id(env) == env.id == name
    assert make(name, **env.params).params == env.params


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("vf-wordle", "wordle"),
        ("vf_wordle", "wordle"),
        ("Wordle", "wordle"),
        ("vf-gsm8k", "gsm8k"),
        ("bfcl", "function_calling"),
        ("bfcl-single-turn", "function_calling"),
        ("vf-bfcl-single-turn", "function_calling"),
        ("tool-test", "tool_test"),
        ("vf_tool_test", "tool_test"),
        ("key-door", "key_door"),
    ],
)
def test_an_env_goes_by_its_names_elsewhere(name: str, known: str) -> None:
    assert shipped_id(name) == env_id(make(name)) == known


def test_no_other_name_is_a_shipped_one() -> None:
    assert [shipped_id(name) for name in ("maze", "", "vf-", "vf-vf-wordle")] == [None] * 4


def test_an_env_goes_by_module_and_class() -> None:
    env = make("envs.games.key_door:KeyDoor", size=5)
    assert isinstance(env, KeyDoor)
    assert env.size == 5


def test_an_env_goes_by_file_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(f"{THEIR_ENV}:Corridor", length=7)
    assert env.params == {"length": 7, "max_turns": 12}
    monkeypatch.chdir(THEIR_ENV.parent)
    assert env_class("their_env.py:Corridor") is type(env)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("maze", f"no env is called 'maze': known are {KNOWN}; your own goes by"),
        ("wordel", "path/to/file.py:Class; did you mean 'wordle'?"),
        ("vf-gsm-8k", "did you mean 'gsm8k'?"),
        ("bfcl_single", "did you mean 'bfcl_single_turn'?"),
        ("", "no env is called ''"),
        (":KeyDoor", "no env is called ':KeyDoor'"),
        ("envs.games.key_door:", "no env is called"),
        ("no_such_package.mod:Env", "no module named 'no_such_package'"),
        ("envs.games.chess:Chess", "no module named 'envs.games.chess'"),
        ("envs.games.key_door:Maze", "envs.games.key_door has no 'Maze'"),
        ("envs.games.key_door:ACTIONS", "is not a subclass of envs.TextEnv"),
        ("no/such/file.py:Env", "no file no/such/file.py"),
    ],
)
def test_unknown_names_say_what_is_wrong(name: str, reason: str) -> None:
    with pytest.raises(UnknownEnv) as caught:
        make(name)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"sise": 5}, "key_door takes no parameter 'sise'; it takes size, max_turns"),
        ({"size": 1}, "key_door: size must be at least 2"),
        ({"size": "big"}, "key_door: "),
    ],
)
def test_bad_parameters_say_what_is_wrong(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadEnvParams) as caught:
        make("key_door", **params)
    assert reason in str(caught.value)


def test_the_digest_names_class_and_parameters() -> None:
    digests = [
        digest(make("key_door")),
        digest(make("key_door", size=5)),
        digest(make("tic_tac_toe")),
    ]
    assert len(set(digests)) == 3
    assert digests[0] == digest(make("key_door", size=4, max_turns=35))
    assert all(len(one) == 16 for one in digests)


def test_the_digest_changes_with_the_source(tmp_path: Path) -> None:
    source = THEIR_ENV.read_text()
    for name, text in (("one.py", source), ("two.py", source.replace("dark.", "bright."))):
        (tmp_path / name).write_text(text)
    digests = {digest(make(f"{tmp_path / name}:Corridor")) for name in ("one.py", "two.py")}
    assert len(digests) == 2


def test_a_file_that_fails_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("raise RuntimeError('not yet')")
    with pytest.raises(UnknownEnv, match=r"late\.py does not load: RuntimeError: not yet"):
        make(f"{file}:Corridor")
    file.write_text(THEIR_ENV.read_text())
    assert env_id(make(f"{file}:Corridor")) == "corridor"


def test_importing_envs_pulls_in_no_game_and_nothing_heavy() -> None:
    code = "import envs, sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    heavy = {"torch", "vllm", "numpy", "pydantic", "httpx", "asyncio"}
    assert not loaded & (heavy | {"envs.games.key_door", "envs.tasks", "envs.testing"})


def test_everything_public_is_there() -> None:
    assert all(hasattr(envs, name) for name in envs.__all__)
