"""The pages in docs/: their commands exist with the options shown, and links lead somewhere."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import evalkit.cli
import serve.cli
import train.cli

DOCS = Path(__file__).resolve().parents[2] / "docs"
MAINS: dict[str, Callable[[list[str]], int]] = {
    "evalkit": evalkit.cli.main,
    "serve": serve.cli.main,
    "train": train.cli.main,
}
SUBCOMMANDS = {"checkpoints", "policies", "keys", "users"}
"""Those with commands of their own."""


def commands() -> list[tuple[str, str]]:
    found = set()
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
        inline = re.findall(r"`(python -m [^`]+)`", text)
        found |= {(page.name, line) for line in (*lines, *inline) if line.startswith("python -m ")}
    return sorted(found)


def asked(words: list[str]) -> list[str]:
    """Return the words that name a command, which come before its first argument."""
    if words and words[0] in SUBCOMMANDS:
        return words[:2]
    return [word for word in words[:1] if re.fullmatch(r"[a-z][a-z-]+", word)]


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_is_one_that_there_is(
    page: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line.replace("[", "").replace("]", ""))
    assert words[2] in MAINS, page
    options = [word for word in words[3:] if word.startswith("--") and word != "--"]
    with pytest.raises(SystemExit) as ended:
        MAINS[words[2]]([*asked(words[3:]), "--help"])
    assert ended.value.code == 0, line
    shown = capsys.readouterr().out
    assert [word for word in options if word.partition("=")[0] not in shown] == [], line


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (DOCS / link).exists()]
    assert missing == []
