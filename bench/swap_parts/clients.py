"""Clients that ask one thing after the other, and keep all that they were told, and when.

Over plain sockets: an HTTP library would hide the trailers, and when each chunk came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

LENGTHS = (4, 8, 16, 24, 32, 48, 96)
"""Of answers, in tokens."""
_TIMEOUT_S = 300.0


class Form(StrEnum):
    """How a client asks."""

    CHAT_STREAM = "chat, streamed"
    """Greedy."""
    CHAT = "chat"
    """Greedy."""
    GENERATE = "generate"
    """Token in, token out, sampled at temperature 1."""
    GENERATE_STREAM = "generate, streamed"
    """Likewise."""

    @property
    def streams(self) -> bool:
        """Whether the answer comes in events."""
        return self in (Form.CHAT_STREAM, Form.GENERATE_STREAM)

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the likeliest."""
        return self in (Form.CHAT, Form.CHAT_STREAM)


FORMS = (Form.CHAT_STREAM, Form.CHAT, Form.GENERATE, Form.GENERATE_STREAM)
"""In turn, by a client's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of tokens, and the label that the engine gave them."""

    label: str
    start: int
    end: int

    @property
    def version(self) -> int:
        """The version; `NAME@8?` has the weights of 8 before they were proven."""
        return int(self.label.rpartition("@")[2].removesuffix("?"))


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a client got."""

    form: Form
    prompt: tuple[int, ...]
    wanted: int
    """Tokens that were asked for."""
    started_s: float
    ended_s: float = 0.0
    status: int = 0
    version: int = 0
    end: int | None = None
    """X-Policy-Version-End, from the head or the trailer."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    finish_reason: str | None = None
    told_prompt: tuple[int, ...] | None = None
    """The ids that the engine says the prompt has."""
    came_s: list[float] = field(default_factory=list)
    """When each chunk of a stream came."""
    failure: str = ""
    """Why there is no whole answer, if there is none."""

    @property
    def gaps_s(self) -> list[float]:
        """The times between two chunks."""
        return [b - a for a, b in zip(self.came_s, self.came_s[1:], strict=False)]


class Clients:
    """`count` clients of the policy `name`, from entering to leaving; `answers` has what they got.

    On leaving, what was asked is waited for.
    """

    def __init__(
        self,
        port: int,
        name: str,
        prompts: Sequence[tuple[str, tuple[int, ...]]],
        count: int,
    ) -> None:
        self.answers: list[Answer] = []
        self._port, self._name, self._prompts, self._count = port, name, prompts, count
        self._is_over = False

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask all the time until the block ends."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._client(number))
            try:
                yield
            finally:
                self._is_over = True

    async def _client(self, number: int) -> None:
        draw = random.Random(number)
        form = FORMS[number % len(FORMS)]
        while not self._is_over:
            text, prompt = draw.choice(self._prompts)
            body = _body(form, self._name, text, prompt) | {"stream": form.streams}
            wanted, seed = draw.choice(LENGTHS), draw.randrange(1 << 31)
            self.answers.append(await self._ask(form, body, prompt, wanted, seed))

    async def _ask(
        self, form: Form, body: dict[str, Any], prompt: tuple[int, ...], wanted: int, seed: int
    ) -> Answer:
        clock = asyncio.get_running_loop().time
        answer = Answer(form=form, prompt=prompt, wanted=wanted, started_s=clock())
        sampling = body.get("sampling_params", body)
        sampling |= {"max_tokens": wanted, "ignore_eos": True, "seed": seed}
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                raw = await _exchange(self._port, form, body, answer)
            read(answer, raw)
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
            answer.failure = answer.failure or repr(error)
        answer.ended_s = clock()
        return answer


def read(answer: Answer, raw: bytes) -> None:
    """Take in a body. What is no whole answer is a `failure`, or a ValueError or the like."""
    if answer.status != 200:
        answer.failure = f"{answer.status}: {raw[:300]!r}"
        return
    for event in _events(raw) if answer.form.streams else [json.loads(raw)]:
        if "error" in event:
            raise ValueError(f"an error event: {event}")
        answer.told_prompt = _ids(event.get("prompt_token_ids")) or answer.told_prompt
        for choice in event["choices"]:
            answer.ids += choice.get("token_ids") or []
            told = (choice.get("logprobs") or {}).get("content") or []
            answer.logprobs += [float(each["logprob"]) for each in told]
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            for span in choice.get("weight_versions") or ():
                told_span = Span(label=span["version"], start=span["start"], end=span["end"])
                answer.spans.append(told_span)


def _ids(told: list[int] | None) -> tuple[int, ...] | None:
    return None if told is None else tuple(told)


def _events(raw: bytes) -> list[dict[str, Any]]:
    *events, last = raw.removesuffix(b"\n\n").split(b"\n\n")
    if last != b"data: [DONE]":
        raise ValueError(f"a stream that ends with {last[:300]!r}")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def _body(form: Form, name: str, text: str, prompt: tuple[int, ...]) -> dict[str, Any]:
    if form.is_greedy:
        chat = {"messages": [{"role": "user", "content": text}], "temperature": 0}
        return {"model": name, **chat, "logprobs": True, "return_token_ids": True}
    return {
        "model": name,
        "token_ids": list(prompt),
        "sampling_params": {"temperature": 1.0, "logprobs": 0},
    }


async def _exchange(port: int, form: Form, body: dict[str, Any], answer: Answer) -> bytes:
    """Send a request, fill in the head and the trailer of its answer, and return its body."""
    path = "/v1/chat/completions" if form.is_greedy else "/inference/v1/generate"
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        status, fields = _head(await reader.readuntil(b"\r\n\r\n"))
        answer.status = status
        if "content-length" in fields:
            raw = await reader.readexactly(int(fields["content-length"]))
        else:
            raw, trailer = await _chunks(reader, answer.came_s)
            fields |= trailer
    finally:
        writer.close()
    answer.version = int(fields.get("x-policy-version", 0))
    end = fields.get("x-policy-version-end")
    answer.end = None if end is None else int(end)
    return raw


def _head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)


async def _chunks(
    reader: asyncio.StreamReader, came_s: list[float]
) -> tuple[bytes, dict[str, str]]:
    """Return the content and the trailer, and note when each chunk came."""
    clock = asyncio.get_running_loop().time
    parts: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
        came_s.append(clock())
    rest = (await reader.read(-1)).decode("latin-1").strip()
    trailer = dict(line.lower().split(": ", 1) for line in rest.split("\r\n") if line)
    return b"".join(parts), trailer
