"""Processes in the place of a gateway and of a learner, and what tests of the parent share.

`fakes.py gateway --port N [DIES_S]`  listens, says what `serve up` says, ends after DIES_S
`fakes.py learner RUN URL SCRIPT`     does SCRIPT's next line at each start; the last one again
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PYTHON = (sys.executable, "-I", "-S")
"""Starts in a few milliseconds."""
DEADLINE_S = 30.0


def until(holds: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """Poll another process's doing; return what holds."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def answers(url: str) -> bool:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def make_checkpoint(folder: Path, *, template: bool = True, weights: bool = True) -> Path:
    """Write the smallest folder that passes for a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "tokenizer.json").write_text("{}")
    told = '{"chat_template": "{{ messages }}"}' if template else "{}"
    (folder / "tokenizer_config.json").write_text(told)
    if weights:
        header = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
        data = struct.pack("<Q", len(header)) + header + bytes(8)
        (folder / "model.safetensors").write_bytes(data)
    return folder


def gateway(port: int, dies_s: float | None) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        print(f"listening on {url}; logs in /nowhere", flush=True)
        print("starting: 1 s", flush=True)
        print(f"pid {os.getpid()} bind {os.environ.get('VLLM_CPU_OMP_THREADS_BIND')}", flush=True)
        print(f"\nbase URL  {url}\nmodel     fake\n\nready; Ctrl-C stops it", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        time.sleep(3600 if dies_s is None else dies_s)
    sys.exit(7)


def write_status(path: Path, state: str, step: int, message: str = "") -> None:
    """Write it as `train.run` does, without the time that importing that takes."""
    told = {"state": state, "step": step, "message": message, "version": step}
    part = path / "status.part"
    part.write_text(json.dumps({"format": "train-status/1", **told}))
    part.rename(path / "status.json")


def learner(path: Path, url: str, script: Path) -> None:
    starts = path / "starts"
    number = len(starts.read_text().split()) if starts.exists() else 0
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    lines = script.read_text().splitlines()
    actions: dict[str, Callable[[str], object]] = {
        "step": lambda value: write_status(path, "running", int(value)),
        "fail": lambda value: write_status(path, "failed", 1, f"no {value}"),
        "kill": lambda value: os.kill(os.getpid(), int(value)),
        "answers": lambda _: until(lambda: answers(url)),
        "dead": lambda _: until(lambda: not answers(url)),
        "graceful": lambda value: on_signals(lambda *_: sys.exit(int(value))),
        "deaf": lambda _: on_signals(signal.SIG_IGN),
        "failing": lambda _: on_signals(lambda *_: failing(path)),
        "counting": lambda _: on_signals(lambda *_: noted(path / "signals")),
        "outlive": lambda value: outlive(path, int(value)),
        "up": lambda _: (path / "up").write_text("up"),
        "sleep": lambda value: time.sleep(float(value)),
        "exit": lambda value: sys.exit(int(value)),
    }
    for word in lines[min(number, len(lines) - 1)].split():
        what, _, value = word.partition("=")
        actions[what](value)


def failing(path: Path) -> None:
    write_status(path, "failed", 1, "no disk")
    sys.exit(1)


def noted(file: Path) -> None:
    with file.open("a") as notes:
        notes.write("x")


def outlive(path: Path, gateways: int) -> None:
    """Make steps until so many gateways were ready."""
    step = 0
    while (path / "logs" / "gateway.log").read_text().count("ready") < gateways:
        step += 1
        write_status(path, "running", step)
        time.sleep(0.03)


def on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "gateway":
        gateway(int(words[1]), float(words[2]) if len(words) > 2 else None)
    else:
        learner(Path(words[0]), words[1], Path(words[2]))
