"""The client against a gateway of canned answers; tests/unit/serve/front has the real routes."""

import json
from collections.abc import Callable

import httpx
import pytest

from serve.client import (
    AdminClient,
    PolicyStatus,
    PoolStatus,
    PrunedVersions,
    PublishedVersion,
    ReplicaStatus,
    UsageRow,
)
from serve.errors import AdminError
from serve.wire import PolicyKind, Probes, SwapMode

VERSION = {
    "name": "p",
    "version": 2,
    "kind": "lora",
    "created": 1.5,
    "parent": 1,
    "digest": "abc",
    "size_bytes": 10,
    "metrics": {"won": 0.5},
    "path": "/policies/p/000002",
    "live_on": ["r0"],
}
PUBLISHED = PublishedVersion(
    name="p",
    version=2,
    kind=PolicyKind.LORA,
    created_s=1.5,
    parent=1,
    digest="abc",
    size_bytes=10,
    metrics={"won": 0.5},
    path="/policies/p/000002",
    live_on=("r0",),
)
ROW = {
    "hour_s": 3600,
    "key_id": "ak_1",
    "model": "p",
    "requests": 1,
    "prompt_tokens": 2,
    "completion_tokens": 3,
    "estimated_tokens": 0,
}


def replica(id_: str, state: str, *versions: int, reason: str = "") -> dict[str, object]:
    return {
        "id": id_,
        "url": "http://127.0.0.1:1",
        "state": state,
        "reason": reason,
        "in_flight": 1,
        "requests": 2,
        "errors": 3,
        "sessions": 4,
        "served": {"p": list(versions)} if versions else {},
        "current": {"p": versions[-1]} if versions else {},
        "proof": {"label": f"p@{versions[-1]}", "difference": 0.25} if versions else None,
        "metrics": {"running": 1.0},
    }


def pool(*replicas: dict[str, object]) -> dict[str, object]:
    demand = {"in_flight": 5, "held": 6, "oldest_held_s": 0.0, "idle_s": 0.0}
    return {"desired": None, "replicas": list(replicas), "demand": demand}


class Gateway(httpx.BaseTransport):
    """Gives out answers in turn, the last one again and again, and notes what it was asked."""

    def __init__(self, *answers: object, status: int = 200) -> None:
        self.answers = list(answers)
        self.status = status
        self.asked: list[tuple[str, str, object]] = []
        self.keys: set[str | None] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.raw_path.decode(), body))
        self.keys.add(request.headers.get("Authorization"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            return httpx.Response(self.status, text=answer)
        return httpx.Response(self.status, json=answer)


def client(gateway: Gateway, url: str = "http://127.0.0.1:8000") -> AdminClient:
    return AdminClient(url, "key", transport=gateway)


def test_publish() -> None:
    gateway = Gateway(VERSION, status=201)
    with client(gateway) as admin:
        assert admin.publish("p", "/w", metrics={"won": 0.5}, swap=SwapMode.KEEP) == PUBLISHED
    body = {
        "name": "p",
        "path": "/w",
        "version": None,
        "kind": None,
        "parent": None,
        "metrics": {"won": 0.5},
        "swap": "keep",
    }
    assert gateway.asked == [("POST", "/admin/publish", body)]
    assert gateway.keys == {"Bearer key"}


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_rollback_at_any_of_a_gateways_urls(url: str) -> None:
    gateway = Gateway(VERSION)
    assert client(gateway, url).rollback("p", 2) == PUBLISHED
    assert gateway.asked == [
        ("POST", "/admin/rollback", {"name": "p", "version": 2, "swap": "wait"})
    ]


def test_policies() -> None:
    gateway = Gateway({"policies": [{"name": "p", "latest": 2, "versions": [VERSION]}]})
    assert client(gateway).policies() == (PolicyStatus(name="p", latest=2, versions=(PUBLISHED,)),)


def test_pool_and_scale() -> None:
    gateway = Gateway(pool(replica("r0", "ready", 1, 2)))
    expected = PoolStatus(
        desired=None,
        replicas=(
            ReplicaStatus(
                id="r0",
                url="http://127.0.0.1:1",
                state="ready",
                reason="",
                in_flight=1,
                requests=2,
                errors=3,
                sessions=4,
                served={"p": (1, 2)},
                current={"p": 2},
                proof=("p@2", 0.25),
            ),
        ),
        in_flight=5,
        held=6,
    )
    assert client(gateway).pool() == expected
    assert client(gateway).scale(3) == expected
    assert gateway.asked[1] == ("POST", "/admin/pool/scale", {"replicas": 3})


def test_usage() -> None:
    gateway = Gateway({"usage": [ROW]})
    assert client(gateway).usage(since_s=7200.0) == (
        UsageRow(
            hour_s=3600,
            key_id="ak_1",
            model="p",
            requests=1,
            prompt_tokens=2,
            completion_tokens=3,
            estimated_tokens=0,
        ),
    )
    assert gateway.asked[0][1] == "/admin/usage?since_s=7200.0"


def test_wait_ready_waits_for_every_ready_replica_of_the_policy() -> None:
    other = replica("r2", "ready") | {"served": {"q": [1]}, "current": {"q": 1}}
    gateway = Gateway(
        pool(),
        {},  # to one token
        pool(other),
        pool(replica("r0", "starting"), replica("r1", "ready", 1), other),
        pool(replica("r0", "ready", 2), replica("r1", "ready", 1), other),
        pool(replica("r0", "ready", 1, 2), replica("r1", "ready", 2), replica("r3", "down"), other),
    )
    client(gateway).wait_ready("p", 2, timeout_s=10)
    assert [path for _, path, *_ in gateway.asked] == [
        "/admin/pool",
        "/v1/completions",
        *["/admin/pool"] * 4,
    ]


def test_wait_ready_says_what_the_request_that_should_start_a_replica_got() -> None:
    gateway = Gateway(
        pool(), httpx.ConnectError("refused"), *[pool(replica("r1", "ready", 1))] * 50
    )
    with pytest.raises(TimeoutError, match="r1 is ready at 1"):
        client(gateway).wait_ready("p", 2, timeout_s=0.2)


def test_wait_ready_says_who_is_behind_and_why() -> None:
    gateway = Gateway(pool(replica("r0", "ready", 1, reason="stays"), replica("r1", "ready", 2)))
    told = r"p@2 is not live after 0 s: r0 is ready at 1 \(stays\); r1 is ready at 2"
    with pytest.raises(TimeoutError, match=told):
        client(gateway).wait_ready("p", 2, timeout_s=0)
    with pytest.raises(TimeoutError, match="no replica"):
        client(Gateway(pool())).wait_ready("p", 2, timeout_s=0)


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (409, {"error": {"message": "lies behind", "type": "x", "code": "y"}}, "409: lies behind"),
        (502, "<html>bad gateway", "502: <html>bad gateway"),
        (500, {"detail": "no"}, '500: {"detail":"no"}'),
        (200, "<html>", "200: that is no gateway"),
    ],
)
def test_refusals(status: int, answer: object, message: str) -> None:
    with pytest.raises(AdminError, match=message) as caught:
        client(Gateway(answer, status=status)).pool()
    assert caught.value.status == status


def test_no_answer_is_status_0() -> None:
    with pytest.raises(AdminError, match=r":8000/admin/pool: refused") as caught:
        client(Gateway(httpx.ConnectError("refused"))).pool()
    assert caught.value.status == 0


ACTIONS: list[Callable[[AdminClient], object]] = [AdminClient.pool, AdminClient.policies]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_closed_client_asks_nothing(action: Callable[[AdminClient], object]) -> None:
    gateway = Gateway(pool())
    with client(gateway) as admin:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        action(admin)
    assert gateway.asked == []


def test_publish_with_probes() -> None:
    gateway = Gateway(VERSION, status=201)
    probes = Probes(tokens=((1, 2),), logprobs=((-0.5,),), tolerance=0.01)
    assert client(gateway).publish("p", "/w", probes=probes) == PUBLISHED
    body = gateway.asked[0][2]
    assert isinstance(body, dict)
    assert body["probes"] == {"tokens": [[1, 2]], "logprobs": [[-0.5]], "tolerance": 0.01}


def test_prune() -> None:
    kept = [{"version": 4, "reason": "r0 serves it"}]
    gateway = Gateway({"versions": [2, 3], "kept": kept, "freed_bytes": 7})
    assert client(gateway).prune("p", {4, 3, 2}) == PrunedVersions(
        versions=(2, 3), kept={4: "r0 serves it"}, freed_bytes=7
    )
    assert gateway.asked == [
        ("POST", "/admin/policies/prune", {"name": "p", "versions": [2, 3, 4]})
    ]
