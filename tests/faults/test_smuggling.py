"""D. What a smuggler needs is refused, and not one byte of it reaches a backend."""

import pytest

from tests.faults.backend import Backend, completion
from tests.faults.conftest import Worlds
from tests.faults.wire import KEY, chat, post

INNER = post(b'{"model": "m", "smuggled": true}')
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: gate\r\n"
AUTH = b"Authorization: Bearer %b\r\n" % KEY
HEAD = LINE + HOST + AUTH
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(chat())
NONE = b"\r\n0\r\n\r\n"


def te(value: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding:" + value + b"\r\n\r\n0\r\n\r\n"


REFUSED: dict[str, bytes] = {
    "CL and TE": HEAD + LENGTH + CHUNKED + NONE,
    "TE and CL": HEAD + CHUNKED + LENGTH + NONE,
    "two equal CLs": HEAD + LENGTH + LENGTH + b"\r\n" + chat(),
    "two unequal CLs": HEAD + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + chat(),
    "a list of CLs": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "an empty CL": HEAD + b"Content-Length:\r\n\r\n",
    "a signed CL": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "a negative CL": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "a CL in hex": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "a CL with a space": HEAD + b"Content-Length: 1 2\r\n\r\nhello",
    "a CL beyond 64 bits": HEAD + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "TE: xchunked": te(b" xchunked"),
    "TE: chunked twice": HEAD + CHUNKED + CHUNKED + NONE,
    "TE: chunked, chunked": te(b" chunked, chunked"),
    "TE: chunked, identity": te(b" chunked, identity"),
    "TE: identity": te(b" identity"),
    "TE: gzip, chunked": te(b" gzip, chunked"),
    "TE: quoted": te(b' "chunked"'),
    "TE: vertical tab": te(b" \x0bchunked"),
    "TE: folded": te(b"\r\n chunked"),
    "TE: space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n" + NONE,
    "TE: tab before the colon": HEAD + b"Transfer-Encoding\t: chunked\r\n" + NONE,
    "TE: bare CR": te(b" chunked\rX: y"),
    "bare LF everywhere": HEAD.replace(b"\r\n", b"\n") + LENGTH[:-2] + b"\n\n" + chat(),
    "bare LF after a header": HEAD + b"A: b\n" + LENGTH + b"\r\n" + chat(),
    "bare LF at the end": HEAD + LENGTH + b"\n" + chat(),
    "bare LF after a chunk's size": HEAD + CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "bare LF after a chunk": HEAD + CHUNKED + b"\r\n5\r\nhello\n0\r\n\r\n",
    "bare CR": HEAD + b"A: b\rC: d\r\n" + LENGTH + b"\r\n" + chat(),
    "a folded header": HEAD + b"A: b\r\n c\r\n" + LENGTH + b"\r\n" + chat(),
    "a space before the first header": LINE + b" " + HOST + AUTH + LENGTH + b"\r\n" + chat(),
    "NUL in a value": HEAD + b"A: b\0c\r\n" + LENGTH + b"\r\n" + chat(),
    "NUL in a name": HEAD + b"A\0: b\r\n" + LENGTH + b"\r\n" + chat(),
    "a space in a name": HEAD + b"A b: c\r\n" + LENGTH + b"\r\n" + chat(),
    "a header without a colon": HEAD + b"foo\r\n" + LENGTH + b"\r\n" + chat(),
    "two hosts": HEAD + HOST + LENGTH + b"\r\n" + chat(),
    "no host": LINE + AUTH + LENGTH + b"\r\n" + chat(),
    "two keys": HEAD + AUTH + LENGTH + b"\r\n" + chat(),
    "a negative chunk": HEAD + CHUNKED + b"\r\n-5\r\nhello\r\n0\r\n\r\n",
    "a chunk in 0x": HEAD + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk too long": HEAD + CHUNKED + b"\r\n3\r\nhello\r\n0\r\n\r\n",
    "a chunk's size of 20 digits": HEAD + CHUNKED + b"\r\n" + b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n",
    "LF in a chunk's extension": HEAD + CHUNKED + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.0": post().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0, kept": post(headers=b"Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.2": post().replace(b"HTTP/1.1", b"HTTP/1.2"),
    "HTTP/2.0": post().replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/2.0, kept": post(headers=b"Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/0.9": b"POST /v1/chat/completions\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200,
    "upgrade": post(headers=b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
    "upgrade to h2c": post(headers=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"),
    "CONNECT": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST + AUTH + b"\r\n",
    "absolute form": post(path=b"http://gate/v1/chat/completions"),
    "a tab": post().replace(b"POST ", b"POST\t"),
    "a control character in the path": post(path=b"/v1/chat/completions\x01"),
    "a fragment": post(path=b"/v1/chat/completions#x"),
    "//": post(path=b"//v1/chat/completions"),
    "// within": post(path=b"/v1//chat/completions"),
    "a dot segment": post(path=b"/v1/x/../chat/completions"),
    "%2e%2e": post(path=b"/v1/%2e%2e/v1/chat/completions"),
    "%2f": post(path=b"/v1%2fchat%2fcompletions"),
    "an escaped letter": post(path=b"/v1/chat/completion%73"),
    "another case": post(path=b"/V1/chat/completions"),
    "a semicolon": post(path=b"/v1/chat/completions;x"),
    "an engine's own route": post(b"{}", path=b"/update_weights"),
    "an engine's own route behind a known one": post(b"{}", path=b"/tokenize/../pause"),
    "GET": post().replace(b"POST", b"GET"),
    "PUT": post().replace(b"POST", b"PUT"),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("split", [False, True], ids=["whole", "byte by byte"])
def test_case_26_refused(worlds: Worlds, data: bytes, split: bool) -> None:
    """An error, the end of the connection where the framing is in doubt, and nothing upstream."""
    world = worlds(Backend(), probe_s=0)
    with world.client() as client:
        if split:
            for at in range(len(data)):
                client.send_what_goes(data[at : at + 1])
        else:
            client.send(data)
        answer = client.answer()
        assert answer.status in (400, 404, 405, 413, 417, 501, 505), answer.head
        assert answer.error["message"]
        if answer.status not in (404, 405):
            assert answer.headers(b"connection") == [b"close"]
            client.send_what_goes(INNER)
            assert client.rest() == b""
    assert bytes(world.backend.raw) == b""
    assert world.backend.connections == 0


SOUND: dict[str, bytes] = {
    "TE in any case": HEAD + b"tRANSFER-eNCODING: ChUnKeD\r\n",
    "TE after a tab": HEAD + b"Transfer-Encoding:\tchunked\r\n",
    "TE before a space": HEAD + b"Transfer-Encoding: chunked \r\n",
    "TE without a space": HEAD + b"Transfer-Encoding:chunked\r\n",
}


@pytest.mark.parametrize("head", SOUND.values(), ids=SOUND.keys())
def test_case_26_what_is_sound_is_read_as_one_request(worlds: Worlds, head: bytes) -> None:
    """A chunked body is put under a length of ours: no framing of the client's goes through."""
    world = worlds(Backend())
    body = chat()
    with world.client() as client:
        client.send(head + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) + post(chat("2")))
        assert client.answer().body == completion()
        assert client.answer().body == completion()
    first, second = world.backend.seen
    assert (first.body, second.body) == (body, chat("2"))
    for seen in world.backend.seen:
        assert seen.headers(b"content-length") == [b"%d" % len(seen.body)]
        assert seen.headers(b"transfer-encoding") == []


def test_case_26_trailers_set_nothing(worlds: Worlds) -> None:
    world = worlds(Backend())
    body = chat()
    trailer = b"X-Session-ID: evil\r\nAuthorization: Bearer evil\r\nX-Evil: 1\r\n"
    with world.client() as client:
        client.send(HEAD + CHUNKED + b"Trailer: X-Evil\r\n\r\n")
        client.send(b"%x\r\n%b\r\n0\r\n" % (len(body), body) + trailer + b"\r\n")
        assert client.answer().status == 200
    (seen,) = world.backend.seen
    assert seen.body == body
    assert b"evil" not in seen.head.lower()
    assert world.call(lambda: world.gateway.router.sessions) == 0


def test_case_34_hop_by_hop_and_what_is_ours_is_stripped(worlds: Worlds) -> None:
    world = worlds(Backend())
    ours = (
        b"X-Data-Parallel-Rank: 3\r\nX-Forwarded-For: 10.0.0.1\r\nForwarded: for=x\r\n"
        b"X-Real-IP: 10.0.0.1\r\nX-Api-Key: k\r\nCookie: a=b\r\nX-Policy-Constraint: >=1\r\n"
        b"Keep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\n"
        b"Proxy-Connection: close\r\nX-Secret: s\r\nX-Other: o\r\nConnection: x-secret, X-OTHER\r\n"
    )
    with world.client() as client:
        assert client.ask(headers=ours + b"X-Keep: kept\r\nX-Request-ID: r-1\r\n").status == 200
    head = world.backend.seen[0].head.split(b"\r\n")
    assert head[1:] == [
        b"host: 127.0.0.1:%d" % world.backend.port,
        b"content-type: application/json",
        b"x-keep: kept",
        b"x-request-id: r-1",
        b"content-length: %d" % len(chat()),
    ]


CONNECTION: dict[str, bytes] = {
    "one name": b"X-Secret: s\r\nConnection: x-secret\r\n",
    "before it": b"Connection: X-Secret\r\nX-Secret: s\r\n",
    "two lists": b"Connection: x-a, close\r\nX-A: s\r\nX-Secret: s\r\nConnection: x-secret\r\n",
    "spaces": b"Connection:  , x-secret ,\r\nX-Secret: s\r\n",
}


@pytest.mark.parametrize("headers", CONNECTION.values(), ids=CONNECTION.keys())
def test_case_34_what_connection_names(worlds: Worlds, headers: bytes) -> None:
    world = worlds(Backend())
    with world.client() as client:
        assert client.ask(headers=headers).status == 200
    (seen,) = world.backend.seen
    for name in (b"x-secret", b"x-a", b"connection"):
        assert seen.headers(name) == []


def test_case_34_the_client_s_key_stays_here(worlds: Worlds) -> None:
    world = worlds(Backend())
    with world.client() as client:
        assert client.ask(headers=b"Connection: keep-alive\r\n").status == 200
        assert client.ask(key=b"wrong").status == 401
        assert client.ask(key=None).status == 401
    assert world.seen == 1
    assert KEY not in bytes(world.backend.raw)
    assert b"authorization" not in bytes(world.backend.raw).lower()
