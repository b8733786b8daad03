"""The control plane's routes for sight: models, health, readiness, metrics, documents, errors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.accounts.limits import Limits
from serve.errors import EngineDied, ServeError, StateError
from serve.front.control.app import Services
from serve.front.testing import StillPool, client_of, rehearsal
from serve.pool.replicas import ReplicaState
from serve.wire import Scope

Play = Callable[[Services, httpx.AsyncClient], Awaitable[None]]


def _play(state_dir: Path, play: Play, **options: str) -> None:
    async def run() -> None:
        async with rehearsal(state_dir) as services, client_of(services, **options) as client:
            await play(services, client)

    asyncio.run(run())


def _error(answer: httpx.Response) -> tuple[int, str, str | int | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["type"], error["code"]


def test_health_is_open_and_says_what_runs(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        services.store.create_key("a", [Scope.ADMIN], Limits(), actor="test")
        await services.auth.reload()
        answer = await client.get("/health")
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "ok",
            "service": "palaestra-gateway",
            "gpu_available": False,
            "version": "0",
        }

    _play(tmp_path, play, source="203.0.113.9")


@pytest.mark.parametrize(
    ("states", "status", "reason"),
    [
        ([ReplicaState.READY, ReplicaState.DOWN], 200, ""),
        ([ReplicaState.STARTING], 503, "r0 is starting"),
        ([ReplicaState.DOWN, ReplicaState.SYNCING], 503, "r0 is down, r1 is syncing"),
        ([ReplicaState.STOPPED], 200, "the first request wakes one"),
        ([], 503, "there are no replicas"),
    ],
)
def test_ready_says_whether_requests_are_answered(
    states: list[ReplicaState], status: int, reason: str, tmp_path: Path
) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        services.pool.replicas[:] = StillPool(len(states)).replicas
        for replica, state in zip(services.pool.replicas, states, strict=True):
            replica.state = state
        answer = await client.get("/ready")
        assert answer.status_code == status
        assert answer.json()["ready"] is (status == 200)
        assert reason in answer.json()["reason"]
        assert ("retry-after" in answer.headers) is (status == 503)

    _play(tmp_path, play)


def test_models_are_policies_live_versions_and_aliases(tmp_path: Path) -> None:
    async def play(services: Services, _: httpx.AsyncClient) -> None:
        services.policies.register("base", None)  # type: ignore[attr-defined]  # a PolicyStore
        services.pool.replicas[0].served = {"base": {1: b'"x"', 3: b'"y"'}}
        services = replace(
            services,
            aliases=lambda: {"best": "base@3", "gone": "nothing"},
            models={"base": {"max_model_len": 4096}},
        )
        async with client_of(services) as client:
            cards = (await client.get("/v1/models")).json()["data"]
            assert [
                (card["id"], card["root"], card["policy_version"], card["max_model_len"])
                for card in cards
            ] == [
                ("base", "base", 1, 4096),
                ("base@1", "base", 1, 4096),
                ("base@3", "base", 3, 4096),
                ("best", "base@3", 3, 4096),
                ("gone", "nothing", None, None),
            ]
            assert (await client.get("/v1/models/base@3")).json() == cards[2]
            assert _error(await client.get("/v1/models/other/one")) == (
                404,
                "not_found_error",
                "model_not_found",
            )

    _play(tmp_path, play)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/pause", 404),
        ("POST", "/update_weights", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/chat/completions?x=1", 404),
        ("DELETE", "/health", 405),
        ("POST", "/admin/nothing", 404),
    ],
)
def test_everything_else_is_an_error_object(
    method: str, path: str, status: int, tmp_path: Path
) -> None:
    async def play(_: Services, client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path, json={})
        assert _error(answer)[0] == status

    _play(tmp_path, play)


@pytest.mark.parametrize(
    ("source", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.0.0.1", {"x-forwarded-for": "203.0.113.9"}, 401),
        ("203.0.113.9", {}, 401),
    ],
)
def test_metrics_are_open_on_this_machine_only(
    source: str, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        _, key = services.store.create_key("a", [Scope.ADMIN], Limits(), actor="test")
        await services.auth.reload()
        answer = await client.get("/metrics", headers=headers)
        assert answer.status_code == status
        with_key = await client.get(
            "/metrics", headers={**headers, "authorization": f"Bearer {key}"}
        )
        names = {family.name for family in text_string_to_metric_families(with_key.text)}
        assert {"palaestra_in_flight", "palaestra_replica_state", "process_open_fds"} <= names

    _play(tmp_path, play, source=source)


def test_plain_http_from_elsewhere_is_refused_but_for_health(tmp_path: Path) -> None:
    async def play(services: Services, _: httpx.AsyncClient) -> None:
        async with client_of(replace(services, is_secure=lambda *_: False)) as client:
            assert _error(await client.get("/v1/models")) == (
                400,
                "invalid_request_error",
                "https_required",
            )
            assert (await client.get("/health")).status_code == 200

    _play(tmp_path, play)


class _Broken:
    """A store that raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def keys(self) -> list[object]:
        raise self._error

    def audit_log(self, limit: int) -> list[object]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StateError("locked"), (503, "service_unavailable_error", "state_unavailable")),
        (EngineDied("gone"), (503, "service_unavailable_error", "engine_unavailable")),
        (ServeError("other"), (500, "api_error", "internal_error")),
    ],
)
def test_errors_become_statuses(
    error: Exception, expected: tuple[int, str, str], tmp_path: Path
) -> None:
    async def play(services: Services, _: httpx.AsyncClient) -> None:
        broken = replace(services, store=_Broken(error))  # type: ignore[arg-type]  # as much as is asked
        async with client_of(broken) as client:
            assert _error(await client.get("/admin/keys")) == expected

    _play(tmp_path, play)


def test_the_document_holds_the_data_plane_too(tmp_path: Path) -> None:
    async def play(_: Services, client: httpx.AsyncClient) -> None:
        paths = (await client.get("/openapi.json")).json()["paths"]
        chat = paths["/v1/chat/completions"]["post"]
        assert {"200", "400", "401", "404", "409", "413", "429", "502", "503"} <= set(
            chat["responses"]
        )
        assert {"/admin/publish", "/admin/overview", "/v1/models", "/health"} <= set(paths)
        assert "/dashboard" not in paths

    _play(tmp_path, play)


@pytest.mark.parametrize("page", ["/dashboard", "/docs"])
def test_pages_are_complete_and_may_load_nothing_else(page: str, tmp_path: Path) -> None:
    async def play(_: Services, client: httpx.AsyncClient) -> None:
        answer = await client.get(page)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert policy.count("sha256-") == 2
        for forbidden in ("http://", "https://", "innerHTML", " style=", "onclick"):
            assert forbidden not in answer.text.replace("http://www.w3.org/2000/svg", "")

    _play(tmp_path, play)
