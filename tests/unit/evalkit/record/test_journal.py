"""Append-only files: whole lines, one writer, torn ends."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evalkit.errors import BadConfig, DamagedRun, RunFailed
from evalkit.record.journal import Appender, read_journal, read_lines

ENTRY = b'{"format":"journal/1","request_id":"a"}\n'


def test_lines_are_written_whole_and_found_by_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Appender(path) as file:
        offsets = [file.write(line) for line in (b"one", b"", b"three")]
    assert path.read_bytes() == b"one\n\nthree\n"
    assert offsets == [0, 4, 5]
    assert list(read_lines(path)) == [(0, b"one"), (4, b""), (5, b"three")]


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (b"", b""),
        (b"torn", b""),
        (b"one\n", b"one\n"),
        (b"one\ntorn", b"one\n"),
        (b"one\n\n", b"one\n\n"),
        (b"one\n" + b"x" * 200_000, b"one\n"),
        (b"x" * 200_000, b""),
        (b"x" * 65_535 + b"\n", b"x" * 65_535 + b"\n"),
        (b"x" * 65_536 + b"\n" + b"y" * 65_536, b"x" * 65_536 + b"\n"),
    ],
    ids=range(9),
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, found: bytes, kept: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(found)
    with Appender(path) as file:
        assert path.read_bytes() == kept
        assert file.write(b"next") == len(kept)
    assert path.read_bytes() == kept + b"next\n"


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for cut in range(1, len(ENTRY)):
        path.write_bytes(ENTRY + ENTRY[:-cut])
        assert [entry["request_id"] for entry in read_journal(path)] == ["a"]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "file")) == []
    assert list(read_journal(tmp_path / "file")) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\n" + ENTRY, "byte 0"),
        (ENTRY + b"\x00\x00\n" + ENTRY, f"byte {len(ENTRY)}"),
        (ENTRY + b"[]\n", "expected a journal/1 entry"),
        (ENTRY + b'{"format":"journal/2"}\n', "expected a journal/1 entry"),
    ],
)
def test_a_line_that_is_no_entry_is_damage(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(data)
    with pytest.raises(DamagedRun, match=message):
        list(read_journal(path))


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Appender(path) as file, pytest.raises(BadConfig, match="played by another process"):
        Appender(path)
    file = Appender(path)
    file.close()


def test_another_process_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = (
        "import sys, pathlib\n"
        "from evalkit.record.journal import Appender\n"
        "file = Appender(pathlib.Path(sys.argv[1]))\n"
        "file.write(b'theirs')\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(BadConfig, match="played by another process"):
            Appender(path)
        other.kill()
    with Appender(path) as file:
        assert file.size_bytes == len(b"theirs\n")


def test_a_folder_that_is_not_there_is_a_bad_config(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot write"):
        Appender(tmp_path / "absent" / "file")


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """Let files grow up to a size, as on a disk that fills up: the last write is a partial one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [4, 6])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, room: int) -> None:
    path = tmp_path / "file"
    with Appender(path) as file:
        file.write(b"one")
        with disk_of(room), pytest.raises(RunFailed, match="cannot write"):
            file.write(b"second")
        assert path.read_bytes() == b"one\n"
        assert file.write(b"third") == 4
    assert path.read_bytes() == b"one\nthird\n"
