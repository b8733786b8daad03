"""A client that speaks raw bytes: blocking sockets with a deadline, no HTTP library's manners."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

KEY = b"ak_fa017500_for-the-fault-suite-only"
PATH = b"/v1/chat/completions"
DEADLINE_S = 20.0


class Cut(Exception):
    """The connection ended in the middle of an answer; `got` is what came of it."""

    def __init__(self, got: bytes) -> None:
        super().__init__(f"cut after {len(got)} bytes: {got[-200:]!r}")
        self.got = got


def chat(text: str = "hello", **fields: Any) -> bytes:
    """Return the body of a chat request."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def post(
    body: bytes | None = None,
    *,
    path: bytes = PATH,
    headers: bytes = b"",
    key: bytes | None = KEY,
    length: bytes | None = None,
) -> bytes:
    """Return a request; `headers` are lines with CRLF, `length` replaces the length's line."""
    body = chat() if body is None else body
    auth = b"" if key is None else b"Authorization: Bearer %b\r\n" % key
    framing = b"Content-Length: %d\r\n" % len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n%b%b%b\r\n%b" % (
        path,
        auth,
        headers,
        framing,
        body,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, split where its framing says."""

    head: bytes
    framed: bytes
    """The body as it was on the wire, chunk sizes included."""
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        found = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        assert isinstance(found, dict)
        return found

    def headers(self, name: bytes) -> list[bytes]:
        """Return the values of all headers of that name, in lower case, in order."""
        lines = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip() for key, _, value in lines if key.lower() == name]


class Client:
    """One connection to the gateway."""

    def __init__(self, address: tuple[str, int], *, receive_buffer_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(DEADLINE_S)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close as programs do: FIN, or RST if something was not read."""
        self.socket.close()

    def reset(self) -> None:
        """Close by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """Send no more, and read on."""
        self.socket.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_what_goes(self, data: bytes) -> None:
        """Send, whether or not the other side still listens."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self.socket.sendall(data)

    def ask(self, body: bytes | None = None, **request: Any) -> Answer:
        """Send a request and read its answer."""
        self.send(post(body, **request))
        return self.answer()

    def answer(self) -> Answer:
        """Read one answer; raise Cut if it ends too early."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more(self._buffer)
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            assert b"content-length" not in lowered
            framed, body = self._chunks(head)
        elif b"content-length:" in lowered:
            start = lowered.index(b"content-length:") + 15
            length = int(lowered[start:].split(b"\r\n", 1)[0])
            framed = body = self._take(length, head)
        else:
            framed = body = self.rest()
        return Answer(head=head, framed=framed, body=body)

    def rest(self) -> bytes:
        """Read all until the connection ends, by whatever."""
        with contextlib.suppress(Cut):
            while True:
                self._more(b"")
        data, self._buffer = self._buffer, b""
        return data

    def until(self, mark: bytes) -> bytes:
        """Read to the end of the first `mark`."""
        while mark not in self._buffer:
            self._more(self._buffer)
        end = self._buffer.index(mark) + len(mark)
        data, self._buffer = self._buffer[:end], self._buffer[end:]
        return data

    def _chunks(self, head: bytes) -> tuple[bytes, bytes]:
        framed = body = b""
        while True:
            line = self._line(head + b"\r\n\r\n" + framed)
            framed += line
            size = int(line.partition(b";")[0], 16)
            if not size:
                break
            data = self._take(size + 2, head + b"\r\n\r\n" + framed)
            assert data.endswith(b"\r\n")
            framed += data
            body += data[:-2]
        while line != b"\r\n":
            line = self._line(framed)
            framed += line
        return framed, body

    def _line(self, before: bytes) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more(before + self._buffer)
        end = self._buffer.index(b"\r\n") + 2
        line, self._buffer = self._buffer[:end], self._buffer[end:]
        return line

    def _take(self, size: int, before: bytes) -> bytes:
        parts = [self._buffer]
        left = size - len(self._buffer)
        while left > 0:
            self._buffer = b""
            self._more(before + b"".join(parts))
            parts.append(self._buffer)
            left -= len(self._buffer)
        data = b"".join(parts)
        self._buffer = data[size:]
        return data[:size]

    def _more(self, got: bytes) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if not data:
            raise Cut(got)
        self._buffer += data


def eventually(check: Callable[[], bool], what: str, *, within_s: float = 5.0) -> float:
    """Poll until it holds; return how long that took, in seconds."""
    start = time.perf_counter()
    while not check():
        took_s = time.perf_counter() - start
        assert took_s < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.001)
    return time.perf_counter() - start
