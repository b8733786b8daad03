"""Over real sockets: the server, and the command that starts it."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.errors import BadConfig
from evalkit.view.app import View
from evalkit.view.routes import Request, Response, Route
from evalkit.view.server import MAX_BODY_BYTES, Server


@contextmanager
def serving(view: View) -> Iterator[Server]:
    with Server("127.0.0.1", 0, view.answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: Server, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_pages_and_files_arrive(runs: Path) -> None:
    with serving(View(runs)) as server:
        page, body = ask(server, "GET", "/?env=key_door")
        assert (page.status, page.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
        assert b"/runs/pair" in body
        head, nothing = ask(server, "HEAD", "/runs/pair/files/turns.csv")
        size = (runs / "pair" / "turns.csv").stat().st_size
        assert (head.getheader("Content-Length"), nothing) == (str(size), b"")
        _, table = ask(server, "GET", "/runs/pair/files/turns.csv")
        assert table == (runs / "pair" / "turns.csv").read_bytes()
        assert ask(server, "GET", "/", Host="evil.example")[0].status == 403
        assert ask(server, "GET", "/runs/..%2f..%2fetc")[0].status == 404
        assert ask(server, "GET", "/../../etc/passwd")[0].status == 404
        assert ask(server, "DELETE", "/")[0].status == 501


def test_a_body_is_bounded(runs: Path) -> None:
    view = View(runs)
    view.add(Route("POST", "/say", lambda request, _: Response.json(len(request.body))))
    own = {"Content-Type": "application/json"}
    with serving(view) as server:
        own["Origin"] = f"http://127.0.0.1:{server.port}"
        assert ask(server, "POST", "/say", b"12345", **own)[1] == b"5"
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            too_long = f"POST /say HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
            raw.sendall(too_long.encode())
            assert b" 413 " in raw.recv(1000)


def test_a_port_that_is_taken_is_named_with_another(runs: Path) -> None:
    with (
        serving(View(runs)) as server,
        pytest.raises(BadConfig, match=rf"port {server.port} is taken; another one: --port \d+"),
    ):
        Server("127.0.0.1", server.port, View(runs).answer)


def test_an_address_of_elsewhere_is_refused(runs: Path) -> None:
    with pytest.raises(BadConfig, match=r"cannot listen on 192\.0\.2\.1:0"):
        Server("192.0.2.1", 0, View(runs).answer)


def test_the_address_is_one_to_type(runs: Path) -> None:
    def none(_: Request) -> Response:
        return Response.json(None)

    with Server("0.0.0.0", 0, none) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is not a folder: expected one with runs"),
        ([""], "holds no runs: expected folders with a manifest.json"),
        (["", "--host", "0.0.0.0"], "--host 0.0.0.0 lets others in"),
        (["", "--token-env", "EVALKIT_NO_SUCH"], "EVALKIT_NO_SUCH holds no token"),
        (["", "--port", "x"], "invalid int value: 'x'"),
    ],
)
def test_what_cannot_be_shown_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["view", str(tmp_path / words[0]), *words[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET http://[bad/ HTTP/1.1", 400),
        ("GET / HTTP/1.1\r\nContent-Length: " + 5000 * "1", 413),
        ("GET / HTTP/1.1\r\nContent-Length: -1", 413),
        ("GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5", 400),
        ("POST /api/debug HTTP/1.1\r\nTransfer-Encoding: chunked", 400),
        ("POST /api/debug HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[x", 403),
    ],
)
def test_what_is_no_request_is_refused_and_troubles_nobody(
    runs: Path, capsys: pytest.CaptureFixture[str], head: str, status: int
) -> None:
    with (
        serving(View(runs)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw,
    ):
        raw.sendall(f"{head}\r\n\r\n".encode())
        assert raw.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())
    assert capsys.readouterr().err == ""


def test_after_a_body_of_unknown_length_nothing_is_read(runs: Path) -> None:
    with (
        serving(View(runs)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw,
        raw.makefile("rb") as answers,
    ):
        smuggled = "GET /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n"
        raw.sendall(f"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}".encode())
        assert answers.read().count(b"HTTP/1.1 ") == 1


def test_a_browser_that_goes_is_not_talked_about(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(View(runs)) as server:
        handled = threading.Event()

        def closed(request: socket.socket) -> None:
            request.close()
            handled.set()

        monkeypatch.setattr(server, "close_request", closed)
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        raw.sendall(b"GET / HTTP/1.1\r\nHo")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        assert handled.wait(5)
    assert capsys.readouterr().err == ""
