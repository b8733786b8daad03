"""An instant chat server: one precomputed answer, no parsing, so that the client is what is timed.

    python bench/mock_server.py [--port 0] [--delay-ms 0]

Prints its base URL when it listens. GET /stats tells how many completions it was asked for, and the
seconds from the first to the last since the previous /stats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import ClassVar

import uvloop


def _http(body: object) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


COMPLETION = _http(
    {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "<action>interact</action>"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
    }
)
MODELS = _http({"object": "list", "data": [{"id": "mock", "object": "model"}]})


class Mock(asyncio.Protocol):
    """Answers every complete request on a connection, in order."""

    delay_s = 0.0
    asked: ClassVar[list[float]] = []
    """When each completion was asked for, since the last /stats."""

    def __init__(self) -> None:
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer when a request is whole; its length is all that is read of it."""
        buffer = self.buffer + data if self.buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end].lower()
            size = end + 4 + _content_length(head)
            if len(buffer) < size:
                break
            buffer = buffer[size:]
            self.answer(self.read(head) if head.startswith(b"get") else COMPLETION)
        self.buffer = buffer

    def read(self, head: bytes) -> bytes:
        """Answer a GET; /stats starts the count anew."""
        if b"/stats" not in head.partition(b"\r\n")[0]:
            return MODELS
        asked = Mock.asked[:]
        Mock.asked.clear()
        return _http({"requests": len(asked), "active_s": asked[-1] - asked[0] if asked else 0.0})

    def answer(self, response: bytes) -> None:
        """Write now, or after the delay."""
        if response is COMPLETION:
            self.asked.append(time.perf_counter())
        if not self.delay_s or response is not COMPLETION:
            self.transport.write(response)
        else:
            asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, response)


def _content_length(head: bytes) -> int:
    start = head.find(b"content-length:")
    if start < 0:
        return 0
    end = head.find(b"\r\n", start)
    return int(head[start + 15 : end if end > 0 else None])


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    typed = parser.parse_args()
    Mock.delay_s = typed.delay_ms / 1000
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(typed.port))


if __name__ == "__main__":
    main()
