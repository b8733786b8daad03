"""The webhook: told once a run has ended, whatever the webhook does; its address stays a secret."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from train import notify
from train.config import TrainConfig, resolve
from train.errors import BadConfig, RunFailed
from train.run import RunDir, State, Status

VARIABLE = "PALAESTRA_TEST_HOOK"
SECRET = "s3cr3t"


class Hook:
    """A server that keeps what it is told, and answers what the test wants."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.told.append((self.path, json.loads(body)))
                self.send_response(hook.statuses.pop(0) if hook.statuses else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hooks/{SECRET}?a=b"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    monkeypatch.setenv(VARIABLE, made.address)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def config(**settings: Any) -> TrainConfig:
    tree = {
        "env": {"name": "key_door"},
        "model": {"path": "m", "name": "m"},
        "learn": {"steps": 4},
        "notify": {"url_env": VARIABLE},
    }
    return resolve(tree, settings)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create_at(tmp_path / "grpo_1", config(), {})
    made.write_status(Status(state=State.FINISHED, step=4, version=5))
    return made


def test_a_finished_run_is_told_of(hook: Hook, run: RunDir) -> None:
    said: list[str] = []
    run.costs_path.write_text('{"format": "train-costs/1", "gpu_hours": 0.5, "usd": 2.0}')
    with notify.telling(config(), run, said.append):
        pass
    ((path, told),) = hook.told
    assert path == f"/hooks/{SECRET}?a=b"
    assert told.pop("at")
    assert told == {
        "format": "train-notice/1",
        "text": "grpo_1 finished at step 4 of 4",
        "event": "run.finished",
        "run": "grpo_1",
        "env": "key_door",
        "model": "m",
        "step": 4,
        "steps": 4,
        "version": 5,
        "message": "",
        "gpu_hours": 0.5,
        "usd": 2.0,
    }
    assert said == []


def test_a_failed_run_is_told_of_and_fails(hook: Hook, run: RunDir) -> None:
    with pytest.raises(RunFailed, match="no disk"), notify.telling(config(), run, lambda _: None):
        raise RunFailed("no disk")
    ((_, told),) = hook.told
    assert (told["event"], told["message"]) == ("run.failed", "no disk")
    assert told["text"] == "grpo_1 failed at step 4 of 4: no disk"


@pytest.mark.parametrize(
    ("statuses", "tries", "said"),
    [
        ([500, 429], 3, ""),
        ([500, 500, 500], 3, "status 500"),
        ([404], 1, "status 404"),
        ([302], 1, "status 302"),
    ],
)
def test_it_is_tried_again_only_where_that_helps(
    hook: Hook, run: RunDir, statuses: list[int], tries: int, said: str
) -> None:
    hook.statuses = statuses
    lines: list[str] = []
    slept: list[float] = []
    with notify.telling(config(), run, lines.append, slept.append):
        pass
    assert len(hook.told) == tries
    assert len(slept) == tries - 1
    assert lines == (
        [f"nobody was told of the end: the webhook in ${VARIABLE} did not take it ({said})"]
        if said
        else []
    )


@pytest.mark.parametrize(
    "address", [f"http://127.0.0.1:1/{SECRET}", f"http://127.0.0.1:99999999/{SECRET}"]
)
def test_a_webhook_that_is_not_there_changes_nothing_and_is_not_named(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    lines: list[str] = []
    with notify.telling(config(), run, lines.append, lambda _: None):
        pass
    (line,) = lines
    assert SECRET not in line


def test_nobody_is_told_where_nobody_asked(run: RunDir, hook: Hook) -> None:
    with notify.telling(config(**{"notify.url_env": None}), run, lambda _: None):
        pass
    assert hook.told == []


@pytest.mark.parametrize(
    ("address", "said"),
    [("", "is not set"), ("ftp://h/x", "holds no http"), ("nonsense", "holds no http")],
)
def test_an_address_is_looked_at_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    with pytest.raises(BadConfig, match=said) as caught:
        notify.check(config())
    assert not address or address not in str(caught.value)
