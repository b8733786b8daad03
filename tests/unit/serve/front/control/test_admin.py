"""The administrative routes: what they change, what they audit, and whom they let in."""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from serve.accounts.limits import Limits
from serve.errors import ConfigError, SwapFailed
from serve.front.control.app import Services
from serve.front.testing import InstantSync, StillPool, client_of, rehearsal
from serve.policies.store import PolicyStore
from serve.wire import Probes, Scope, SwapMode

Play = Callable[[Services, httpx.AsyncClient], Awaitable[None]]
JSON = {"content-type": "application/json"}


def _play(state_dir: Path, play: Play, **options: str) -> None:
    async def run() -> None:
        async with rehearsal(state_dir) as services, client_of(services, **options) as client:
            await play(services, client)

    asyncio.run(run())


def _checkpoint(folder: Path, fill: int) -> Path:
    """Write the smallest folder that is a checkpoint."""
    folder.mkdir()
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    weights = struct.pack("<Q", len(text)) + text + struct.pack("<f", fill)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def _code(answer: httpx.Response) -> tuple[int, str | int]:
    return answer.status_code, answer.json()["error"]["code"]


def test_publish_and_roll_back(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        assert isinstance(services.sync, InstantSync)
        for number in (1, 2):
            path = _checkpoint(tmp_path / f"checkpoint-{number}", number)
            body = {"name": "p", "path": str(path), "metrics": {"reward": 0.5}, "swap": "keep"}
            answer = await client.post("/admin/publish", json=body)
            assert answer.status_code == 201, answer.text
            assert answer.json()["version"] == number
        answer = await client.post("/admin/rollback", json={"name": "p", "version": 1})
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
        assert services.sync.converged == [
            ("p", SwapMode.KEEP),
            ("p", SwapMode.KEEP),
            ("p", SwapMode.WAIT),
        ]
        (policy,) = (await client.get("/admin/policies")).json()["policies"]
        assert (policy["name"], policy["latest"]) == ("p", 1)
        first, second = policy["versions"]
        assert first["live_on"] == second["live_on"] == ["r0", "r1"]
        assert (second["kind"], second["metrics"], second["parent"]) == (
            "full",
            {"reward": 0.5},
            1,
        )
        log = (await client.get("/admin/audit")).json()["audit"]
        assert [(entry["actor"], entry["action"], entry["target"]) for entry in log] == [
            ("anonymous", "policy.rollback", "p@1"),
            ("anonymous", "policy.publish", "p@2"),
            ("anonymous", "policy.publish", "p@1"),
        ]

    _play(tmp_path / "state", play)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("publish", {"name": "p", "path": "nowhere"}, (400, "bad_policy")),
        ("publish", {"name": "p", "path": "a\0b"}, (400, 400)),
        ("publish", {"name": "p@1", "path": "x"}, (400, 400)),
        ("publish", {"name": "p", "path": "x", "other": 1}, (400, 400)),
        ("publish", {"name": "p", "path": "CHECKPOINT", "version": 1}, (409, "version_conflict")),
        ("rollback", {"name": "p", "version": 7}, (404, "policy_not_found")),
        ("rollback", {"name": "unknown", "version": 1}, (404, "policy_not_found")),
        ("keys/revoke", {"id": "ak_00000000"}, (404, "key_not_found")),
        ("keys/rotate", {"id": "nonsense"}, (400, "bad_request")),
        ("keys", {"scopes": []}, (400, 400)),
        ("keys", {"rpm": 0}, (400, 400)),
        ("publish", {"name": "p", "path": "x", "probes": {}}, (400, 400)),
        (
            "publish",
            {
                "name": "p",
                "path": "x",
                "probes": {"tokens": [[1, 2]], "logprobs": [[-1, -1]], "tolerance": 1},
            },
            (400, 400),
        ),
        ("policies/prune", {"name": "unknown", "versions": [1]}, (404, "policy_not_found")),
        ("policies/prune", {"name": "p", "versions": []}, (400, 400)),
        ("login", {"key": "a", "user": "b", "password": "c"}, (400, 400)),
    ],
)
def test_what_cannot_be_is_refused(
    path: str, body: dict[str, object], expected: tuple[int, str | int], tmp_path: Path
) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        services.policies.publish("p", _checkpoint(tmp_path / "one", 1))
        if body.get("path") == "CHECKPOINT":
            body["path"] = str(_checkpoint(tmp_path / "two", 2))
        assert _code(await client.post(f"/admin/{path}", json=body)) == expected

    _play(tmp_path / "state", play)


def test_a_key_lives_from_creation_to_revocation(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        made = await client.post("/admin/keys", json={"name": "me", "scopes": ["admin"], "rpm": 9})
        assert made.status_code == 201
        key, key_id = made.json()["key"], made.json()["id"]
        assert key.startswith(f"{key_id}_")
        assert _code(await client.get("/admin/keys")) == (401, "invalid_api_key")
        client.headers["authorization"] = f"Bearer {key}"
        (shown,) = (await client.get("/admin/keys")).json()["keys"]
        assert (shown["name"], shown["rpm"], shown["tpm"], shown["used_tokens"]) == (
            "me",
            9,
            None,
            0,
        )
        assert key not in (await client.get("/admin/overview")).text
        rotated = (await client.post("/admin/keys/rotate", json={"id": key_id})).json()["key"]
        assert _code(await client.get("/admin/keys")) == (401, "invalid_api_key")
        client.headers["authorization"] = f"Bearer {rotated}"
        revoked = await client.post("/admin/keys/revoke", json={"id": key_id})
        assert revoked.json()["revoked_s"] is not None
        assert _code(await client.get("/admin/keys")) == (401, "invalid_api_key")
        actions = [(entry.actor, entry.action) for entry in services.store.audit_log()]
        assert actions == [
            (f"key:{key_id}", "key.revoke"),
            (f"key:{key_id}", "key.rotate"),
            ("anonymous", "key.create"),
        ]

    _play(tmp_path, play)


@pytest.mark.parametrize("scope", [Scope.INFER, Scope.EVAL, Scope.TRAIN])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "pool"),
        ("GET", "policies"),
        ("GET", "keys"),
        ("GET", "usage"),
        ("GET", "audit"),
        ("GET", "overview"),
        ("POST", "pool/scale"),
        ("POST", "publish"),
        ("POST", "rollback"),
        ("POST", "policies/prune"),
        ("POST", "keys"),
        ("POST", "keys/revoke"),
        ("POST", "keys/rotate"),
    ],
)
def test_only_admins_get_in(method: str, path: str, scope: Scope, tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        _, key = services.store.create_key("a", [scope], Limits(), actor="test")
        await services.auth.reload()
        url = f"/admin/{path}"
        assert _code(await client.request(method, url, headers=JSON))[0] == 401
        client.headers["authorization"] = f"Bearer {key}"
        answer = await client.request(method, url, headers=JSON)
        assert _code(answer) == (403, "insufficient_scope")
        assert (await client.get("/v1/models")).status_code == 200

    _play(tmp_path, play)


class _Fixed(StillPool):
    async def scale(self, count: int) -> None:
        raise ConfigError("the set is fixed")


def test_scaling(tmp_path: Path) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        assert isinstance(services.pool, StillPool)
        answer = await client.post("/admin/pool/scale", json={"replicas": 3})
        assert answer.status_code == 200
        assert [replica["id"] for replica in answer.json()["replicas"]] == ["r0", "r1"]
        assert services.pool.scaled_to == [3]
        services.pool.scale = _Fixed().scale  # type: ignore[method-assign]
        answer = await client.post("/admin/pool/scale", json={"replicas": 3})
        assert _code(answer) == (400, "bad_request")

    _play(tmp_path, play)


def test_a_converge_that_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play(services: Services, client: httpx.AsyncClient) -> None:
        assert isinstance(services.sync, InstantSync)
        services.sync.error = SwapFailed("no room")
        path = _checkpoint(tmp_path / "one", 1)
        answer = await client.post("/admin/publish", json={"name": "p", "path": str(path)})
        assert (answer.status_code, answer.json()["live_on"]) == (201, [])

    _play(tmp_path / "state", play)
    assert "converge p failed: no room" in caplog.text


def test_probes_are_kept_and_old_weights_are_pruned(tmp_path: Path) -> None:
    probes = {"tokens": [[1, 2, 3]], "logprobs": [[-0.5, -1]], "tolerance": 0.01}

    async def play(services: Services, client: httpx.AsyncClient) -> None:
        for number in (1, 2, 3):
            path = _checkpoint(tmp_path / f"checkpoint-{number}", number)
            body = {"name": "p", "path": str(path), "probes": probes}
            assert (await client.post("/admin/publish", json=body)).status_code == 201
        assert isinstance(services.policies, PolicyStore)
        kept = services.policies.probes(services.policies.info("p", 2))
        assert kept == Probes.from_json(probes)
        services.policies.holders.append(lambda name: {2: "r0 serves it"})
        answer = await client.post(
            "/admin/policies/prune", json={"name": "p", "versions": [1, 2, 3]}
        )
        assert answer.status_code == 200
        assert answer.json()["versions"] == [1]
        assert answer.json()["kept"] == [
            {"version": 2, "reason": "r0 serves it"},
            {"version": 3, "reason": "'p' means it"},
        ]
        (policy,) = (await client.get("/admin/policies")).json()["policies"]
        assert [version["path"] is None for version in policy["versions"]] == [True, False, False]
        entry = (await client.get("/admin/audit")).json()["audit"][0]
        assert (entry["action"], entry["target"], entry["detail"]) == (
            *("policy.prune", "p", "versions: 1"),
        )

    _play(tmp_path / "state", play)
