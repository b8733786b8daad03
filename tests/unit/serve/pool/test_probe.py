import asyncio
from collections.abc import Callable

import pytest

from serve.engine.launch import free_port
from serve.pool.health import http_probe
from serve.pool.replicas import Replica
from serve.testing import FakeEngine, Faults

Answer = Callable[[bytes], bytes | None]


def probe(answer: Answer, timeout_s: float = 5.0) -> tuple[str | None, list[bytes]]:
    """Probe a server that gives these bytes for each request line; None keeps it waiting."""
    asked: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.partition(b"\r\n")[0])
        said = answer(asked[-1])
        if said is None:
            await ended.wait()
        else:
            writer.write(said)
        writer.close()
        await writer.wait_closed()

    async def run() -> str | None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await http_probe(Replica("r", "127.0.0.1", port), timeout_s)
        finally:
            ended.set()
            await asyncio.sleep(0.01)
            server.close()
            await server.wait_closed()

    return asyncio.run(run()), asked


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.0 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "a probe was answered with 503"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "a probe was answered with 302"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "a probe was answered with 404"),
        (b"SSH-2.0-x\r\n", "probe failed: expected HTTP, got b'SSH-2.0-x\\r\\n'"),
        (b"HTTP/1.1 abc\r\n", "probe failed: invalid literal"),
        (b"", "probe failed: expected HTTP, got b''"),
        (b"x" * 100_000, "probe failed: "),
    ],
    ids=lambda value: str(value)[:24],
)
def test_verdicts(answer: bytes, problem: str | None) -> None:
    found, _ = probe(lambda line: answer)
    assert found is None if problem is None else str(found).startswith(problem)


def test_an_engine_without_health_is_asked_for_its_models() -> None:
    found, asked = probe(
        lambda line: b"HTTP/1.1 %d x\r\n\r\n" % (404 if b"/health" in line else 200)
    )
    assert (found, asked) == (None, [b"GET /health HTTP/1.1", b"GET /v1/models HTTP/1.1"])


def test_silence_is_not_waited_for() -> None:
    assert probe(lambda line: None, 0.05)[0] == "no answer to a probe within 0.05 s"


def test_nobody_there() -> None:
    found = asyncio.run(http_probe(Replica("r", "127.0.0.1", free_port("127.0.0.1")), 5))
    assert str(found).startswith("probe failed: ")
    found = asyncio.run(http_probe(Replica("r", "no.such.host.invalid", 80), 20))
    assert found is not None


def test_a_fake_engine_is_well_once_it_is_warm() -> None:
    async def run(faults: Faults) -> str | None:
        async with FakeEngine(faults=faults) as engine:
            port = int(engine.root_url.rpartition(":")[2])
            return await http_probe(Replica("r", "127.0.0.1", port), 5)

    assert asyncio.run(run(Faults())) is None
    assert asyncio.run(run(Faults(cold_s=60))) == "a probe was answered with 503"
