"""How a connection comes about: addresses, refusals, TLS, proxies."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from evalkit.play.direct import Http1Transport
from evalkit.play.proxied import HttpxTransport, open_transport
from evalkit.play.transport import ConnectFailed, ResponseTimeout
from tests.unit.evalkit.play.test_transport import HTTPX, OK, Client, ask, every_client, serving


@every_client
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_refused_is_told(client: Client, host: str) -> None:
    with socket.socket() as held:  # bound and not listening: nobody else can take the port
        held.bind(("127.0.0.1", 0))
        url = f"http://{host}:{held.getsockname()[1]}"

        async def scenario() -> None:
            async with client.open(url) as transport:
                with pytest.raises(ConnectFailed, match=host) as caught:
                    await transport.post("/chat", b"{}", timeout_s=20)
                assert caught.value.refused

        client.run(scenario())


@every_client
def test_an_unknown_name_is_told(client: Client) -> None:
    async def scenario() -> None:
        async with client.open("http://nobody.invalid:8000") as transport:
            with pytest.raises(ConnectFailed, match=r"nobody\.invalid") as caught:
                await transport.post("/chat", b"{}", timeout_s=20)
            assert not caught.value.refused

    client.run(scenario())


@every_client
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("connect_timeout_s", "timeout_s", "error"),
    [(0.1, 20, ConnectFailed), (20, 0.1, ResponseTimeout)],
)
def test_connecting_has_its_time_within_the_request(
    client: Client, connect_timeout_s: float, timeout_s: float, error: type[Exception]
) -> None:
    async def scenario() -> None:
        async with serving(OK) as server:  # it speaks no TLS, and waits for a request
            url = server.url.replace("http://", "https://")
            async with client.open(url, connect_timeout_s=connect_timeout_s) as transport:
                with pytest.raises(error):
                    await transport.post("/chat", b"{}", timeout_s=timeout_s)

    client.run(scenario())
    gc.collect()  # httpcore leaves the socket of a handshake cut short to the collector


@every_client
def test_ipv6_hosts_stand_in_brackets(client: Client) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")

    async def scenario() -> None:
        async with serving(OK, host="::1") as server:
            assert (await ask(client, server)).status == 200
            assert f"host: {server.url[7:]}".encode() in server.requests[0].lower()

    client.run(scenario())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "self.pem"
    key = path.with_suffix(".key")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=loopback"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    try:
        subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command to make a certificate with")
    return path


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


@every_client
def test_tls_works_where_the_certificate_is_trusted(
    client: Client, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def scenario() -> None:
        async with (
            serving(OK, tls=server_tls(certificate)) as server,
            client.open(server.url) as transport,
        ):
            for _ in range(3):
                assert (await transport.post("/chat", b"{}" * 100_000, timeout_s=20)).body == b"{}"
            assert len(server.writers) == 1

    client.run(scenario())


@every_client
def test_tls_refuses_a_certificate_that_is_not_trusted(client: Client, certificate: Path) -> None:
    async def scenario() -> None:
        async with serving(OK, tls=server_tls(certificate)) as server:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            with pytest.raises(ConnectFailed, match="self-signed") as caught:
                await ask(client, server)
            assert not caught.value.refused
            assert not server.requests

    client.run(scenario())


def test_the_environment_chooses_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving(OK) as proxy:
            for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy"):
                monkeypatch.delenv(name, raising=False)
            async with open_transport("http://model.invalid/v1") as direct:
                assert isinstance(direct, Http1Transport)
            monkeypatch.setenv("http_proxy", proxy.url)
            async with open_transport("http://model.invalid/v1", headers={"A": "b"}) as through:
                assert isinstance(through, HttpxTransport)
                assert (await through.post("/chat", b"{}", timeout_s=20)).status == 200
            line = proxy.requests[0].split(b"\r\n")[0]
            assert line == b"POST http://model.invalid/v1/chat HTTP/1.1"

    HTTPX.run(scenario())
