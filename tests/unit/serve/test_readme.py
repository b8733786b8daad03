"""What the README shows runs; `up` and `pull` themselves are the business of tests/contract."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import serve
from serve.cli import _parser
from serve.engine.base import Engine
from serve.testing import load

README = (Path(serve.__file__).parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for kind, text in BLOCKS if not kind for line in text.splitlines()]


def test_fits_its_house() -> None:
    assert len(README.splitlines()) <= 150


def test_commands_are_ones_that_exist() -> None:
    heads = [" ".join(command[:3]) for command in commands()]
    assert set(heads) == {
        "python -m serve",
        "python -m serve.testing",
        "python -m serve.testing.load",
    }
    for command in commands():
        if command[2] == "serve":
            _parser().parse_args(command[3:])


def test_python_blocks_run() -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1 fake\n", done.stdout), done.stderr


def test_fake_engine_command() -> None:
    (command,) = [command for command in commands() if command[2] == "serve.testing"]
    with subprocess.Popen(
        [sys.executable, *command[1:]], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.terminate()


def test_load_command(fake_engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [command for command in commands() if command[2] == "serve.testing.load"]
    assert load.main([fake_engine.base_url, fake_engine.model, *command[5:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1:", "8:", "32:", "64:"]
    assert len({line.rpartition(" ")[2] for line in lines}) == 1
