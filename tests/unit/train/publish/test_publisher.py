"""Versions on their way to a gateway that is away, refuses, or takes them; and which ones stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.client import AdminClient
from serve.wire import PolicyKind, Probes, SwapMode
from train.errors import GatewayLost, PublishFailed
from train.publish.publisher import Publisher, Sent

PROBES = Probes(tokens=((1, 2, 3),), logprobs=((-1.0, -2.0),), tolerance=0.5)

Answer = Callable[[httpx.Request], httpx.Response | None]


def refusal(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}})


class Gateway:
    """Keeps versions and one replica; `first` may answer in its place, else returns None."""

    def __init__(self, *first: Answer) -> None:
        self.first = list(first)
        self.published: list[dict[str, Any]] = []
        self.pruned: list[list[int]] = []
        self.asked: list[str] = []
        self.in_use: set[int] = set()
        self.state, self.reason = "ready", ""
        self.digests: list[bytes] = []
        self.metrics: list[dict[str, float]] = []
        self.proof: dict[str, Any] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.first:
            answer = self.first.pop(0)(request)
            if answer is not None:
                return answer
        body = json.loads(request.content or b"{}")
        if request.url.path == "/admin/publish":
            return httpx.Response(200, json=self.publish(body))
        if request.url.path == "/admin/policies/prune":
            return httpx.Response(200, json=self.prune(body["versions"]))
        assert request.url.path == "/admin/pool"
        return httpx.Response(200, json=self.pool())

    def publish(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give equal weights the number, and the metrics, that they had."""
        digest = (Path(body["path"]) / "weights").read_bytes()
        if digest not in self.digests:
            self.digests.append(digest)
            self.metrics.append(body["metrics"])
        self.published.append(body)
        told = {"kind": "full", "created": 0.0, "digest": "d", "size_bytes": 1, "live_on": []}
        number = self.digests.index(digest) + 1
        return {**body, **told, "version": number, "metrics": self.metrics[number - 1]}

    def prune(self, versions: list[int]) -> dict[str, Any]:
        self.pruned.append(versions)
        kept = [{"version": v, "reason": "in use"} for v in versions if v in self.in_use]
        gone = [v for v in versions if v not in self.in_use]
        return {"versions": gone, "kept": kept, "freed_bytes": 0}

    def pool(self) -> dict[str, Any]:
        replica = {
            "id": "replica-3",
            "url": "u",
            "state": self.state,
            "reason": self.reason,
            "in_flight": 0,
            "requests": 0,
            "errors": 0,
            "sessions": 0,
            "served": {"m": list(range(1, len(self.digests) + 1))},
            "current": {"m": len(self.digests)},
            "proof": self.proof,
        }
        demand = {"in_flight": 0, "held": 0}
        return {"desired": 1, "replicas": [replica], "demand": demand}


class Sends:
    """A publisher with a clock that only its sleeps move."""

    def __init__(self, gateway: Gateway, out: Path, *, keep: int = 4, wait_s: float = 5.0) -> None:
        self.gateway, self.out, self.now_s = gateway, out, 100.0
        self.publisher = Publisher(
            AdminClient("http://gateway", "k", transport=httpx.MockTransport(gateway)),
            "m",
            swap=SwapMode.KEEP,
            keep_versions=keep,
            wait_s=wait_s,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def send(self, step: int, *, weights: str = "", kind: PolicyKind = PolicyKind.FULL) -> Sent:
        folder = self.out / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(weights or str(step))
        return self.publisher.publish(
            folder, kind, step=step, metrics={"x": 2.0}, probes=PROBES if step else None
        )


def away(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def starting(request: httpx.Request) -> httpx.Response:
    return refusal(503, "starting")


def test_a_version_says_what_it_is(tmp_path: Path) -> None:
    gateway = Gateway()
    sends = Sends(gateway, tmp_path)
    assert sends.send(0).version == 1
    assert sends.send(1).version == 2
    first, second = gateway.published
    assert first["name"] == "m"
    assert first["path"] == str(tmp_path / "step-0")
    assert first["swap"] == "keep"
    assert first["metrics"] == {"step": 0.0, "x": 2.0}
    assert "probes" not in first
    assert Probes.from_json(second["probes"]) == PROBES
    assert not list(tmp_path.iterdir())  # the gateway has its own copy


def test_how_near_the_replicas_came_is_told(tmp_path: Path) -> None:
    gateway = Gateway()
    sends = Sends(gateway, tmp_path)
    assert sends.send(0).probe_gap is None
    gateway.proof = {"label": "m@2", "difference": 3e-6}
    assert sends.send(1).probe_gap == 3e-6
    assert sends.send(2).probe_gap is None  # what was proven is another version


def test_it_is_sent_until_the_gateway_is_there(tmp_path: Path) -> None:
    gateway = Gateway(away, starting, away)
    sends = Sends(gateway, tmp_path)
    sent = sends.send(1)
    assert gateway.asked[:4] == ["/admin/publish"] * 4
    assert len(gateway.published) == 1
    assert sent == Sent(version=1, seconds=1.5)


def test_a_gateway_that_goes_away_in_between_is_asked_again(tmp_path: Path) -> None:
    gateway = Gateway(lambda _: None, starting, away)
    assert Sends(gateway, tmp_path).send(1).seconds == 1.0
    assert gateway.asked == ["/admin/publish", *["/admin/pool"] * 3]


def test_one_that_stays_away_is_lost(tmp_path: Path) -> None:
    sends = Sends(Gateway(*[away] * 99), tmp_path)
    with pytest.raises(GatewayLost, match=r"no gateway for 5 s: .*refused"):
        sends.send(1)
    assert 105 < sends.now_s < 107
    assert (tmp_path / "step-1" / "weights").exists()


@pytest.mark.parametrize("status", [400, 401, 409, 422, 500, 507])
def test_a_refusal_is_said_at_once(tmp_path: Path, status: int) -> None:
    sends = Sends(Gateway(lambda _: refusal(status, "no adapter of rank 999")), tmp_path)
    with pytest.raises(PublishFailed, match=r"m: .*no adapter of rank 999"):
        sends.send(1)
    assert sends.now_s == 100.0


def test_a_replica_that_computes_something_else_is_named(tmp_path: Path) -> None:
    gateway = Gateway()
    gateway.state, gateway.reason = "failed", "probe 0 differs by 1.7 nats at token 2"
    with pytest.raises(PublishFailed, match=r"m@1 is not live .*replica-3 is failed.*1\.7 nats"):
        Sends(gateway, tmp_path, wait_s=0.0).send(1)


def test_a_full_version_is_the_parent_of_the_next(tmp_path: Path) -> None:
    gateway = Gateway()
    sends = Sends(gateway, tmp_path)
    for step in range(3):
        sends.send(step)
    assert [each["parent"] for each in gateway.published] == [None, 1, 2]


def test_an_adapter_is_the_parent_of_nothing(tmp_path: Path) -> None:
    gateway = Gateway()
    sends = Sends(gateway, tmp_path)
    for step in range(3):
        sends.send(step, kind=PolicyKind.LORA)
    assert [each["parent"] for each in gateway.published] == [None, None, None]
    assert [each["kind"] for each in gateway.published] == ["lora"] * 3


def test_old_versions_go_and_those_of_checkpoints_stay(tmp_path: Path) -> None:
    gateway = Gateway()
    sends = Sends(gateway, tmp_path, keep=2)
    sends.send(1)
    sends.send(2)
    assert gateway.pruned == []
    sends.publisher.kept = {2}
    for step in (3, 4, 5):
        sends.send(step)
    assert gateway.pruned == [[1], [3]]  # 2 is a checkpoint's, 4 and 5 are the newest
    sends.publisher.kept = set()  # its checkpoint is gone
    sends.send(6)
    assert gateway.pruned[-1] == [2, 4]


def test_what_the_gateway_cannot_let_go_of_is_named_again(tmp_path: Path) -> None:
    gateway = Gateway()
    gateway.in_use = {1}
    sends = Sends(gateway, tmp_path, keep=1)
    for step in (1, 2, 3):
        sends.send(step)
    assert gateway.pruned == [[1], [1, 2]]
    gateway.in_use = set()
    sends.send(4)
    assert gateway.pruned[-1] == [1, 3]


def test_weights_that_were_published_before_are_new_again(tmp_path: Path) -> None:
    gateway = Gateway()
    sends = Sends(gateway, tmp_path, keep=2)
    versions = [sends.send(step, weights=w).version for step, w in enumerate("abac")]
    assert versions == [1, 2, 1, 3]
    assert gateway.pruned == [[2]]  # 1 is newer than 2


def test_a_step_that_changed_nothing_lets_go_of_nothing(tmp_path: Path) -> None:
    """Its version is that of the step before, which has to go in the end as any other."""
    gateway = Gateway()
    sends = Sends(gateway, tmp_path, keep=1)
    assert [sends.send(step, weights="same").version for step in range(3)] == [1, 1, 1]
    assert gateway.pruned == []
    assert sends.send(3).version == 2
    assert gateway.pruned == [[1]]


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    gateway = Gateway()
    gateway.digests, gateway.metrics = [b"same"], [{}]
    sends = Sends(gateway, tmp_path, keep=1)
    assert [sends.send(0, weights="same").version, sends.send(1).version] == [1, 2]
    assert sends.send(2).version == 3
    assert gateway.pruned == [[2]]


def test_nothing_can_be_asked_of_it_when_it_is_closed(tmp_path: Path) -> None:
    sends = Sends(Gateway(), tmp_path)
    sends.publisher.close()
    with pytest.raises(RuntimeError, match="closed"):
        sends.send(1)
