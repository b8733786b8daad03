"""Weights change behind a real gateway while clients ask: nobody fails, every label is true.

Two FakeEngines say with every token which weights made it, so an answer can be held against its
own headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve.client import AdminClient, PoolStatus
from serve.errors import AdminError
from serve.wire import SwapMode
from tests.unit.serve.testing import checkpoints

NAME = "fake"
CLIENTS = 16
TOKENS = 8
PUBLISHED = (2, 3, 4, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client got. `end` is from the head or the trailer."""

    status: int
    version: int = 0
    end: int | None = None
    words: tuple[str, ...] = ()
    finish_reason: str | None = None
    raw: bytes = b""


@dataclass(kw_only=True)
class World:
    """A gateway over two engines; `names` says what the weights of a version say."""

    folder: Path
    port: int
    engines: list[subprocess.Popen[str]]
    names: dict[int, str] = field(default_factory=dict)

    def full(self, version: int) -> Path:
        folder = self.folder / f"full-{version}"
        self.names[version] = checkpoints.full(folder, version)
        return folder

    def lora(self, version: int) -> Path:
        folder = self.folder / f"lora-{version}"
        self.names[version] = checkpoints.lora(folder, version)
        return folder

    def admin(self) -> AdminClient:
        return AdminClient(f"http://127.0.0.1:{self.port}")

    def agrees(self, answer: Answer) -> bool:
        """Whether the labels are those of the weights that made the words."""
        begun = self.names[answer.version]
        ended = self.names[answer.version if answer.end is None else answer.end]
        first = [word for word in answer.words if word == begun]
        rest = [word for word in answer.words if word != begun]
        expected = (*first, *[ended] * len(rest))
        return answer.words == expected and answer.words[-1] == ended


@contextlib.contextmanager
def process(log: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of ours and the first line that it prints."""
    argv = [sys.executable, "-m", *words]
    with (
        log.open("w") as errors,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True) as started,
    ):
        try:
            assert started.stdout is not None
            yield started, started.stdout.readline()
        finally:
            started.kill()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    boot = tmp_path / "boot"
    name = checkpoints.full(boot, 1)
    fake = ["serve.testing", "--dev-mode", "--versioned-reply", "--root", str(boot)]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(process(tmp_path / f"{number}.log", *fake, "--itl-ms", "10"))
            for number in range(2)
        ]
        urls = [line.strip().removesuffix("/v1") for _, line in started]
        words = ["serve", "up", "--port", "0", "--state", str(tmp_path / "state")]
        words += [word for url in urls for word in ("--upstream", url)]
        _, line = stack.enter_context(process(tmp_path / "gateway.log", *words))
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        engines = [engine for engine, _ in started]
        world = World(folder=tmp_path, port=port, engines=engines, names={1: name})
        with world.admin() as admin:
            until(admin, lambda pool: [r.state for r in pool.replicas] == ["ready", "ready"])
        yield world


def until(admin: AdminClient, holds: Callable[[PoolStatus], bool], timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds(pool := admin.pool()):
        assert time.monotonic() < deadline_s, pool
        time.sleep(0.005)


async def ask(
    port: int, *, model: str = NAME, stream: bool = False, constraint: str = ""
) -> Answer:
    """Ask once, and read to the end, the trailer as well."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    data = json.dumps(body | {"max_tokens": TOKENS}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Content-Length: {len(data)}\r\nConnection: close\r\n"
    head += f"X-Policy-Constraint: {constraint}\r\n" if constraint else ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + b"\r\n" + data)
        raw = await asyncio.wait_for(reader.read(-1), 30)
    finally:
        writer.close()
    return answer_in(raw)


def answer_in(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    if fields.get("transfer-encoding") == "chunked":
        body, trailer = dechunked(body)
        fields |= trailer
    status = int(lines[0].split()[1])
    if status != 200:
        return Answer(status=status, raw=raw)
    end = fields.get("x-policy-version-end")
    text, finish_reason = said(body)
    return Answer(
        status=status,
        version=int(fields["x-policy-version"]),
        end=None if end is None else int(end),
        words=tuple(text.split()[1:]),
        finish_reason=finish_reason,
        raw=raw,
    )


def dechunked(body: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the content and the trailer."""
    content = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            lines = rest.removesuffix(b"\r\n").decode().lower().split("\r\n")
            return content, dict(line.split(": ", 1) for line in lines if line)
        content, body = content + rest[:length], rest[length + 2 :]


def said(body: bytes) -> tuple[str, str | None]:
    """Return the text of an answer or of a stream, and why it ended."""
    if not body.startswith(b"data: "):
        choice = json.loads(body)["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]
    *events, done = body.removesuffix(b"\n\n").split(b"\n\n")
    assert done == b"data: [DONE]"
    choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
    return "".join(each["delta"]["content"] for each in choices), choices[-1]["finish_reason"]


@contextlib.asynccontextmanager
async def load(world: World, *, streams: bool = True) -> AsyncIterator[list[Answer]]:
    """Clients that ask one thing after the other; a list of what they got."""
    answers: list[Answer] = []
    is_over = asyncio.Event()

    async def client(number: int) -> None:
        while not is_over.is_set():
            answers.append(await ask(world.port, stream=streams and number % 2 == 0))

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        try:
            yield answers
        finally:
            is_over.set()


def publish(world: World, version: int, swap: SwapMode, checkpoint: Path) -> None:
    with world.admin() as admin:
        assert admin.publish(NAME, checkpoint, swap=swap).version == version
        admin.wait_ready(NAME, version, timeout_s=30)


def roll_back(world: World, version: int, swap: SwapMode) -> None:
    with world.admin() as admin:
        admin.rollback(NAME, version, swap=swap)
        admin.wait_ready(NAME, version, timeout_s=30)


def run(talk: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(90):
            return await talk()

    return asyncio.run(bounded())


@pytest.mark.parametrize("swap", [SwapMode.WAIT, SwapMode.KEEP])
def test_swaps_under_load_fail_nobody_and_every_label_is_true(world: World, swap: SwapMode) -> None:
    async def talk() -> list[Answer]:
        async with load(world) as answers:
            for version in PUBLISHED:
                assert (await ask(world.port, constraint=f">={version}")).status == 409
                await asyncio.to_thread(publish, world, version, swap, world.full(version))
                newest = await ask(world.port, constraint=f">={version}")
                assert (newest.status, newest.version) == (200, version)
            await asyncio.to_thread(roll_back, world, 2, swap)
            assert (await ask(world.port)).version == 2
        return answers

    answers = run(talk)
    assert {answer.status for answer in answers} == {200}
    assert [answer for answer in answers if not world.agrees(answer)] == []
    assert {answer.version for answer in answers} >= {1, *PUBLISHED}
    assert {(len(answer.words), answer.finish_reason) for answer in answers} == {
        (TOKENS - 1, "stop")
    }
    has_crossed = any(answer.end is not None for answer in answers)
    assert has_crossed is (swap is SwapMode.KEEP)


def test_an_abort_ends_answers_early_and_says_so(world: World) -> None:
    async def talk() -> list[Answer]:
        async with load(world) as answers:
            await asyncio.sleep(0.2)  # so that some are under way
            await asyncio.to_thread(publish, world, 2, SwapMode.ABORT, world.full(2))
        return answers

    answers = run(talk)
    assert {answer.status for answer in answers} == {200}
    whole = [answer for answer in answers if answer.finish_reason == "stop"]
    cut = [answer for answer in answers if answer.finish_reason == "abort"]
    assert len(whole) + len(cut) == len(answers)
    assert cut
    assert [answer for answer in whole if not world.agrees(answer)] == []
    assert all(set(answer.words) <= {world.names[answer.version]} for answer in cut)


def test_two_adapters_are_served_at_once(world: World) -> None:
    async def talk() -> list[Answer]:
        async with load(world) as answers:
            for version in (2, 3):
                await asyncio.to_thread(publish, world, version, SwapMode.WAIT, world.lora(version))
            asked = [ask(world.port, model=f"{NAME}@{n}") for n in (1, 2, 3) for _ in range(8)]
            for answer in await asyncio.gather(*asked):
                assert answer.status == 200
                answers.append(answer)
            versions = [answer.version for answer in answers[-24:]]
        assert {versions.count(n) for n in (1, 2, 3)} >= {8}
        return answers

    answers = run(talk)
    assert {answer.status for answer in answers} == {200}
    assert {answer.version for answer in answers} == {1, 2, 3}
    assert [answer for answer in answers if not world.agrees(answer)] == []


def test_a_checkpoint_that_does_not_fit_changes_nothing(world: World, tmp_path: Path) -> None:
    checkpoints.full(tmp_path / "wide", 9, width=5)
    with world.admin() as admin, pytest.raises(AdminError, match="does not fit"):
        admin.publish(NAME, tmp_path / "wide")
    answer = run(lambda: ask(world.port))
    assert (answer.version, world.agrees(answer)) == (1, True)


def test_a_replica_killed_during_its_swap_leaves_the_other_to_go_on(world: World) -> None:
    def kill_during_a_roll() -> None:
        with world.admin() as admin:
            admin.publish(NAME, world.full(2), swap=SwapMode.WAIT)
            until(admin, lambda pool: "syncing" in {r.state for r in pool.replicas})
            going = [r.state for r in admin.pool().replicas].index("syncing")
            world.engines[going].kill()
            until(
                admin,
                lambda pool: (
                    pool.replicas[going].state != "ready"
                    and pool.replicas[1 - going].current == {NAME: 2}
                ),
            )
            admin.wait_ready(NAME, 2, timeout_s=20)

    async def talk() -> list[Answer]:
        async with load(world, streams=False) as answers:
            await asyncio.sleep(0.2)  # so that there is something to drain
            await asyncio.to_thread(kill_during_a_roll)
            before = len(answers)
            while len(answers) < before + 2 * CLIENTS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert {answer.version for answer in answers[before + CLIENTS :]} == {2}
        return answers

    answers = run(talk)
    assert {answer.status for answer in answers} == {200}
    assert [answer for answer in answers if not world.agrees(answer)] == []
