"""A log as it grows: whole lines, each once."""

from __future__ import annotations

from pathlib import Path

from train.jobs.tail import last_error, new_lines


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert new_lines(log, 0) == ((), 0)
    log.write_bytes(b"one\ntw")
    lines, at = new_lines(log, 0)
    assert (list(lines), at) == (["one"], 4)
    with log.open("ab") as file:
        file.write("o\nthré\xff".encode("latin-1"))
    lines, at = new_lines(log, at)
    assert list(lines) == ["two"]
    lines, at = new_lines(log, at, whole=True)
    assert list(lines) == ["thr\ufffd\ufffd"]
    assert new_lines(log, at, whole=True) == ([], at)


def test_the_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(log) == ""
    log.write_text("error: first\nfine\nerror: second\nmore\n")
    assert last_error(log) == "second"
