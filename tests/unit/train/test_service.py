"""Jobs over HTTP: what a request may say, what it is answered, and who may ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from serve.front.control.guard import Caller
from serve.front.control.mounts import MountContext
from serve.wire import Scope
from train import service
from train.config import TrainConfig
from train.errors import BadConfig, RunFailed, UnknownJob
from train.jobs.base import Job, Jobs, JobState

KEY = {"Authorization": "Bearer ak_train"}
BODY = {"config": {"env": {"name": "key_door"}, "model": {"path": "m"}}}


class FakeJobs(Jobs):
    """Jobs that are only written down."""

    def __init__(self) -> None:
        self.configs: list[TrainConfig] = []
        self.cancelled: list[str] = []

    def start(self, config: TrainConfig) -> str:
        if config.model.path == "full":
            raise BadConfig("no room")
        if config.model.path == "away":
            raise RunFailed("Modal is away")
        self.configs.append(config)
        return f"job-{len(self.configs)}"

    def status(self, job: str) -> Job:
        if job not in [f"job-{number + 1}" for number in range(len(self.configs))]:
            raise UnknownJob(f"no job {job!r}")
        state = JobState.STOPPED if job in self.cancelled else JobState.RUNNING
        return Job(
            id=job,
            run="grpo_1",
            target="fake",
            state=state,
            created="2026-11-21T18:00:00+00:00",
            env="key_door",
            model="m",
            steps=4,
            place="/nowhere",
        )

    def cancel(self, job: str) -> None:
        self.status(job)
        self.cancelled.append(job)

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        yield from ("one", "two", "three")[: 3 if follow else 2]

    def list(self) -> tuple[Job, ...]:
        return tuple(self.status(f"job-{number + 1}") for number in range(len(self.configs)))


class Gateway:
    """A gateway's place: a key with the scope train is known, another one is known without it."""

    def __init__(self, state: Path) -> None:
        self.audited: list[tuple[str, str, str]] = []
        self.context = MountContext(
            require=self.require,
            state=state,
            base_url=lambda: "http://127.0.0.1:8000",
            audit=self.audit,
            on_stop=lambda _: None,
        )

    def require(self, scope: Scope) -> Any:
        def caller(request: Request) -> Caller:
            told = request.headers.get("authorization")
            if told is None:
                raise HTTPException(401)
            if told != KEY["Authorization"]:
                raise HTTPException(403)
            return Caller(actor="key:1", grants=frozenset({scope}))

        assert scope is Scope.TRAIN
        return Depends(caller)

    async def audit(self, actor: str, what: str, on: str) -> None:
        self.audited.append((actor, what, on))


class World:
    def __init__(self, state: Path, operator: dict[str, Any]) -> None:
        self.jobs, self.gateway = FakeJobs(), Gateway(state)
        app = FastAPI()
        app.include_router(service.router(self.gateway.context, self.jobs, operator))
        self.client = TestClient(app)

    def start(self, body: dict[str, Any]) -> Any:
        return self.client.post("/v1/jobs", json=body, headers=KEY)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, {"out": "/theirs", "budget": {"usd": 5}, "compute": {"gpu": "L4"}})


def test_a_job_s_life(world: World) -> None:
    started = world.start(BODY | {"settings": {"learn.steps": 7, "compute.gpu": "H100"}})
    assert (started.status_code, started.json()) == (
        202,
        {"id": "job-1", "status_url": "/v1/jobs/job-1"},
    )
    (config,) = world.jobs.configs
    assert (config.learn.steps, config.compute.gpu) == (7, "H100")
    assert (config.out, config.budget.usd) == ("/theirs", 5)
    ask = world.client.get
    assert ask("/v1/jobs/job-1", headers=KEY).json()["state"] == "running"
    assert [job["id"] for job in ask("/v1/jobs", headers=KEY).json()["data"]] == ["job-1"]
    assert ask("/v1/jobs/job-1/logs", headers=KEY).text == "one\ntwo\n"
    followed = ask("/v1/jobs/job-1/logs", params={"follow": "true"}, headers=KEY)
    assert followed.text == "one\ntwo\nthree\n"
    assert followed.headers["content-type"] == "text/plain; charset=utf-8"
    cancelled = world.client.post("/v1/jobs/job-1/cancel", headers=KEY)
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "stopped")
    assert world.gateway.audited == [
        ("key:1", "train.start", "job-1"),
        ("key:1", "train.cancel", "job-1"),
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/job-1"),
        ("GET", "/v1/jobs/job-1/logs"),
        ("POST", "/v1/jobs/job-1/cancel"),
    ],
)
def test_every_route_asks_for_the_scope(world: World, method: str, path: str) -> None:
    assert world.client.request(method, path, json=BODY).status_code == 401
    wrong = {"Authorization": "Bearer ak_infer"}
    assert world.client.request(method, path, json=BODY, headers=wrong).status_code == 403
    assert world.jobs.configs == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"out": "/etc"}, "out is the operator's to choose"),
        ({"volumes.root": "/x"}, "volumes.root is the operator's"),
        ({"compute.secrets": {"a": ["B"]}}, "compute.secrets is the operator's"),
        ({"compute.nodes": 8}, "compute.nodes is the operator's"),
        ({"gateway.engine_args": ["--x"]}, "gateway.engine_args is the operator's"),
        ({"notify.url_env": "X"}, "notify.url_env is the operator's"),
        ({"env.name": "os:system"}, "env.name: a request may name only what is registered"),
        ({"reward.name": "a.b:C"}, "reward.name: a request may name only"),
        ({"model.path": "/etc"}, "model.path: a request may name a model, not a place"),
        ({"model.path": "../x"}, "model.path: a request may name a model, not a place"),
        ({"learn.nope": 1}, "learn.nope: no such key"),
        ({"learn.steps": 0}, "learn.steps: Input should be greater"),
        ({"model.path": "full"}, "no room"),
    ],
)
def test_what_a_request_may_not_say(world: World, settings: dict[str, Any], said: str) -> None:
    refused = world.start(BODY | {"settings": settings})
    assert refused.status_code == 400
    assert said in refused.json()["detail"]
    assert world.jobs.configs == []


def test_what_is_nested_is_looked_at_too(world: World) -> None:
    body = {"config": {**BODY["config"], "compute": {"app": "theirs"}}}
    assert "compute.app is the operator's" in world.start(body).json()["detail"]
    operator = {"model": {"path": "theirs"}}
    world = World(world.gateway.context.state, operator)
    model = {"overrides": {"key_door": "/etc"}}
    refused = world.start({"config": {"env": {"name": "key_door"}, "model": model}})
    assert "model.path: a request may name a model, not a place" in refused.json()["detail"]


@pytest.mark.parametrize(("asked", "held"), [(None, 5), (3, 3), (9, 5)])
def test_the_operator_s_budget_holds(world: World, asked: float | None, held: float) -> None:
    settings = {} if asked is None else {"budget.usd": asked}
    assert world.start(BODY | {"settings": settings}).status_code == 202
    assert world.jobs.configs[0].budget.usd == held


def test_what_is_not_there_or_away(world: World) -> None:
    for path in ("/v1/jobs/none", "/v1/jobs/none/logs"):
        assert world.client.get(path, headers=KEY).status_code == 404
    assert world.client.post("/v1/jobs/none/cancel", headers=KEY).status_code == 404
    away = world.start({"config": BODY["config"], "settings": {"model.path": "away"}})
    assert (away.status_code, away.json()["detail"]) == (503, "Modal is away")
    assert world.start({}).status_code == 422


def test_the_factories_that_a_gateway_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text("out: theirs\nbudget: {usd: 1}\n")
    context = Gateway(tmp_path).context
    paths = {f"/v1/jobs{each}" for each in ("", "/{job}", "/{job}/logs", "/{job}/cancel")}
    for told in ("", str(file)):
        monkeypatch.setenv("PALAESTRA_TRAIN_CONFIG", told)
        for factory in (service.local, service.modal):
            assert {route.path for route in factory(context).routes} == paths  # type: ignore[attr-defined]
