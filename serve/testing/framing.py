"""The least of HTTP/1.1 that a FakeEngine has to read. Pure."""

import re

_DIGITS = re.compile(rb"\d+")
_HEX = re.compile(rb"[0-9a-f]+")


class Malformed(Exception):
    """What came is no HTTP that can be answered."""


class Unfinished(Exception):
    """There is more to come; `needed` is how long the buffer then is at least."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def header(head: bytes, lowered: bytes, name: bytes) -> bytes | None:
    """Return a header's value, whatever the case of its name."""
    start = lowered.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip()


def read_body(buffer: bytes, lowered: bytes, start: int) -> tuple[bytes, int]:
    """Return the body that begins at `start`, and where it ends; raise Unfinished or Malformed."""
    length = header(lowered, lowered, b"content-length")
    if b"\r\ntransfer-encoding:" in lowered:
        if length is not None or header(lowered, lowered, b"transfer-encoding") != b"chunked":
            raise Malformed
        return _read_chunks(buffer, start)
    if length is None:
        return b"", start
    if not _DIGITS.fullmatch(length):
        raise Malformed
    end = start + int(length)
    if len(buffer) < end:
        raise Unfinished(end)
    return buffer[start:end], end


def _read_chunks(buffer: bytes, start: int) -> tuple[bytes, int]:
    parts: list[bytes] = []
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            raise Unfinished(len(buffer) + 1)
        size_text = buffer[start:line_end].partition(b";")[0].strip().lower()
        if not _HEX.fullmatch(size_text):
            raise Malformed
        size, start = int(size_text, 16), line_end + 2
        if not size:
            return b"".join(parts), _after_trailers(buffer, start)
        if len(buffer) < start + size + 2:
            raise Unfinished(start + size + 2)
        parts.append(buffer[start : start + size])
        start += size + 2


def _after_trailers(buffer: bytes, start: int) -> int:
    while True:
        end = buffer.find(b"\r\n", start)
        if end < 0:
            raise Unfinished(len(buffer) + 1)
        if end == start:
            return end + 2
        start = end + 2
