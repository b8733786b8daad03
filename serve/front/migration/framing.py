"""The chunked framing of a body that another replica goes on with, wherever it was cut. Pure."""

from copy import copy

_CRLF = b"\r\n"


class Unjoinable(Exception):
    """The rest of an answer that does not fit what was sent; says why."""


class Framing:
    """Where in its chunks a body is that passed by in pieces of any size."""

    __slots__ = ("_ended", "_in_trailer", "_left", "_line")

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the chunk still to come, its CRLF included."""
        self._line = b""
        """A line of the framing, as much of it as came."""
        self._in_trailer = False
        self._ended = False

    @property
    def at_boundary(self) -> bool:
        """Whether a chunk could begin here."""
        return not self._left and not self._line and not self._in_trailer

    def payload(self, data: bytes) -> bytes:
        """Take the next bytes of the body; return what is in their chunks."""
        found: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self._ended:
            if self._left:
                taken = min(self._left, size - at)
                inside = min(taken, self._left - len(_CRLF))
                if inside > 0:
                    found.append(data[at : at + inside])
                self._left -= taken
                at += taken
                continue
            newline = data.find(b"\n", at)
            if newline < 0:
                self._line += data[at:]
                break
            self._take_line(self._line + data[at : newline + 1])
            self._line = b""
            at = newline + 1
        return b"".join(found)

    def wrap(self, payload: bytes) -> bytes:
        """Return the bytes that go on with this payload; a chunk left open is filled first."""
        if self._in_trailer:
            raise Unjoinable("the body was over")
        opening, left = self._opened(len(payload))
        if not left:
            return _chunk(payload)
        room = left - len(_CRLF)
        if room <= 0:
            return _CRLF[-left:] + _chunk(payload)
        if len(payload) < room:
            return opening + payload
        return opening + payload[:room] + _CRLF + _chunk(payload[room:])

    def end(self) -> bytes:
        """Return the bytes that end the body. A chunk left open is filled with empty lines."""
        if self._in_trailer:
            if self._line.strip():
                return (b"\n" if self._line.endswith(b"\r") else _CRLF) + _CRLF
            return _CRLF[len(self._line) :]
        if self._line and _length(self._line) == 0:
            return (b"\n" if self._line.endswith(b"\r") else _CRLF) + _CRLF
        opening, left = self._opened(0)
        filler = b"\n" * (left - len(_CRLF)) + _CRLF[-left:] if left else b""
        return opening + filler + b"0\r\n\r\n"

    def finish(self, payload: bytes) -> bytes:
        """Return the bytes that go on with this payload, which may be none, and end the body."""
        data = self.wrap(payload) if payload else b""
        after = copy(self)
        after.payload(data)
        return data + after.end()

    def _take_line(self, line: bytes) -> None:
        if self._in_trailer:
            self._ended = not line.strip()
            return
        length = _length(line)
        if length:
            self._left = length + len(_CRLF)
        else:
            self._in_trailer = True

    def _opened(self, size: int) -> tuple[bytes, int]:
        """Return what ends a size line that was begun, and how long its chunk then is."""
        line = self._line
        if not line:
            return b"", self._left
        length = _length(line)
        if length:
            return b"\n" if line.endswith(b"\r") else _CRLF, length + len(_CRLF)
        if line.strip(b"0"):
            raise Unjoinable("the last chunk was begun")
        return b"%x\r\n" % size, size + len(_CRLF)


def _length(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise Unjoinable(f"expected a chunk's size, got {line[:40]!r}") from None


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
