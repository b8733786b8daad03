"""Logging in and out, cookies, and the tricks of foreign pages."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from serve.accounts.limits import Limits
from serve.front.control.app import Services
from serve.front.testing import client_of, rehearsal
from serve.wire import Scope

Play = Callable[[Services, httpx.AsyncClient], Awaitable[None]]
OURS = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}


def _play(state_dir: Path, play: Play, **options: str) -> None:
    async def run() -> None:
        async with rehearsal(state_dir) as services, client_of(services, **options) as client:
            await play(services, client)

    asyncio.run(run())


async def _with_key(services: Services, *scopes: Scope) -> str:
    _, key = services.store.create_key("a", scopes or [Scope.ADMIN], Limits(), actor="test")
    await services.auth.reload()
    return key


def test_log_in_look_and_log_out(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        key = await _with_key(services)
        assert (await client.get("/admin/overview")).status_code == 401
        answer = await client.post("/admin/login", json={"key": key}, headers=OURS)
        assert answer.status_code == 200
        assert answer.json()["actor"].startswith("key:ak_")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/admin" in cookie
        assert "Secure" not in cookie
        assert key not in cookie
        assert (await client.get("/admin/overview")).json()["actor"].startswith("key:ak_")
        assert (await client.post("/admin/logout", headers=OURS)).status_code == 204
        assert (await client.get("/admin/overview")).status_code == 401

    _play(tmp_path, play)


def test_a_stolen_cookie_is_dead_after_logout(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        key = await _with_key(services)
        await client.post("/admin/login", json={"key": key}, headers=OURS)
        stolen = dict(client.cookies)
        await client.post("/admin/logout", headers=OURS)
        client.cookies.update(stolen)
        answer = await client.get("/admin/overview")
        assert answer.status_code == 401
        assert "log in again" in answer.json()["error"]["message"]

    _play(tmp_path, play)


def test_a_session_ends_with_its_key(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        key = await _with_key(services)
        await client.post("/admin/login", json={"key": key}, headers=OURS)
        services.store.revoke(key[:11], actor="test")
        await services.auth.reload()
        assert (await client.get("/admin/overview")).status_code == 401

    _play(tmp_path, play)


def test_people_log_in_with_a_password_over_https(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        store = services.store
        store.set_password("eve", "correct horse battery", [Scope.ADMIN], actor="t")  # type: ignore[attr-defined]  # an AccountStore
        await services.auth.reload()
        wrong = {"user": "eve", "password": "wrong horse battery"}
        assert (await client.post("/admin/login", json=wrong)).status_code == 401
        right = {"user": "eve", "password": "correct horse battery"}
        answer = await client.post("/admin/login", json=right)
        assert answer.json()["actor"] == "user:eve"
        assert "Secure" in answer.headers["set-cookie"]
        assert "strict-transport-security" in answer.headers

    _play(tmp_path, play, url="https://gate.example")


def test_the_dashboard_is_for_admins(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        key = await _with_key(services, Scope.INFER)
        answer = await client.post("/admin/login", json={"key": key})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    _play(tmp_path, play)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OURS, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({**OURS, "sec-fetch-site": "cross-site"}, 403),
        ({**OURS, "sec-fetch-site": "same-site"}, 403),
    ],
)
def test_a_cookie_works_only_from_our_own_page(
    headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        key = await _with_key(services)
        await client.post("/admin/login", json={"key": key}, headers=OURS)
        answer = await client.post("/admin/pool/scale", json={"replicas": 1}, headers=headers)
        assert answer.status_code == status

    _play(tmp_path, play)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:19040"}, 200),
        ({"host": "[::1]:19040"}, 200),
        ({"host": "rebound.example"}, 403),
        ({"host": "rebound.example", "origin": "http://rebound.example"}, 403),
        ({"host": "["}, 403),
        ({"origin": "http://evil.example"}, 403),
    ],
)
def test_without_keys_only_this_machine_gets_in(
    headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    async def play(_: Services, client: httpx.AsyncClient) -> None:
        answer = await client.post("/admin/pool/scale", json={"replicas": 1}, headers=headers)
        assert answer.status_code == status

    _play(tmp_path, play)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_forms_of_other_pages_are_no_json(kind: str, tmp_path: Path) -> None:
    async def play(_: Services, client: httpx.AsyncClient) -> None:
        headers = {"content-type": kind} if kind else {}
        answer = await client.post("/admin/keys", content=b"{}", headers=headers)
        assert answer.status_code == 415

    _play(tmp_path, play)


def test_a_wrong_secret_is_never_repeated(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        await _with_key(services)
        for body in ({"key": "hunter2"}, {"key": ["hunter2"]}, {"user": 1, "password": "hunter2"}):
            answer = await client.post("/admin/login", json=body)
            assert answer.status_code in (400, 401)
            assert "hunter2" not in answer.text

    _play(tmp_path, play)
