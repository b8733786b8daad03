"""Tables of the best arms, between two marks of a file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

import evalkit
from evalkit.cli import main
from evalkit.errors import BadConfig
from evalkit.leaderboard import BEGIN, END, leaderboard, write_leaderboard
from evalkit.record.tables import read_csv

KEY_DOOR: dict[str, Any] = {"env_args": {"size": 2}, "seeds": "0:20"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    arms = ["luck=random", "skill=oracle", "idle=noop"]
    evalkit.evaluate(arms, "key_door", out=str(out), **KEY_DOOR)
    evalkit.evaluate("noop", "key_door", out=str(out), env_args={"size": 2}, seeds="100:130")
    evalkit.evaluate("random", "tic_tac_toe", out=str(out), seeds="0:10")
    return out


def copied(runs: Path, to: Path) -> Path:
    return Path(shutil.copytree(runs, to / "results"))


def cells(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading."""
    section = text.partition(f"### {heading}\n")[2].partition("###")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_arms_are_ranked_and_ties_are_marked(runs: Path) -> None:
    board = leaderboard(runs, runs)
    assert (board.tables, board.arms, board.warnings) == (2, 5, ())
    rows = cells(board.text, "key_door, NO_HISTORY")
    best = rows[0]
    assert best[:7] == ["1", "a", "skill", "oracle", "free", "100.0 %", best[6]]
    assert best[7:9] == ["20", "1.00"]
    assert best[12].startswith("[key_door-")
    ranked = {row[2]: row[0] for row in rows}
    assert [ranked[name] for name in ("skill", "luck", "idle")] == ["1", "2", "3"]
    idle, noop = (next(row for row in rows if row[2] == name) for name in ("idle", "noop"))
    assert set(idle[1].split(",")) & set(noop[1].split(","))  # no seed shared: not told apart
    assert not set(best[1].split(",")) & set(idle[1].split(","))
    assert [row[2] for row in rows[-2:]] == ["*oracle*", "*random*"]
    assert [row[7] for row in rows[-2:]] == ["30", "30"]  # of the run with most seeds


def test_it_is_the_same_each_time_and_says_no_machine(runs: Path, tmp_path: Path) -> None:
    first = leaderboard(runs, runs).text
    assert leaderboard(copied(runs, tmp_path), tmp_path / "results").text == first
    assert str(runs) not in first


def test_what_is_written_by_hand_stays(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    board = leaderboard(runs, tmp_path)
    file.write_text("# Mine\n\nbefore\n")
    write_leaderboard(file, board)
    once = file.read_text()
    assert once.startswith(f"# Mine\n\nbefore\n\n{BEGIN}\n")
    assert once.endswith(f"{END}\n")
    file.write_text(once.replace(END, f"{END}\n\nafter").replace("### key_door", "### stale"))
    write_leaderboard(file, board)
    assert file.read_text() == once.replace(END, f"{END}\n\nafter")


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_marks_that_are_no_pair_are_left_alone(runs: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(BadConfig, match="expected one <!-- leaderboard -->"):
        write_leaderboard(file, leaderboard(runs, tmp_path))
    assert file.read_text() == text


def test_versions_of_an_env_are_never_in_one_table(runs: Path, tmp_path: Path) -> None:
    out = copied(runs, tmp_path)
    changed = next(path for path in out.glob("key_door-*") if one_arm(path))
    rows = read_csv(changed / "summary.csv")
    with (changed / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{**row, "env_hash": "feedfacefeedface"} for row in rows])
    board = leaderboard(out, out)
    assert board.tables == 3
    (said,) = board.warnings
    assert "key_door" in said
    assert "2 versions of its source" in said
    assert board.text.count("not comparable") == 2


def one_arm(run: Path) -> bool:
    return len(orjson.loads((run / "manifest.json").read_bytes())["arms"]) == 1


def test_of_equal_runs_the_latest_stands(runs: Path, tmp_path: Path) -> None:
    out = copied(runs, tmp_path)
    old = next(out.glob("tic_tac_toe-*"))
    again = Path(shutil.copytree(old, f"{old}.2"))
    manifest = orjson.loads((again / "manifest.json").read_bytes())
    manifest["finished_at"] = "2999-01-02T03:04:05Z"
    (again / "manifest.json").write_bytes(orjson.dumps(manifest))
    (row, *_) = cells(leaderboard(out, out).text, "tic_tac_toe, NO_HISTORY")
    assert (row[10], row[12]) == ("2999-01-02", f"[{again.name}]({again.name}/)")


def test_what_is_not_finished_or_damaged_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
    out = copied(runs, tmp_path)
    (unfinished, broken) = sorted(out.glob("key_door-*"))
    manifest = orjson.loads((unfinished / "manifest.json").read_bytes())
    (unfinished / "manifest.json").write_bytes(orjson.dumps({**manifest, "finished_at": None}))
    (broken / "summary.csv").write_text("arm\nx\n")
    board = leaderboard(out, out)
    assert board.tables == 1
    assert f"{unfinished.name} is left out: it is not finished" in board.warnings
    assert any(line.startswith(f"{broken.name} is left out: ") for line in board.warnings)


def test_a_run_that_stopped_early_is_marked(runs: Path, tmp_path: Path) -> None:
    out = copied(runs, tmp_path)
    run = next(out.glob("tic_tac_toe-*"))
    manifest = orjson.loads((run / "manifest.json").read_bytes())
    manifest["config"]["stop"] = "decided"
    (run / "manifest.json").write_bytes(orjson.dumps(manifest))
    (row, *_) = cells(leaderboard(out, out).text, "tic_tac_toe, NO_HISTORY")
    assert row[7] == "10 †"


def test_names_are_shown_not_obeyed(runs: Path, tmp_path: Path) -> None:
    out = copied(runs, tmp_path)
    run = next(out.glob("tic_tac_toe-*"))
    table = (run / "summary.csv").read_text()
    head, row = (line.split(",") for line in table.splitlines())
    row[head.index("model")] = f"a|b <img> `c` {END} [x](y)"
    (run / "summary.csv").write_text(f"{','.join(head)}\n{','.join(row)}\n")
    board = leaderboard(out, out)
    write_leaderboard(tmp_path / "R.md", board)
    write_leaderboard(tmp_path / "R.md", board)
    assert r"a\|b \<img\> \`c\` \<\!-- /leaderboard --\> \[x\](y)" in board.text


def test_the_command_writes_beside_the_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(runs, tmp_path)
    assert main(["leaderboard", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'README.md'}: 5 arms in 2 tables\n"
    elsewhere = tmp_path / "docs" / "BEST.md"
    elsewhere.parent.mkdir()
    assert main(["leaderboard", str(out), "--out", str(elsewhere)]) == 0
    assert "](../results/key_door-" in elsewhere.read_text()
    assert main(["leaderboard", str(tmp_path / "docs")]) == 2
    assert "holds no finished run: nothing to rank" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "none")]) == 2
