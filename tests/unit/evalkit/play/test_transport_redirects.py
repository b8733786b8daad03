"""Which redirects a transport follows, and what it sends along."""

from __future__ import annotations

import pytest

from tests.unit.evalkit.play.test_transport import (
    OK,
    Answer,
    Client,
    Server,
    ask,
    every_client,
    ok,
    serving,
)

pytestmark = every_client


def moved(status: int, location: str) -> Answer:
    return Answer(ok(b"moved", f"Location: {location}", status=f"{status} Moved"))


def lines_of(server: Server) -> list[bytes]:
    return [request.split(b" HTTP/1.1")[0] for request in server.requests]


def test_303_is_polled_by_get_until_the_result(client: Client) -> None:
    async def scenario() -> None:
        async with (
            serving(moved(303, "/poll?id=1"), moved(303, "/poll?id=1"), OK) as server,
            client.open(server.url + "/v1") as transport,
        ):
            response = await transport.post("/chat", b"{}", {"X-Session-ID": "s"}, timeout_s=20)
        assert response.status == 200
        assert lines_of(server) == [b"POST /v1/chat", b"GET /poll?id=1", b"GET /poll?id=1"]
        assert all(b"x-session-id: s" in request.lower() for request in server.requests)

    client.run(scenario())


@pytest.mark.parametrize("status", [307, 308])
def test_307_and_308_send_the_body_again(client: Client, status: int) -> None:
    async def scenario() -> None:
        async with serving(moved(status, "/v2/chat"), OK) as server:
            assert (await ask(client, server)).status == 200
        assert lines_of(server) == [b"POST /chat", b"POST /v2/chat"]
        assert server.requests[1].endswith(b"\r\n\r\n{}")

    client.run(scenario())


def test_another_origin_gets_nothing(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as other, serving(moved(307, other.url + "/chat")) as server:
            response = await ask(client, server, headers={"Authorization": "Bearer key"})
            assert (response.status, response.body) == (307, b"moved")
            assert not other.writers

    client.run(scenario())


def test_a_circle_ends(client: Client) -> None:
    async def scenario() -> None:
        async with serving(moved(303, "/poll")) as server:
            assert (await ask(client, server)).status == 303
        assert len(server.requests) == 21

    client.run(scenario())
