"""`evalkit check-stats`, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.cli import main
from evalkit.judge.promises import Promise

SMALL = "--env key_door --env-arg size=2 --env-arg max_turns=3 -n 4".split()


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_check_stats_says_whether_promises_are_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Promise(name="covers: x", case="easy", n_seeds=9, found=0.95, at_least=0.93)
    broken = Promise(name="false: y", case="hard", n_seeds=9, found=0.4, at_most=0.05)
    asked = []

    def found(*how: Any) -> list[Promise]:
        asked.append(how)
        return [kept, broken] if how[1] == 4 else [kept]

    monkeypatch.setattr("evalkit.judge.promises.promises", found)
    assert main(["check-stats", "--simulations", "50"]) == 0
    assert "every promise is kept" in capsys.readouterr().out
    assert main(["--model", "random", *SMALL, "-k", "2"]) == 0
    (run,) = (folder / "results").iterdir()
    assert main(["check-stats", str(run)]) == 1
    said = capsys.readouterr().out
    assert "BROKENfalse: y" in said
    assert "1 promises are broken" in said
    assert asked[0] == (50, 200, 1, None)
    assert asked[1][:3] == (1000, 4, 2)
    assert len(asked[1][3]) == 4
