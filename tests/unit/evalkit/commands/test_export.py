"""`evalkit export`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

import evalkit
from evalkit.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> evalkit.Run:
    return evalkit.evaluate(
        ["A=random", "B=oracle"], "key_door", seeds="0:3", out=tmp_path_factory.mktemp("results")
    )


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("inspect", ["{run}-A.eval", "{run}-B.eval"]),
        ("parquet", ["episodes.parquet", "turns.parquet"]),
        ("hf", ["README.md", "episodes.parquet", "turns.parquet"]),
        ("trl", ["preference.jsonl", "sft.jsonl"]),
    ],
)
def test_every_format_is_written_and_named(
    run: evalkit.Run, to: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), "--to", to]) == 0
    files = sorted((run.path / to).iterdir())
    assert [file.name for file in files] == [name.format(run=run.path.name) for name in names]
    said = sorted(capsys.readouterr().out.splitlines())
    assert said == sorted(f"{file}  {file.stat().st_size} bytes" for file in files)


def test_another_folder_may_be_chosen(run: evalkit.Run, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert (
        main(["export", str(run.path), "--to", "trl", "--only", "success", "--out", str(out)]) == 0
    )
    assert (out / "sft.jsonl").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "hf", "--only", "success"], "--only success is for --to trl"),
        (["--to", "csv"], "invalid choice: 'csv'"),
        ([], "the following arguments are required: --to"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    run: evalkit.Run, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_said(
    run: evalkit.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "folder"
    assert main(["export", str(run.path), "--to", "trl", "--out", str(out)]) == 2
    assert f"cannot write below {out}" in capsys.readouterr().err
