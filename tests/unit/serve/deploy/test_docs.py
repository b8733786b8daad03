"""docs/modal-serving.md: its programs run, its commands exist, its numbers and files are true."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serve.cli import main
from serve.testing import FakeEngine

PAGE = Path("docs/modal-serving.md").resolve()
TEXT = PAGE.read_text("utf-8")
GATE = """
import warnings, modal
warnings.simplefilter("error", modal.exception.DeprecationError)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.partition("  #")[0] for block in blocks("sh") for line in block.splitlines()]
    inline = re.findall(r"`(python -m serve [^`]*)`", TEXT)
    found = [shlex.split(line) for line in (*lines, *inline) if "python -m serve" in line]
    return [words for words in found if words[:3] == ["python", "-m", "serve"]]


@pytest.mark.parametrize("block", blocks("python"))
def test_a_program_runs_as_it_stands(block: str) -> None:
    (model,) = re.findall(r'model="([^"]+)"', block)

    async def against_an_engine() -> "subprocess.CompletedProcess[str]":
        async with FakeEngine("Hello!", model=model) as engine:
            told = {"OPENAI_BASE_URL": engine.base_url, "OPENAI_API_KEY": "any"}
            return await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", GATE + block],
                env={**os.environ, **told},
                capture_output=True,
                text=True,
            )

    done = asyncio.run(against_an_engine())
    assert (done.returncode, done.stdout) == (0, "Hello!\n"), done.stderr


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_one_that_there_is(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words[3:]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in arguments if word.startswith("--"))


def test_its_numbers_are_what_a_dry_run_shows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["deploy", "--dry-run", "--config", "serve/configs/modal.yaml"])
    shown = capsys.readouterr().out
    for amount in ("4.39 USD an hour", "0.11 USD an hour"):
        assert amount in shown
        assert amount.partition(" ")[0] in TEXT


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
