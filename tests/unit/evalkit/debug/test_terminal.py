"""`evalkit debug`, `evalkit fork` and `evalkit replay --check` as they are typed, or piped."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.cli import main
from evalkit.config import RunConfig
from evalkit.debug.origin import Episode, Models
from evalkit.debug.terminal import Terminal
from evalkit.debug.workbench import Verb, Workbench
from evalkit.run import evaluate
from evalkit.testing import FakeServer

KNOWN = "random, oracle, noop, human, script:FILE"
UNTERMINATED = "Unterminated string starting at: line 1 column 1 (char 0)"
Debug = Callable[..., tuple[int, str]]


@pytest.fixture
def debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Debug:
    """Return what runs `evalkit debug` on piped lines: (exit code, everything printed)."""

    def run(*lines: str, words: str = "--env key_door --model oracle --seed 5") -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        code = main(["debug", *words.split(), "--out", str(tmp_path / "out")])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_a_session(debug: Debug, tmp_path: Path) -> None:
    code, out = debug("step 2", "back 1", "do interact", "n", "run", "save", "show")
    assert code == 0
    assert "turn 2 of at most 35; NO_HISTORY, oracle\n" in out
    assert " changed: action: interact\n" in out
    assert "   = ok, action interact, reward +0.00, interact_nothing\n" in out
    assert "over, terminated, success, return 1.10\n" in out
    (saved,) = (tmp_path / "out").iterdir()
    assert f"saved as {saved}\n" in out
    assert main(["replay", str(saved), "--check"]) == 0
    assert main(["replay", str(saved), "--seed", "5"]) == 0


def test_looking_plays_nothing(debug: Debug) -> None:
    code, out = debug(
        "prompt", "prompt raw", "state", "turns", "futures", "help", "", "quit", "run"
    )
    assert code == 0
    assert "--- system\nYou walk through" in out
    assert '[{"role":"system","content":"You walk' in out
    assert '"has_key": false' in out
    assert "* main: return 0.00, 0 turns, not over; oracle\n" in out
    assert "> run" not in out


def test_what_cannot_be_done_is_said_and_nothing_is_lost(debug: Debug) -> None:
    code, out = debug("jump", "do jump", "back", "back 9", "step x", "switch b", "model nope",
                      'reply "a', "save", "fork 0 main", "compare a b c", "step")  # fmt: skip
    assert code == 1
    said = [line.removeprefix("error: ") for line in out.splitlines() if line.startswith("error")]
    assert said == [
        "no command 'jump': help lists them",
        "no legal action 'jump' in turn 0: up, down, left, right, interact",
        "back needs a turn",
        "turn 9 was not reached: turns 0 to 0 were",
        "expected turns as a number from 1 on, not 'x'",
        "no future 'b': there are main",
        f"model: model 'nope' is neither an http(s) URL nor one of {KNOWN}",
        f"a text that begins with a quotation mark is a JSON string: {UNTERMINATED}",
        "the episode is not over, it is at turn 0: run it to an end",
        "there is a future 'main' already",
        "compare takes two futures at most",
    ]
    assert "turn 1 of at most 35" in out


def test_futures_are_forked_and_compared(debug: Debug, tmp_path: Path) -> None:
    code, out = debug(
        "run", "fork 1 lost", "model noop", "strategy SCRATCHPAD", 'pad "a\\nb"', "prompt",
        'obs "x\\ny"', "run", "compare", "futures", "save", "switch main", "compare lost",
    )  # fmt: skip
    assert code == 0
    assert "--- user\n## Your notes\na\nb\n\n## Now\nYou are" in out
    assert " changed: observation: x\n          y\n" in out
    assert "  success, return 1.10, 8 turns, terminated      | no success, return -0.50, 35" in out
    assert "the same up to turn 1\n" in out
    assert "* lost: no success, return -0.50, 35 turns, truncated; noop\n" in out
    (saved,) = (tmp_path / "out").iterdir()
    assert main(["replay", str(saved), "--check"]) == 0


def test_an_episode_of_a_run_is_replayed_until_it_is_changed(debug: Debug, tmp_path: Path) -> None:
    with FakeServer(lambda _: "<action>up</action>") as server:
        run = evaluate(server.url, "key_door", seeds="3:4", out=tmp_path, env_args={"max_turns": 4})
    words = f"--run {run.path} --seed 3 --turn 2"
    code, out = debug("step", "compare", "back 1", "do down", "run", words=words)
    assert code == 1
    assert "turn 2 of at most 4; NO_HISTORY, replies as recorded\n" in out
    assert "recorded" in out
    assert f"error: nothing answers at {server.url}" in out
    code, out = debug("back 1", "do down", "model noop", "run", "save", words=words)
    assert (code, "over, truncated, no success" in out) == (0, True)
    code, out = debug("run", "back 2", "do up", "step", "do up", "step", "save", words=words)
    assert code == 0
    (saved,) = [path for path in (tmp_path / "out").iterdir() if "-t4-" in path.name]
    assert main(["replay", str(saved), "--check"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--env key_door", "--model is missing"),
        ("--model oracle", "one of the arguments --env --run is required"),
        ("--env key_door --model oracle --arm A", "--arm needs --run"),
        ("--run . --strategy WINDOW", "--strategy needs --env"),
        ("--run /nowhere --seed 1", "/nowhere is not a run: it has no manifest.json"),
        ("--env key_door --model http://127.0.0.1:9", "nothing answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_begin(debug: Debug, words: str, said: str) -> None:
    code, out = debug("run", words=words)
    assert code == 2
    assert said in out
    assert len(out.splitlines()) == 1


def test_ctrl_c_pauses_between_two_turns() -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    config = RunConfig.read({"model": "oracle", "env": "key_door"}, "test")
    lines = iter(["run", "show"])

    def read(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    class Impatient(Workbench):
        async def do(self, verb: Verb, text: str = "") -> None:
            await super().do(verb, "2")
            await interrupted()

    out = io.StringIO()
    with asyncio.Runner() as runner:
        terminal = Terminal(Impatient(Episode.fresh(config), Models(config)), runner, out)
        terminal.loop(read)
    assert "paused\n\nturn 2 of at most 35" in out.getvalue()
    assert not terminal.failed


def test_a_fork_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluate("random", "key_door", seeds="3:4", out=tmp_path)
    words = ["fork", str(run.path), "--seed", "3", "--turn", "2"]
    assert main([*words, "--action", "interact", "--model", "oracle"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("  as recorded ")
    assert "the same up to turn 2\n[2]\n" in out
    fork = Path(out.splitlines()[-1])
    assert main(["compare", str(run.path), str(fork)]) == 0
    assert main([*words, "-n", "3"]) == 0
    assert "fork 0: no success, return -0.50, 35 turns, truncated; the same\n" in (
        capsys.readouterr().out
    )
    assert main([*words, "-n", "0"]) == 2
    assert main([*words, "--action", "up", "--reply", "x"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_check_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluate("random", "key_door", seeds="0:3", out=tmp_path)
    assert main(["replay", str(run.path), "--check"]) == 0
    assert capsys.readouterr().out.startswith("3 of 3 episodes came out as they were recorded; ")
    file = run.path / "trajectories.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"success":false', b'"success":true'))
    assert main(["replay", str(run.path), "--check"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "random/0/0: at its end: success is False, and True is recorded"
    assert out[-1].startswith("0 of 3 episodes")
    for words in ([], ["--check", "--seed", "0"]):
        assert main(["replay", str(run.path), *words]) == 2


def test_what_a_server_says_is_shown_and_not_sent_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], debug: Debug
) -> None:
    def said(body: dict[str, Any]) -> str | tuple[int, Any]:
        hostile = "\x1b[2J<action>\x1b]0;x\x07</action>"
        return hostile if len(server.bodies) % 2 else (400, {"error": {"message": hostile}})

    with FakeServer(said) as server:
        code, out = debug("step", "step", words=f"--env key_door --model {server.url}")
        run = evaluate(server.url, "key_door", seeds=[3], out=tmp_path / "runs")
        for words in (["replay", "--seed"], ["fork", "--turn", "0", "--seed"]):
            assert main([words[0], str(run.path), *words[1:], "3"]) in {0, 1}
        assert main(["fork", str(run.path), "--turn", "0", "--seed", "3", "--arm", "\x1b"]) == 2
    out += "".join(capsys.readouterr())
    assert "not scored: HTTP 400: \\x1b[2J" in out
    assert "\\x1b]0;x\\x07" in out
    assert (code, "\x1b" in out) == (1, False)
