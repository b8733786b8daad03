import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve import keys_cli
from serve.accounts.limits import Limits
from serve.accounts.passwords import matches
from serve.accounts.store import AccountStore
from serve.wire import Scope

PASSWORD = "correct horse battery"


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    keys_cli.add_parser(parser.add_subparsers(dest="command", required=True))
    return keys_cli.run(parser.parse_args(argv))


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def opened(state: str) -> AccountStore:
    return AccountStore.open(Path(state))


def create(state: str, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Make a key and return its text."""
    assert run("keys", "create", "--state", state, *argv) == 0
    return capsys.readouterr().out.strip()


def test_a_key_is_printed_once_and_alone(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "create", "--state", state) == 0
    said = capsys.readouterr()
    key = said.out.removesuffix("\n")
    store = opened(state)
    (info,) = store.keys()
    assert matches(store.snapshot().hashes[info.id], key)
    store.close()
    assert (info.scopes, info.limits, info.name) == (frozenset({Scope.INFER}), Limits(), "")
    assert said.err.splitlines() == [
        f"{info.id} in {store.place}: infer; no limits",
        "it is the first key: from now on the gateway refuses requests without one",
        "this is the only time that the key is shown:",
    ]
    assert run("keys", "create", "--state", state) == 0
    assert "first key" not in capsys.readouterr().err


def test_what_a_key_may_do_is_chosen(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    limits = "--rpm 1 --tpm 2 --concurrency 3 --budget-tokens 4".split()
    create(state, capsys, "--name", "ann", "--scope", "train,admin", *limits)
    store = opened(state)
    (info,) = store.keys()
    (entry,) = store.audit_log()
    store.close()
    assert info.name == "ann"
    assert info.scopes == {Scope.TRAIN, Scope.ADMIN}
    assert info.limits == Limits(rpm=1, tpm=2, concurrency=3, budget_tokens=4)
    assert (entry.action, entry.target) == ("key.create", info.id)
    assert entry.actor.startswith("cli:")


def test_keys_are_listed_without_secrets(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [create(state, capsys, "--name", "ann", "--rpm", "5"), create(state, capsys)]
    assert run("keys", "revoke", keys[1][:11], "--state", state) == 0
    capsys.readouterr()
    assert run("keys", "list", "--state", state) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == "ID NAME SCOPES LIMITS TOKENS CREATED LAST-USED STATE".split()
    assert first.split()[:5] == [keys[0][:11], "ann", "infer", "rpm=5", "0"]
    assert first.split()[6:] == ["-", "live"]
    assert second.split()[0] == keys[1][:11]
    assert second.split()[-2] == "revoked"
    assert not any(key[12:] in line for key in keys for line in (first, second))


@pytest.mark.parametrize("given", [slice(0, 11), slice(3, 11), slice(None)])
def test_a_key_is_revoked_by_what_one_has_of_it(
    state: str, capsys: pytest.CaptureFixture[str], given: slice
) -> None:
    key = create(state, capsys)
    for _ in range(2):
        assert run("keys", "revoke", key[given], "--state", state) == 0
        assert capsys.readouterr().err.startswith(f"{key[:11]} is revoked since 2")
    store = opened(state)
    assert store.keys()[0].revoked_s is not None
    store.close()


def test_a_key_is_rotated(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = create(state, capsys)
    assert run("keys", "rotate", old[:11], "--state", state) == 0
    new = capsys.readouterr().out.strip()
    store = opened(state)
    stored = store.snapshot().hashes[old[:11]]
    store.close()
    assert (matches(stored, old), matches(stored, new)) == (False, True)


def test_users(
    state: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\nnot this"))
    assert run("users", "set", "ann", "--state", state, "--scope", "admin") == 0
    store = opened(state)
    found = store.password_hash("ann")
    assert found is not None
    assert matches(found[1], PASSWORD)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "ann may log in: admin\n")
    assert run("users", "list", "--state", state) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["ann", "admin"]
    assert run("users", "remove", "ann", "--state", state) == 0
    assert store.users() == []
    store.close()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["keys", "revoke", "ak_00000000"], 2, "there is no key ak_00000000"),
        (["keys", "rotate", "nothing"], 2, "expected the id of a key"),
        (["keys", "create", "--rpm", "0"], 2, "rpm must be at least 1, got 0"),
        (["keys", "create", "--name", "a\nb"], 2, "a name is at most 64 printable"),
        (["keys", "list", "--database", "nowhere"], 2, "expected a database URL"),
        (["users", "remove", "ann"], 2, "there is no user 'ann'"),
        (["users", "set", "ann"], 2, "a password has 12 to 1024 characters, this one has 5"),
        (["keys", "list", "--state", "FILE"], 1, "FILE/state.db: the state cannot be kept there"),
    ],
)
def test_errors_are_one_line_and_a_code(
    argv: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    file = tmp_path / "file"
    file.touch()
    argv = [str(file) if word == "FILE" else word for word in argv]
    if "--state" not in argv:
        argv += ["--state", str(tmp_path / "state")]
    assert run(*argv) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: " + message.replace("FILE", str(file)))


@pytest.mark.parametrize(
    "argv",
    [["keys"], ["users"], ["keys", "revoke"], ["keys", "create", "--scope", "infer,fly"]],
)
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_the_state_is_in_the_cache_by_default(tmp_path: Path) -> None:
    program = (
        "import argparse; from serve import keys_cli; parser = argparse.ArgumentParser()\n"
        "keys_cli.add_parser(parser.add_subparsers(dest='command'))\n"
        "raise SystemExit(keys_cli.run(parser.parse_args(['keys', 'create'])))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PALAESTRA_CACHE": str(tmp_path)},
    )
    assert (ran.returncode, len(ran.stdout.strip())) == (0, 55)
    assert (tmp_path / "state" / "state.db").exists()


def test_the_commands_are_light() -> None:
    program = "import sys, serve.keys_cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert {"sqlalchemy", "argon2"}.isdisjoint(ran.stdout.split())
    assert ran.returncode == 0
