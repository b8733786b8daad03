"""A request on the data plane as it arrived: what the engine gets of it, what we keep for us."""

import time
from hashlib import sha256

from serve.accounts.limits import Account
from serve.front.ports import Client, Headers
from serve.front.relay import heads
from serve.wire import Scope

clock = time.perf_counter

_TRAIN_PATH = b"/inference/v1/generate"
_READ = heads.NOT_FORWARDED | {b"x-session-id", b"x-request-id", b"traceparent"}
_PLAIN_CONNECTION = frozenset((b"keep-alive", b"close"))


class Tally:
    """What is counted of a request and its answer. Defaults on the class: most never change all."""

    account: Account | None = None
    model = ""
    version = 0
    """The one that it was dispatched to."""
    status = 0
    retries = 0
    events = 0
    """Server-sent events that passed by."""
    bytes_out = 0
    streamed = False
    began = False
    """Whether a byte of the answer went to the client."""
    usage: tuple[int, int] | None = None
    """Prompt and completion tokens, as the engine counted them."""
    whole = b""
    """An answer that was sent in one piece; its usage is read when it is on its way."""
    first_byte_at = 0.0
    read_at = 0.0
    held_at = 0.0
    ended_at = 0.0


class Inquiry:
    """The request itself. `path` may carry a query; `forwarded` are the engine's header lines."""

    # Defaults on the class, not slots: most requests never change most of them.
    authorization: bytes | None = None
    session: bytes | None = None
    request_id: bytes | None = None
    constraint: bytes | None = None
    traceparent: bytes | None = None
    engine_name = b""
    """What the body calls the model, as a JSON string."""

    def __init__(self, client: Client, path: bytes, headers: Headers, body: bytes) -> None:
        self.client = client
        self.path = path
        self.body = body
        self.started_at = clock()
        self.forwarded = self._read_headers(headers)

    @property
    def scope(self) -> Scope:
        """What a key must be good for to ask this."""
        return Scope.TRAIN if self.path.startswith(_TRAIN_PATH) else Scope.INFER

    def _read_headers(self, headers: Headers) -> bytes:
        """Return the lines that the engine gets, and keep what we need ourselves."""
        lines: list[bytes] = []
        for name, value in headers:
            if name not in _READ:
                lines += (name, b": ", value, b"\r\n")
            elif name == b"authorization":
                self.authorization = value
            elif name == b"x-policy-constraint":
                self.constraint = value
            elif name == b"connection" and value.lower() not in _PLAIN_CONNECTION:
                return self._read_headers(heads.without_connection(headers))
            elif name not in heads.NOT_FORWARDED:
                if name == b"x-session-id":
                    is_long = len(value) > 256
                    self.session = sha256(value).hexdigest().encode() if is_long else value
                elif name == b"x-request-id":
                    self.request_id = value
                else:
                    self.traceparent = value
                lines += (name, b": ", value, b"\r\n")
        return b"".join(lines)
