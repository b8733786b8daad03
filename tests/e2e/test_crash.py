"""kill -9 at random moments: nothing that was paid for is paid for again, no byte differs."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

REPLIES = [f"<action>{action}</action>" for action in ("up", "down", "left", "right", "interact")]
TABLES = ("summary.csv", "episodes.csv", "turns.csv", "compare.csv", "paired.csv", "report.md")
KILLS = 20
CONCURRENCY = 16


@pytest.fixture(name="engine_url")
def _engine_url() -> Iterator[str]:
    command = [sys.executable, "-m", "serve.testing", "--port", "0", "--delay-ms", "3"]
    for reply in (*REPLIES, "I would rather think about it."):
        command += ["--reply", reply]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _evaluate(url: str, out: Path) -> list[str]:
    command = [sys.executable, "-m", "evalkit", "--model", url, "--env", "key_door", "-n", "150"]
    command += ["--strategy", "FULL_HISTORY,SCRATCHPAD", "-c", str(CONCURRENCY)]
    return [*command, "--out", str(out)]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _journaled(out: Path) -> list[str]:
    """Request ids in the journal, a torn last line left out."""
    return [
        json.loads(line)["request_id"]
        for journal in out.glob("*/journal.jsonl")
        for line in journal.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


def _journal_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("*/journal.jsonl"))


def _kill_once_grown(process: subprocess.Popen[bytes], out: Path, size_bytes: int) -> None:
    """Kill -9 as soon as the journal is that large."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if _journal_bytes(out) >= size_bytes:
            break
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def _answers(url: str) -> dict[str, int]:
    answered: dict[str, int] = httpx.get(url.replace("/v1", "/requests")).json()
    return answered


def test_twenty_kills_lose_nothing_and_pay_nothing_twice(engine_url: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(_evaluate(engine_url, whole), check=True, capture_output=True)
    calls = len(_journaled(whole))
    assert calls > 5_000
    before = _answers(engine_url)

    chance = random.Random(7)
    moments = sorted(chance.sample(range(1, _journal_bytes(whole) * 9 // 10), KILLS))
    command = _evaluate(engine_url, broken)
    finished: dict[str, int] = {}
    for moment in moments:
        process = _start(command)
        _kill_once_grown(process, broken, moment)
        answered = _answers(engine_url)
        finished |= {call: answered[call] for call in _journaled(broken) if call not in finished}
        (folder,) = broken.iterdir()
        command = [sys.executable, "-m", "evalkit", "resume", str(folder)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "success" in ended.stdout

    (folder,), (reference,) = broken.iterdir(), whole.iterdir()
    for table in TABLES:
        assert (folder / table).read_bytes() == (reference / table).read_bytes(), table

    journal = _journaled(broken)
    assert len(journal) == len(set(journal)) == calls
    after = _answers(engine_url)
    assert {call: after[call] for call, count in finished.items() if after[call] != count} == {}
    assert sum(after.values()) - sum(before.values()) <= calls + KILLS * CONCURRENCY
