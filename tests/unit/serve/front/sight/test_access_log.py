"""Lines, rotation, and what happens when the disk or the ring is full."""

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from serve.front.sight.access_log import AccessLog

RECORD: dict[str, Any] = {
    "path": "/v1/chat/completions",
    "status": 200,
    "duration_s": 0.5,
    "first_byte_s": 0.125,
    "key": "ak_1a2b3c4d",
    "model": "m",
    "version": 3,
    "replica": "r0",
    "request_id": "q1",
    "traceparent": "",
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "streamed": True,
    "retries": 1,
    "bytes": 900,
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_whole_and_has_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.jsonl"
    log = AccessLog(path, clock=lambda: 1_700_000_000.1234)
    log.write({**RECORD, "prompt": "secret", "authorization": "Bearer ak_secret"})
    log.stop()
    assert _lines(path) == [
        {
            "ts": 1_700_000_000.123,
            "method": "POST",
            "path": "/v1/chat/completions",
            "status": 200,
            "ms": 500.0,
            "ttfb_ms": 125.0,
            "key": "ak_1a2b3c4d",
            "model": "m",
            "version": 3,
            "replica": "r0",
            "request_id": "q1",
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "streamed": True,
            "retries": 1,
            "bytes": 900,
        }
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names_from_outside_cannot_break_a_line_or_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path)
    log.write({**RECORD, "request_id": 'x"\n{' + "y" * 10_000})
    log.stop()
    (line,) = _lines(path)
    assert line["request_id"] == ('x"\n{' + "y" * 10_000)[:256]


def test_the_thread_writes_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path).start()
    log.write(RECORD)
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_lines(path)) == 1
    log.stop()


def test_one_older_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, max_bytes=1000)
    for number in range(20):
        log.write({**RECORD, "bytes": number})
        log.drain()
    log.stop()
    assert {file.name for file in tmp_path.iterdir()} == {"access.jsonl", "access.jsonl.1"}
    kept = [line["bytes"] for line in _lines(path.with_name("access.jsonl.1")) + _lines(path)]
    assert kept == list(range(20 - len(kept), 20))
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())


def test_a_full_ring_drops_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, capacity=5)
    for _ in range(8):
        log.write(RECORD)
    log.stop()
    assert (len(_lines(path)), log.lost) == (5, 3)


def test_a_full_disk_is_counted_said_once_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(Path("/dev/full"))
    for _ in range(3):
        log.write(RECORD)
        log.drain()
    assert (log.lost, log.is_failing) == (3, True)
    assert caplog.text.count("takes no more lines: No space left on device") == 1
    log.stop()


def test_it_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    log = AccessLog(path)
    log.write(RECORD)
    log.drain()
    path.rmdir()
    log.write(RECORD)
    log.stop()
    assert (len(_lines(path)), log.lost, log.is_failing) == (1, 1, False)
