"""Our own OpenAPI document against our own server: whatever it allows, no 5xx and no surprise."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance

from serve import wire
from serve.accounts.limits import Limits
from serve.accounts.store import AccountStore
from serve.engine.command import Command
from serve.engine.launch import LaunchedEngine, free_port
from serve.front.control.app import Services
from serve.front.testing import act, on_stage
from serve.wire import Scope

pytestmark = pytest.mark.timeout(180)
BOUNDED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to ask, and the key to ask with."""

    url: str
    key: str


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The control plane alone, over a pool that can be scaled."""
    made: list[str] = []

    async def prepare(services: Services) -> None:
        made.append(services.store.create_key("t", [Scope.ADMIN], Limits(), actor="test")[1])
        services.policies.register("base", None)  # type: ignore[attr-defined]  # a PolicyStore
        for replica in services.pool.replicas:
            replica.serve_only("base", 1, "base")
        await services.auth.reload()
        act(services, seconds=3)

    with on_stage(tmp_path_factory.mktemp("state"), prepare) as stage:
        yield Place(url=stage.url, key=made[0])


@pytest.fixture(scope="module")
def whole(fake_engine: LaunchedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A gateway with its data plane, which must be left alone by the other suites: it has keys."""
    state = tmp_path_factory.mktemp("state")
    store = AccountStore.open(state)
    _, key = store.create_key("t", [Scope.ADMIN], Limits(), actor="test")
    store.close()
    port = free_port("127.0.0.1")
    argv = [sys.executable, "-m", "serve", "up", "--upstream", fake_engine.root_url]
    argv += ["--port", str(port), "--state", str(state)]
    gateway = LaunchedEngine(
        Command(argv=tuple(argv)), model="fake", port=port, log=state / "log", api_key=key
    )
    with asyncio.Runner() as runner:
        runner.run(gateway.start())
        try:
            runner.run(gateway.wait_ready(timeout_s=60))
            yield Place(url=gateway.root_url, key=key)
        finally:
            runner.run(gateway.stop())


@pytest.fixture(scope="module", params=["rehearsed", "whole"])
def place(request: pytest.FixtureRequest) -> Place:
    place = request.getfixturevalue(request.param)
    assert isinstance(place, Place)
    return place


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_is_answered_with_5xx_or_with_surprise(
    mode: GenerationMode, place: Place
) -> None:
    """Well-formed and ill-formed requests alike; `status < 500` and the documented shapes."""
    schema = schemathesis.openapi.from_url(f"{place.url}/openapi.json")
    asked: set[str] = set()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @BOUNDED
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case[Any]) -> None:
            answer = case.call(headers={"authorization": f"Bearer {place.key}"}, timeout=20)
            asked.add(f"{case.operation.method} {case.operation.path}")
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            if wire.REPLICA_HEADER.lower() in answer.headers:
                return  # the engine's own words
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            else:
                case.validate_response(answer, checks=[response_schema_conformance])

        # What takes no input cannot be asked wrongly.
        with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
            ask()
    assert {"post /admin/publish", "post /admin/login", "get /admin/usage"} <= asked
