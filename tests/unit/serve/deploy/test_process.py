import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.deploy.process import LogFiles, Process, Rounds
from serve.errors import ContainerFailed


def python(code: str, said: list[str]) -> Process:
    return Process((sys.executable, "-u", "-c", code), {}, said.append)


def has(said: list[str], line: str) -> Callable[[], bool]:
    return lambda: line in said


def test_it_is_ready_when_the_question_says_so_and_its_words_are_passed_on() -> None:
    said: list[str] = []
    process = python("print('up'); input = __import__('time').sleep(60)", said)
    process.start()
    assert process.wait_ready(has(said, "up"), 30) < 30
    assert process.code is None
    assert process.stop(10)
    process.ensure_alive()
    assert process.code == -15


@pytest.mark.parametrize(
    ("code", "how", "telling"),
    [
        ("print('a'); print('error: no such model'); raise SystemExit(2)", "exit code 2", "error:"),
        ("print('last words'); raise SystemExit(1)", "exit code 1", "last words"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9", "(nothing)"),
        ("raise ValueError('out of memory')", "exit code 1", "ValueError: out of memory"),
    ],
)
def test_a_death_is_said_with_the_telling_lines(code: str, how: str, telling: str) -> None:
    process = python(code, [])
    process.start()
    with pytest.raises(ContainerFailed) as caught:
        process.wait_ready(lambda: False, 30)
    assert how in str(caught.value)
    assert telling in str(caught.value)
    assert "  a" not in str(caught.value)


def test_what_is_never_ready_is_given_up_with_its_log() -> None:
    said: list[str] = []
    process = python("print('still loading'); __import__('time').sleep(60)", said)
    process.start()
    process.wait_ready(has(said, "still loading"), 30)
    with pytest.raises(ContainerFailed, match=r"not ready within 0 s(.|\n)*still loading"):
        process.wait_ready(lambda: False, 0.2)
    process.stop(10)


def test_what_ignores_sigterm_is_killed() -> None:
    said: list[str] = []
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    process = python(code, said)
    process.start()
    process.wait_ready(has(said, "up"), 30)
    assert not process.stop(0.2)
    assert process.code == -9


def test_stopping_what_never_started_is_nothing() -> None:
    assert python("", []).stop(1)


def test_a_duty_that_fails_is_said_once_and_tried_again() -> None:
    said: list[str] = []
    outcomes = [OSError("there are open files"), OSError("there are open files"), None]
    done: list[str] = []

    def reload() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        done.append("reloaded")

    rounds = Rounds(said.append)
    rounds.add("reloading", reload)
    rounds.add("other", lambda: done.append("other"))
    for _ in range(3):
        rounds.once()
    assert said == ["reloading failed and is tried again: there are open files"]
    assert done == ["other", "other", "reloaded", "other"]


def test_rounds_go_on_until_they_are_stopped() -> None:
    seen = threading.Event()
    rounds = Rounds(lambda line: None, every_s=0.01)
    rounds.add("looking", seen.set)
    rounds.start()
    assert seen.wait(10)
    rounds.stop()
    seen.clear()
    assert not seen.wait(0.1)


def test_log_files_are_passed_on_line_by_line_and_from_the_beginning_when_anew(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    files = LogFiles(tmp_path, said.append)
    files.look()
    log = tmp_path / "policy-0.log"
    log.write_text("one\ntwo\nhal")
    files.look()
    with log.open("a") as file:
        file.write("f\n")
    files.look()
    log.write_text("new\n")
    files.look()
    assert said == [
        "policy-0 | one",
        "policy-0 | two",
        "policy-0 | half",
        "policy-0 | new",
    ]
