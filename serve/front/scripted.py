"""An engine that knows one answer by heart, token by token: for tests of streams that go on.

It holds characters back as vLLM does: a character's first bytes, and what may begin a stop string.
And it repeats its prompt, as vLLM's tokenizer does, when it is begun in the middle of a character.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from serve.accounts.auth import Auth
from serve.accounts.ledger import Ledger
from serve.accounts.store import AccountStore
from serve.front.gateway import Gateway, Parts
from serve.front.relay.naming import Resolver
from serve.front.sight.meters import Meters
from serve.front.testing import StillPool
from serve.pool.routing import Router
from serve.settings import FrontConfig, RoutingRules

FIRST_ID = 1000
EOS_ID = 7
_OTHER_ID = 99
FINGERPRINT = "vllm-scripted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A prompt and the bytes of each token of its greedy answer."""

    pieces: tuple[bytes, ...]
    prompt: tuple[int, ...] = (1, 2, 3)
    prompt_text: bytes = b"a prompt"

    @property
    def ids(self) -> list[int]:
        """The answer's token ids, the end's included."""
        return [*range(FIRST_ID, FIRST_ID + len(self.pieces)), EOS_ID]


@dataclass(slots=True, kw_only=True)
class _Output:
    """What the engine has to say after a token."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None


def stream(script: Script, body: dict[str, Any], group: int = 1) -> Iterator[bytes]:
    """Yield the payloads of the stream that answers `body`, `group` tokens to an event."""
    is_chat = "messages" in body
    prompt = list(script.prompt) if is_chat else body["prompt"]
    options = body.get("stream_options") or {}
    continuous = bool(options.get("continuous_usage_stats"))
    head = {
        "id": "chatcmpl-1" if is_chat else "cmpl-1",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": 1_700_000_000,
        "model": body["model"],
    }

    def event(more: dict[str, Any], completion: int, *, usage: bool) -> bytes:
        counts = {
            "prompt_tokens": len(prompt),
            "total_tokens": len(prompt) + completion,
            "completion_tokens": completion,
        }
        fields = {**head, "choices": more.pop("choices")}
        fields |= {"usage": counts} if usage else {}
        return b"data: %b\n\n" % msgspec.json.encode({**fields, **more})

    if is_chat:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        first = {"choices": [choice | {"finish_reason": None}], "prompt_token_ids": prompt}
        yield event(first, 0, usage=continuous)
    sent = 0
    for output in _grouped(_outputs(script, prompt, body), group):
        choice = _choice(output, is_chat=is_chat)
        if not is_chat:
            choice["prompt_token_ids"] = None if sent else prompt
        sent += len(output.ids)
        more: dict[str, Any] = {"choices": [choice | {"token_ids": output.ids}]}
        if output.finish_reason and not options.get("include_usage"):
            more["system_fingerprint"] = FINGERPRINT
        yield event(more, sent, usage=continuous)
    if options.get("include_usage"):
        yield event({"choices": [], "system_fingerprint": FINGERPRINT}, sent, usage=True)
    yield b"data: [DONE]\n\n"


def _choice(output: _Output, *, is_chat: bool) -> dict[str, Any]:
    text = {"delta": {"content": output.text}} if is_chat else {"text": output.text}
    choice = {"index": 0, **text, "logprobs": None, "finish_reason": output.finish_reason}
    if not is_chat or output.finish_reason is not None:
        choice["stop_reason"] = output.stop_reason
    return choice


def _outputs(script: Script, prompt: list[int], body: dict[str, Any]) -> Iterator[_Output]:
    done = len(prompt) - len(script.prompt)
    if prompt != [*script.prompt, *script.ids[:done]]:
        yield _Output(text="?", ids=[_OTHER_ID], finish_reason="length")
        return
    stop = body.get("stop") or []
    told = _Teller(
        before=script.prompt_text + b"".join(script.pieces[:done]),
        stop=[stop] if isinstance(stop, str) else stop,
        include_stop=bool(body.get("include_stop_str_in_output")),
        min_tokens=body.get("min_tokens", 0),
    )
    most = done + body.get("max_tokens", 16)
    for at, piece in enumerate(script.pieces[done:most], done):
        found = told.hear(piece)
        finish = "stop" if found is not None else "length" if at + 1 == most else None
        text = told.say(is_over=finish is not None)
        yield _Output(text=text, ids=[FIRST_ID + at], finish_reason=finish, stop_reason=found)
        if finish is not None:
            return
    yield _Output(text=told.say(is_over=True), ids=[EOS_ID], finish_reason="stop")


class _Teller:
    """Makes text of bytes, and says only what cannot be taken back."""

    def __init__(
        self, *, before: bytes, stop: list[str], include_stop: bool, min_tokens: int
    ) -> None:
        self._stop = stop
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._held = 0 if include_stop else max(map(len, stop), default=1) - 1
        self._bytes = before if _is_torn(before) else b""
        self._text = ""
        self._said = self._tokens = 0

    def hear(self, piece: bytes) -> str | None:
        """Take a token's bytes; return the stop string that they complete."""
        self._tokens += 1
        self._bytes += piece
        if _is_torn(self._bytes):
            return None
        before = len(self._text)
        self._text += self._bytes.decode("utf-8", "replace")
        self._bytes = b""
        if self._tokens <= self._min_tokens:
            return None
        found = [
            (at + len(stop), stop)
            for stop in self._stop
            if (at := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        end, stop = min(found, key=lambda item: item[0])
        self._text = self._text[: end if self._include_stop else end - len(stop)]
        return stop

    def say(self, *, is_over: bool) -> str:
        """Return what is new and safe to say."""
        end = len(self._text) - (0 if is_over else self._held)
        text = self._text[self._said : end] if end > self._said else ""
        self._said = max(self._said, end)
        return text


def _is_torn(data: bytes) -> bool:
    return data.decode("utf-8", "replace").endswith("\ufffd")


def _grouped(outputs: Iterator[_Output], group: int) -> Iterator[_Output]:
    """Merge outputs, as happens when the engine is faster than its front."""
    held: _Output | None = None
    for output in outputs:
        if held is None:
            held = output
        else:
            held.text += output.text
            held.ids += output.ids
            held.finish_reason, held.stop_reason = output.finish_reason, output.stop_reason
        if len(held.ids) >= group or held.finish_reason is not None:
            yield held
            held = None


class ScriptedEngine:
    """A script behind a socket. The first stream breaks after `cut_at` bytes of its body.

    It breaks by `close` of the connection, by `hang` until the other side leaves, by `end` of the
    body as if all were well, or by `error`, the event with which vLLM ends its streams when its
    core is dead, once `go_on` is set.
    """

    def __init__(
        self, *, script: Script, cut_at: int | None = None, cut_by: str = "close", status: int = 200
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        """The bodies that came."""
        self.was_asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.gone = asyncio.Event()
        """Whether a connection has ended."""
        self.port = 0
        self._script = script
        self._cut_at = cut_at
        self._cut_by = cut_by
        self._status = status
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(reader, writer):
                pass
        self.gone.set()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection is not to be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        body = msgspec.json.decode(await reader.readexactly(size))
        self.asked.append(body)
        self.was_asked.set()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: text/event-stream\r\n" % self._status)
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        data = b"".join(map(_chunk, stream(self._script, body))) + b"0\r\n\r\n"
        cut_at, self._cut_at = self._cut_at, None
        writer.write(data[:cut_at])
        await writer.drain()
        if cut_at is None:
            return True
        if self._cut_by == "hang":
            await reader.read()
        elif self._cut_by == "end":
            writer.write(b"0\r\n\r\n")
            return True
        elif self._cut_by == "error":
            await self.go_on.wait()
            writer.write(_chunk(b'data: {"error":{"message":"EngineDeadError"}}\n\n'))
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()
        return False


@contextlib.asynccontextmanager
async def gateway_over(
    state: Path, model: str, ports: Iterable[int]
) -> AsyncIterator[tuple[Gateway, str]]:
    """Lend a gateway over replicas that all serve version 1 of a model, and its URL.

    A session goes to the first of them first.
    """
    store = AccountStore.open(state)
    auth, ledger, pool = Auth(store), Ledger(store), StillPool()
    for number, port in enumerate(ports):
        pool.add(f"r{number}", port).serve_only(model, 1, model)
    await auth.start()
    parts = Parts(
        pool=pool,
        router=Router(pool.replicas),
        resolver=Resolver(RoutingRules(), lambda: [model]),
        auth=auth,
        ledger=ledger,
        meters=Meters(),
        limits=FrontConfig(),
    )
    gateway = Gateway(parts, host="127.0.0.1", port=0)
    await gateway.start()
    try:
        yield gateway, f"http://127.0.0.1:{gateway.address[1]}"
    finally:
        await gateway.stop(grace_s=1.0)
        await auth.stop()
        store.close()


def chunked(payload: bytes, sizes: Iterable[int] = ()) -> bytes:
    """Return a whole chunked body; the chunks after those of these sizes have 50 bytes."""
    out, at = b"", 0
    sizes = iter(sizes)
    while at < len(payload):
        piece = payload[at : at + next(sizes, 50)]
        out += _chunk(piece)
        at += len(piece)
    return out + b"0\r\n\r\n"


def unchunked(body: bytes) -> bytes:
    """Read a whole chunked body, strictly; raise ValueError."""
    out = b""
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        out += body[:size]
        if body[size : size + 2] != b"\r\n":
            raise ValueError(f"expected the end of a chunk, got {body[size : size + 9]!r}")
        body = body[size + 2 :]
        if not size:
            if body:
                raise ValueError(f"expected nothing more, got {body[:40]!r}")
            return out


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)
