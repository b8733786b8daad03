"""Ctrl-C and SIGTERM leave a run that can be resumed; a terminal shows a live display."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

EVALKIT = [sys.executable, "-m", "evalkit"]


@pytest.fixture(name="engine_url")
def _engine_url() -> Iterator[str]:
    command = [sys.executable, "-m", "serve.testing", "--port", "0", "--delay-ms", "20"]
    command += ["--reply", "<action>up</action>", "--reply", "<action>left</action>"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _task(url: str, out: Path, seeds: str) -> list[str]:
    return [
        *EVALKIT,
        "--model",
        url,
        "--env",
        "key_door",
        "-n",
        seeds,
        "-c",
        "4",
        "--out",
        str(out),
    ]


def _wait_for_calls(out: Path) -> None:
    deadline = time.monotonic() + 30
    while not any(file.stat().st_size for file in out.glob("*/journal.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    signum: signal.Signals, code: int, engine_url: str, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    with subprocess.Popen(
        # A gate that runs in the background passes on that SIGINT is ignored.
        ["env", "--default-signal=INT", *_task(engine_url, out, "50")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_for_calls(out)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    (folder,) = out.iterdir()
    assert f"go on with: python -m evalkit resume {folder}" in stderr
    assert not (folder / "summary.csv").exists()
    resumed = subprocess.run(
        [*EVALKIT, "resume", str(folder)], capture_output=True, text=True, timeout=120
    )
    assert resumed.returncode == 0
    assert (folder / "summary.csv").exists()


def test_a_terminal_gets_a_live_display(engine_url: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        _task(engine_url, tmp_path, "8"), stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        process.wait(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "8/8 episodes" in text
    assert "turns/s" in text
    assert "95 % CI" in text
    assert "\x1b[" in text


def test_a_server_that_dies_ends_the_run_and_not_the_episodes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve.testing", "--port", "0", "--delay-ms", "20"]
    with subprocess.Popen(
        [*command, "--reply", "<action>up</action>"], stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        url = engine.stdout.readline().strip()
        out = tmp_path / "results"
        task = [*_task(url, out, "50"), "--wait-s", "1"]
        with subprocess.Popen(task, stderr=subprocess.PIPE, text=True) as process:
            try:
                _wait_for_calls(out)
            finally:
                engine.terminate()
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "go on with: python -m evalkit resume" in stderr
    assert "no answer for" in stderr
    assert "Traceback" not in stderr
