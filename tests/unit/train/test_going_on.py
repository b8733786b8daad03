"""A run that goes on: groups that were saved, versions that were sent, and how stale tokens are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve.client import AdminClient
from serve.wire import PolicyKind, SwapMode
from train.publish.publisher import Publisher
from train.rollouts.rows import Episode, Group, Row
from train.rollouts.schedule import Schedule
from train.track.metrics import of_groups


def group(index: int, versions: Sequence[int] = ()) -> Group:
    count = len(versions)
    row = Row(
        ids=np.arange(count, dtype=np.int32),
        trained=np.ones(count, np.int8),
        logprobs=np.zeros(count, np.float32),
        versions=np.array(versions, np.int32),
    )
    episode = Episode(
        env_seed=2**32, repetition=0, rows=(row,), env_return=0, reward=0, success=False, turns=1
    )
    return Group(index=index, env_seed=2**32, episodes=(episode,), started_version=0)


@pytest.mark.parametrize("saved", [(2, 3), (3,), (2, 5)])
def test_saved_groups_that_are_taken_at_once_are_not_played_again(saved: tuple[int, ...]) -> None:
    plan = Schedule(
        groups_per_step=2,
        max_staleness=1,
        publish_every=1,
        steps=4,
        done_steps=1,
        groups=[group(index) for index in saved],
    )
    played = []
    if saved == (2, 3):
        assert plan.take(2, 0.0) is not None  # before anything was admitted
    else:
        first = plan.admit()
        assert first is not None
        played.append(first)
        plan.finish(group(first))
        plan.take(2, 0.0)
    for done in (2, 3, 4):
        plan.published(done)
        played += list(iter(plan.admit, None))
    assert sorted([*played, *saved]) == list(range(2, 8))


def test_staleness_counts_versions_and_not_what_their_numbers_skip() -> None:
    numbers = {5: 0, 11: 1, 12: 2}
    told = of_groups([group(0, (5, 11, 12, 12))], 12, numbers.__getitem__)
    assert (told["staleness_mean"], told["staleness_max"]) == (0.75, 2.0)


class Gateway:
    """Takes versions, whose digests are their folders' names."""

    def __init__(self, first: int = 1) -> None:
        self.versions: list[dict[str, Any]] = []
        self.pruned: list[int] = []
        self.first = first

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        match request.url.path:
            case "/admin/publish":
                told = {
                    "name": "m",
                    "kind": "full",
                    "created": 0.0,
                    "parent": None,
                    "path": None,
                    "size_bytes": 1,
                    "live_on": [],
                    "metrics": body["metrics"],
                    "digest": Path(body["path"]).name,
                    "version": len(self.versions) + self.first,
                }
                self.versions.append(told)
                return httpx.Response(200, json=told)
            case "/admin/policies":
                listed = {"name": "m", "latest": None, "versions": self.versions}
                return httpx.Response(200, json={"policies": [listed]})
            case "/admin/policies/prune":
                self.pruned += body["versions"]
                told = {"versions": body["versions"], "kept": [], "freed_bytes": 0}
                return httpx.Response(200, json=told)
        live = {"served": {"m": list(range(100))}, "current": {"m": 99}}
        replica = {
            "id": "r",
            "url": "u",
            "state": "ready",
            "reason": "",
            "in_flight": 0,
            "requests": 0,
            "errors": 0,
            "sessions": 0,
            **live,
        }
        demand = {"in_flight": 0, "held": 0}
        return httpx.Response(200, json={"desired": 1, "replicas": [replica], "demand": demand})


def send(gateway: Gateway, out: Path, steps: Sequence[int], kept: set[int]) -> None:
    """Publish by a publisher of its own, as a learner that was started again does."""
    publisher = Publisher(
        AdminClient("http://gateway", "k", transport=httpx.MockTransport(gateway)),
        "m",
        swap=SwapMode.KEEP,
        keep_versions=2,
        wait_s=1.0,
        memory=out / "sent.json",
    )
    publisher.kept = kept
    for step in steps:
        folder = out / f"step-{step}"
        folder.mkdir()
        publisher.publish(folder, PolicyKind.FULL, step=step, metrics={}, probes=None)
    publisher.close()


def test_versions_that_a_dead_learner_sent_are_let_go_of(tmp_path: Path) -> None:
    gateway = Gateway()
    send(gateway, tmp_path, (1, 2, 3), kept={2})
    assert gateway.pruned == [1]
    send(gateway, tmp_path, (2, 3, 4), kept={4})
    assert gateway.pruned == [1, 2, 3]


def test_another_gateways_versions_are_left_alone(tmp_path: Path) -> None:
    send(Gateway(), tmp_path, (1, 2, 3), kept=set())
    other = Gateway()
    other.versions = [
        {**version, "digest": "theirs"}
        for version in (
            {"name": "m", "kind": "full", "created": 0.0, "parent": None, "path": None}
            | {"size_bytes": 1, "live_on": [], "metrics": {}, "version": number}
            for number in (1, 2, 3)
        )
    ]
    send(other, tmp_path, (3, 4), kept=set())
    assert other.pruned == []


def test_a_damaged_memory_costs_only_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sent.json").write_text("{")
    gateway = Gateway()
    send(gateway, tmp_path, (1, 2, 3), kept=set())
    assert gateway.pruned == [1]
    assert "old versions may stay" in caplog.text
