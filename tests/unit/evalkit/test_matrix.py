"""A matrix: a run for every size, all strategies as arms, their notes read against the truth."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.arguments import sweep_of
from evalkit.cli import main
from evalkit.config import RunConfig
from evalkit.errors import BadConfig
from evalkit.matrix import cell_configs, resume_matrix, start_matrix
from evalkit.run import run_async
from evalkit.testing import FakeServer, Said

SEEDS = 12


def model(body: dict[str, Any]) -> str | Said:
    """Walk like a snake; carry notes on, rightly or with an invented door, as the name says."""
    asked = body["messages"][-1]["content"]
    seen = asked.rpartition("## Now")[2]
    row, column = map(int, re.findall(r"\((\d+), (\d+)\)", seen)[0])
    here = "Key" if "A key lies" in seen else "Door" if "A locked door" in seen else "Empty"
    old = re.search(r"## Your notes\n(.*?)\n\n## Now", asked, re.DOTALL)
    notes = f"{old[1] if old else ''} {here} ({row}, {column})."
    if body["model"] == "liar":
        notes = "Door (9, 9). I have the key."
    action = "interact" if here != "Empty" else ("right", "down", "left")[(row + column) % 3]
    return f"<scratchpad>{notes}</scratchpad><action>{action}</action>"


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[FakeServer]:
    with FakeServer(model, models=[{"id": "honest"}, {"id": "liar"}]) as server:
        yield server


def config(out: Path, model: Any = "random", **values: Any) -> RunConfig:
    return RunConfig.read(
        {"model": model, "env": "key_door", "out": str(out), "seeds": f"0:{SEEDS}", **values}
    )


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "matrix.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("typed", "sweep", "env_arg"),
    [
        ({}, {}, None),
        ({"size": "3,4"}, {"size": [3, 4]}, None),
        ({"size": "3"}, {}, ["size=3"]),
        ({"size": "3", "env_arg": ["max_turns=5"]}, {}, ["max_turns=5", "size=3"]),
        ({"sweep": ["size=3,4", "show_moves=true,false"]},
         {"size": [3, 4], "show_moves": [True, False]}, None),
        ({"sweep": "size=3"}, {"size": [3]}, None),
    ],
)  # fmt: skip
def test_what_is_swept(typed: dict[str, Any], sweep: dict[str, Any], env_arg: Any) -> None:
    assert sweep_of(typed) == sweep
    assert typed.get("env_arg") == env_arg


@pytest.mark.parametrize(
    "typed",
    [
        {"sweep": ["size"]},
        {"sweep": ["size=3,,4"]},
        {"sweep": ["size=3,3"]},
        {"sweep": ["size=3"], "size": "4,5"},
        {"sweep": ["a b=3"]},
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(typed: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match="--sweep"):
        sweep_of(typed)


def test_cells_are_the_product_and_every_one_is_tried_before_any_is_played(tmp_path: Path) -> None:
    cells = cell_configs(config(tmp_path), {"size": [3, 4], "max_turns": [5, 6]})
    assert [swept for swept, _ in cells] == [
        {"size": 3, "max_turns": 5},
        {"size": 3, "max_turns": 6},
        {"size": 4, "max_turns": 5},
        {"size": 4, "max_turns": 6},
    ]
    with pytest.raises(BadConfig, match="size must be at least 2"):
        run_async(start_matrix(config(tmp_path), {"size": [3, 1]}))
    with pytest.raises(BadConfig, match="at most 100 cells"):
        cell_configs(config(tmp_path), {"max_turns": list(range(1, 102))})
    assert list(tmp_path.iterdir()) == []


def test_all_is_every_strategy(tmp_path: Path) -> None:
    names = config(tmp_path, strategy="all").strategy
    assert set(names) == {
        "NO_HISTORY",
        "WINDOW",
        "SUMMARY",
        "FULL_HISTORY",
        "SCRATCHPAD",
        "OPTIMAL_SCRATCHPAD",
    }
    with pytest.raises(BadConfig, match="name no others"):
        config(tmp_path, strategy="all,WINDOW(2)")


def test_notes_are_read_against_the_truth(tmp_path: Path, server: FakeServer) -> None:
    models = [f"honest={server.url}#honest", f"liar={server.url}#liar"]
    asked = config(
        tmp_path, models, strategy="NO_HISTORY,SCRATCHPAD", seeds="0:6", env_args={"max_turns": 12}
    )
    matrix = run_async(start_matrix(asked, {"size": [3, 4]}))
    found = rows(matrix.path)
    assert [(row["swept"], row["arm"]) for row in found] == [
        (swept, arm)
        for swept in ('{"size":3}', '{"size":4}')
        for arm in (
            "honest.NO_HISTORY",
            "honest.SCRATCHPAD",
            "liar.NO_HISTORY",
            "liar.SCRATCHPAD",
        )
    ]
    by_arm = {row["arm"]: row for row in found[:4]}
    assert by_arm["honest.NO_HISTORY"]["notes_recall"] == ""
    assert by_arm["liar.NO_HISTORY"]["baseline"] == ""
    assert by_arm["liar.SCRATCHPAD"]["baseline"] == "liar.NO_HISTORY"
    # every room that it visited is in its notes; that the key is in hand is not, where it lay is
    assert 0.5 < float(by_arm["honest.SCRATCHPAD"]["notes_recall"]) < 1.0
    assert 0.8 < float(by_arm["honest.SCRATCHPAD"]["notes_precision"]) < 1.0
    assert float(by_arm["liar.SCRATCHPAD"]["notes_recall"]) < 0.2
    assert float(by_arm["liar.SCRATCHPAD"]["notes_precision"]) < 0.2
    assert "## Notes" in (matrix.path / "matrix.md").read_text()


def test_an_interrupted_matrix_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run_async(start_matrix(config(tmp_path / "a", strategy="all"), {"size": [3, 4]}))
    broken = run_async(start_matrix(config(tmp_path / "b", strategy="all"), {"size": [3, 4]}))
    cell = broken.path / broken.rows[-1]["run_id"]
    before = (broken.path / "matrix.csv").read_bytes()
    (broken.path / "matrix.csv").unlink()
    manifest = json.loads((cell / "manifest.json").read_text())
    (cell / "manifest.json").write_text(json.dumps({**manifest, "finished_at": None}))
    lines = (cell / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (cell / "trajectories.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:9])
    again = run_async(resume_matrix(broken.path))
    assert again.path.name == whole.path.name
    assert (again.path / "matrix.csv").read_bytes() == before
    assert before == (whole.path / "matrix.csv").read_bytes()


def test_the_same_matrix_twice_is_told_to_resume(tmp_path: Path) -> None:
    matrix = run_async(start_matrix(config(tmp_path), {"size": [3]}))
    with pytest.raises(BadConfig, match=f"resume {matrix.path}"):
        run_async(start_matrix(config(tmp_path), {"size": [3]}))


def test_the_command_says_which_strategy_pays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "A=random", "--model", "B=oracle", "--env", "key_door", "-n", "20"]
    assert main([*words, "--size", "3,4", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "size=3: B is best, 100.0 %" in said
    assert re.search(r"^B +100.0 % +100.0 %$", said, re.MULTILINE)
    assert main([*words, "--size", "3,4", "--procs", "2", "--out", str(tmp_path)]) == 2
    assert "--procs" in capsys.readouterr().err
    assert main(["resume", str(next(tmp_path.iterdir()))]) == 0
    assert "size=4: B is best" in capsys.readouterr().out


def test_one_size_is_a_run_like_any_other(tmp_path: Path) -> None:
    words = ["--model", "random", "--env", "key_door", "-n", "5", "--size", "3"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "manifest.json").read_text())["env"]["params"]["size"] == 3


def test_two_labels_of_one_model_have_a_baseline_each(tmp_path: Path, server: FakeServer) -> None:
    models = [f"a={server.url}#honest", f"b={server.url}#honest"]
    asked = config(tmp_path, models, strategy="SCRATCHPAD,NO_HISTORY", seeds="0:2")
    matrix = run_async(start_matrix(asked, {"max_turns": [3]}))
    assert {row["arm"]: row["baseline"] for row in rows(matrix.path)} == {
        "a.SCRATCHPAD": "a.NO_HISTORY",
        "a.NO_HISTORY": "",
        "b.SCRATCHPAD": "b.NO_HISTORY",
        "b.NO_HISTORY": "",
    }
