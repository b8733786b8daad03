"""The sockets of `evalkit view`: HTTP/1.1 by the standard library, a thread for each connection."""

from __future__ import annotations

import errno
import re
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qsl, urlsplit

from evalkit.errors import BadConfig
from evalkit.view.routes import Request, Response

Answer = Callable[[Request], Response]
MAX_BODY_BYTES = 1 << 20
IDLE_S = 30.0


class Server(ThreadingHTTPServer):
    """Listens on `host` and `port` (0: any free one), and lets `answer` answer.

    Raises:
        BadConfig: the port is taken, or the address is not this machine's.

    """

    daemon_threads = True

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        self.answer = answer
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise BadConfig(_cannot_listen(host, port, error)) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """What to type into a browser on this machine."""
        host = str(self.server_address[0])
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared
        return f"http://{f'[{shown}]' if ':' in shown and '[' not in shown else shown}:{self.port}"

    def server_bind(self) -> None:
        """Bind, without asking a name server what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of browsers that have gone; the rest as ever."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server_version = "evalkit"
    sys_version = ""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        lengths = self.headers.get_all("Content-Length", ["0"])
        if len(lengths) > 1 or "Transfer-Encoding" in self.headers:
            self._refuse(400, "a body has one Content-Length, and no Transfer-Encoding")
            return
        if not re.fullmatch("[0-9]{1,9}", lengths[0]) or int(lengths[0]) > MAX_BODY_BYTES:
            self._refuse(413, f"a body has at most {MAX_BODY_BYTES} bytes")
            return
        try:
            split = urlsplit(self.path)
        except ValueError:
            self._refuse(400, "that is no address")
            return
        request = Request(
            method=self.command,
            path=split.path,
            query=dict(parse_qsl(split.query, keep_blank_values=True, errors="replace")),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(lengths[0])),
        )
        with suppress(ConnectionError, TimeoutError):  # whoever asked is gone
            self._send(cast("Server", self.server).answer(request))

    def _refuse(self, status: int, said: str) -> None:
        """Answer what cannot be read, and read nothing more."""
        self.close_connection = True
        self.send_error(status, said)

    def _send(self, response: Response) -> None:
        body = response.body
        if isinstance(body, Path):
            with body.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                self.close_connection = True  # it may turn out shorter than it was said to be
                self._head(response, size)
                if self.command != "HEAD":
                    shutil.copyfileobj(_Part(file, size), self.wfile)
            return
        self._head(response, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, response: Response, size_bytes: int) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(size_bytes))
        for name, value in response.headers:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the terminal is the user's."""


class _Part:
    """The first bytes of a file that may be growing."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self._file, self._left = file, size_bytes

    def read(self, size: int = -1, /) -> bytes:
        """Read on, up to the end of the part."""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _cannot_listen(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; another one: --port {_free_port(host)}"
    return f"cannot listen on {host}:{port}: {error}"


def _free_port(host: str) -> int:
    """Find a port that is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
