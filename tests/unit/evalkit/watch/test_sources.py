"""Where versions come from: a gateway's list, and a folder whose checkpoints are published."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadConfig, RunFailed, Unauthorized, UnknownModel, Unreachable
from evalkit.specs import parse_model
from evalkit.testing import FakeClock, FakeServer, Said
from evalkit.watch.sources import FolderSource, Gateway, GatewaySource, Version


def cards(*versions: int, policy: str = "tiny") -> list[dict[str, Any]]:
    """Return what a gateway lists of a policy with these live versions."""
    latest = max(versions, default=0)
    own = [{"id": f"{policy}@{v}", "policy_version": v} for v in versions]
    return [{"id": policy, "policy_version": latest}, *own]


def _gateway(url: str, clock: FakeClock | None = None, key: str | None = None) -> Gateway:
    clock = clock or FakeClock()
    return Gateway(parse_model(url), key, sleep=clock.sleep)


def checkpoint(folder: Path, step: int, *, weights: bytes = b"weights") -> Path:
    """Write a complete checkpoint."""
    path = folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(weights)
    files = [{"name": "model.safetensors", "size_bytes": 7, "sha256": None}]
    marker = {"format": "train-checkpoint/1", "step": step, "files": files}
    (path / "COMPLETE").write_text(json.dumps(marker))
    return path


def test_live_versions_are_listed_by_number() -> None:
    with FakeServer(lambda _: "", [*cards(10, 9), *cards(3, policy="other")]) as server:
        source = GatewaySource(_gateway(f"{server.url}#tiny"))
        found = asyncio.run(source.versions())
    assert found == [
        Version(name="tiny@9", label="v9", number=9),
        Version(name="tiny@10", label="v10", number=10),
    ]


def test_the_only_policy_needs_no_name_and_may_have_nothing_live() -> None:
    with FakeServer(lambda _: "", cards()) as server:
        source = GatewaySource(_gateway(server.url))
        assert asyncio.run(source.versions()) == []
        server.models = cards(4)
        assert [each.name for each in asyncio.run(source.versions())] == ["tiny@4"]


@pytest.mark.parametrize(
    ("models", "name", "said"),
    [
        ([{"id": "llama"}], "", "lists no versions: expected a gateway"),
        (
            [*cards(1), *cards(1, policy="other")],
            "",
            r"several policies \(other, tiny\): add #NAME",
        ),
        (cards(1), "#nope", "has no policy 'nope'; it has tiny"),
        ((404, {}), "", "lists no versions"),
    ],
)
def test_what_has_no_versions_is_refused(models: Any, name: str, said: str) -> None:
    with FakeServer(lambda _: "", models) as server, pytest.raises(UnknownModel, match=said):
        asyncio.run(GatewaySource(_gateway(server.url + name)).versions())


def test_a_gateway_that_is_away_is_unreachable() -> None:
    with FakeServer(lambda _: "") as server:
        url = server.url
    with pytest.raises(Unreachable):
        asyncio.run(GatewaySource(_gateway(url)).versions())


def test_only_complete_checkpoints_are_versions(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (20, 10):
        checkpoint(folder, step)
    checkpoint(folder, 30, weights=b"cut")
    checkpoint(folder, 40).joinpath("COMPLETE").write_text("{")
    checkpoint(folder, 50).joinpath("COMPLETE").unlink()
    checkpoint(folder, 60).rename(folder / ".step-000060.tmp")
    checkpoint(folder, 70).rename(folder / "step-000070 copy")
    for place in (folder, tmp_path):
        source = FolderSource(place, _gateway("http://127.0.0.1:9"), wait_s=1.0)
        assert asyncio.run(source.versions()) == [
            Version(name="step-000010", label="step-000010", number=10),
            Version(name="step-000020", label="step-000020", number=20),
        ]
    absent = FolderSource(tmp_path / "nope", _gateway("http://127.0.0.1:9"), wait_s=1.0)
    with pytest.raises(BadConfig, match="neither a URL nor a folder of checkpoints"):
        asyncio.run(absent.versions())


def test_a_trainer_that_has_not_begun_yet_is_waited_for(tmp_path: Path) -> None:
    source = FolderSource(tmp_path, _gateway("http://127.0.0.1:9"), wait_s=1.0)
    assert asyncio.run(source.versions()) == []
    checkpoint(tmp_path / "checkpoints", 10)
    assert [version.number for version in asyncio.run(source.versions())] == [10]
    inner = FolderSource(tmp_path / "checkpoints", _gateway("http://127.0.0.1:9"), wait_s=1.0)
    assert source.place == inner.place == tmp_path


STEP = Version(name="step-000010", label="step-000010", number=10)


def _served(
    folder: Path,
    publish: Callable[[FakeServer], Said],
    before: str | None = None,
    key: str | None = None,
) -> tuple[str, FakeServer, FakeClock]:
    clock = FakeClock()

    def answer(_: dict[str, Any]) -> Said:
        return publish(server)

    server = FakeServer(answer, cards(1))
    with server:
        source = FolderSource(folder, _gateway(server.url, clock, key), wait_s=5.0)
        return asyncio.run(source.served(STEP, before)), server, clock


def test_a_checkpoint_is_published_and_waited_for(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 10)

    def publish(server: FakeServer) -> Said:
        server.models = cards(1, 2)
        return 201, {"name": "tiny", "version": 2}

    name, server, clock = _served(tmp_path, publish, before="tiny@7", key="secret")
    assert name == "tiny@2"
    (request,) = server.received
    assert request.path == "/admin/publish"
    assert request.body == {"name": "tiny", "path": str(path)}
    assert request.headers["authorization"] == "Bearer secret"
    assert clock.slept_s == []


def test_one_that_still_is_live_is_not_published_again(tmp_path: Path) -> None:
    name, server, _ = _served(tmp_path, lambda _: (500, {}), before="tiny@1")
    assert (name, server.received) == ("tiny@1", [])


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ((403, {"error": {"message": "no"}}), Unauthorized, "a key with the scope admin"),
        ((404, {"error": {"message": "no route"}}), RunFailed, "HTTP 404: no route"),
        ((201, {"name": "tiny"}), RunFailed, "answered no version"),
        ((201, {"version": 9}), RunFailed, "tiny@9 is not live after 5 s"),
    ],
)
def test_what_is_not_published_is_said(
    tmp_path: Path, answer: Said, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        _served(tmp_path, lambda _: answer)
