"""Checkpoints of a few bytes, whole in form; a store in a fresh folder; replicas without a vLLM."""

import asyncio
import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.engine.vllm import VllmAdmin
from serve.policies.manifest import PolicyInfo
from serve.policies.store import PolicyStore
from serve.pool.base import Pool
from serve.pool.replicas import Replica, ReplicaState
from serve.wire import Probes

Tensors = dict[str, tuple[int, ...]]
MakeFull = Callable[..., Path]
MakeLora = Callable[..., Path]

FULL: Tensors = {"model.embed_tokens.weight": (8, 4), "model.layers.0.q_proj.weight": (4, 4)}
LORA: Tensors = {
    "base_model.model.model.layers.0.q_proj.lora_A.weight": (2, 4),
    "base_model.model.model.layers.0.q_proj.lora_B.weight": (4, 2),
}


def safetensors(tensors: Tensors, seed: int) -> bytes:
    header, data = {}, b""
    rng = random.Random(seed)
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + size],
        }
        data += rng.randbytes(size)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def make_full(tmp_path: Path) -> MakeFull:
    def make(name: str, seed: int = 0, tensors: Tensors = FULL) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "tokenizer.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(b"not served")
        (folder / "trainer_state.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(safetensors(tensors, seed))
        return folder

    return make


@pytest.fixture
def make_lora(tmp_path: Path) -> MakeLora:
    def make(name: str, seed: int = 0, tensors: Tensors = LORA) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
        (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors, seed))
        return folder

    return make


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "policies")


PROBED = ((5, 6, 7), (8, 9))


def probes_of(root: str) -> Probes:
    """Return probes that weights at this path pass."""
    return Probes(
        tokens=PROBED,
        logprobs=tuple(tuple(logprobs_of(root, tokens)) for tokens in PROBED),
        tolerance=1e-6,
    )


def logprobs_of(root: str, tokens: Sequence[int]) -> list[float]:
    """Return what the weights at this path say to each token but the first."""
    draw = random.Random(root)
    return [-draw.random() * (token + 1) for token in tokens[1:]]


class FakeVllm(httpx.AsyncBaseTransport):
    """A vLLM's administrative routes over weights that are only a path. Notes what it did.

    `refuse` has paths of weights, or routes, that it refuses; `hold` keeps an update waiting. What
    is stale is taken and labelled, while the engine computes with what it had before.
    """

    def __init__(self, name: str = "p", root: str = "/boot") -> None:
        self.name = name
        self.root = root
        self.computes: dict[str, str] = {}
        """Model -> the weights it really computes with, where they are not those it says."""
        self.is_stale = False
        self.label = "default"
        self.adapters: dict[str, str] = {}
        self.is_paused = False
        self.is_reachable = True
        self.is_swappable = True
        self.refuse: set[str] = set()
        self.hold: asyncio.Event | None = None
        self.did: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.is_reachable:
            raise httpx.ConnectError("connection refused")
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        if path == "/v1/models":
            return httpx.Response(200, json={"data": self.cards()})
        if path in self.refuse or not self.is_swappable:
            return httpx.Response(404, json={"detail": "Not Found"})
        handler = getattr(self, f"on_{path.rpartition('/')[2]}", None)
        answer = await handler(body) if handler else {}
        status = 500 if "error" in answer else 200
        return httpx.Response(status, json=answer)

    def cards(self) -> list[dict[str, object]]:
        cards: list[dict[str, object]] = [{"id": self.name, "root": self.root, "parent": None}]
        for name, root in self.adapters.items():
            cards.append({"id": name, "root": root, "parent": self.name})
        return cards

    async def on_weight_info(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"weight_version": self.label}

    async def on_is_paused(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"is_paused": self.is_paused}

    async def on_pause(self, body: dict[str, Any]) -> dict[str, Any]:
        self.is_paused = True
        return {}

    async def on_resume(self, body: dict[str, Any]) -> dict[str, Any]:
        self.is_paused = False
        return {}

    async def on_update_weight_version(self, body: dict[str, Any]) -> dict[str, Any]:
        self.label = body["new_version"]
        return {}

    async def on_update_weights(self, body: dict[str, Any]) -> dict[str, Any]:
        path, applies = body["update_info"]["path"], body["update_info"]["apply"]
        if path in self.refuse:
            return {"error": "does not fit"}
        if applies and self.hold is not None:
            await self.hold.wait()
        if applies:
            self.take(self.name, self.root if self.is_stale else path)
            self.root = path
        return {}

    async def on_completions(self, body: dict[str, Any]) -> dict[str, Any]:
        model, tokens = body["model"], body["prompt"]
        root = self.computes.get(model) or {self.name: self.root, **self.adapters}[model]
        values = logprobs_of(root, tokens)
        found = [{str(token): {"logprob": v}} for token, v in zip(tokens[1:], values, strict=True)]
        self.did.append(f"probe {model}")
        return {"choices": [{"prompt_logprobs": [None, *found]}]}

    async def on_abort_requests(self, body: dict[str, Any]) -> dict[str, Any]:
        self.did.append("abort")
        return {}

    def take(self, model: str, root: str) -> None:
        self.computes[model] = self.computes.get(model, root) if self.is_stale else root

    async def on_finish_weight_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self.label = body["weight_version"]
        self.did.append(f"swap {self.label}")
        return {}

    async def on_load_lora_adapter(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["lora_path"] in self.refuse or body["lora_name"] in self.adapters:
            return {"error": "refused"}
        self.adapters[body["lora_name"]] = body["lora_path"]
        self.take(body["lora_name"], self.root if self.is_stale else body["lora_path"])
        self.did.append(f"load {body['lora_name']}")
        return {}

    async def on_unload_lora_adapter(self, body: dict[str, Any]) -> dict[str, Any]:
        del self.adapters[body["lora_name"]]
        self.computes.pop(body["lora_name"], None)
        self.did.append(f"unload {body['lora_name']}")
        return {}


class FakePool(Pool):
    """Replicas with a FakeVllm each. `failed` takes one out for good."""

    def __init__(self, engines: Sequence[FakeVllm]) -> None:
        super().__init__()
        self.replicas = [
            Replica(f"r{number}", "127.0.0.1", number + 1) for number in range(len(engines))
        ]
        self.engines = {
            replica.base_url: engine for replica, engine in zip(self.replicas, engines, strict=True)
        }
        self.states: list[str] = []
        self.renewed: list[str] = []
        self.listeners.append(lambda replica: self.states.append(f"{replica.id} {replica.state}"))

    def admin(self, base_url: str) -> VllmAdmin:
        return VllmAdmin(base_url, transport=self.engines[base_url])

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def wake(self) -> None: ...

    def failed(self, replica: Replica, reason: str) -> None:
        replica.state, replica.reason = ReplicaState.DOWN, reason
        self.tell(replica)

    def renew(self, replica: Replica, reason: str) -> None:
        self.renewed.append(f"{replica.id}: {reason}")

    async def scale(self, count: int) -> None: ...


class World:
    """A store with policies, and replicas that were started from version 1 of `p`."""

    def __init__(
        self, store: PolicyStore, make_full: MakeFull, make_lora: MakeLora, engines: list[FakeVllm]
    ) -> None:
        self.store = store
        self.boot = make_full("boot", 1000)
        for engine in engines:
            engine.root = str(self.boot)
        self.engines = engines
        self.pool = FakePool(engines)
        self._made = [make_full, make_lora]
        self._seed = 0

    @property
    def engine(self) -> FakeVllm:
        return self.engines[0]

    @property
    def replica(self) -> Replica:
        return self.pool.replicas[0]

    def forget(self) -> None:
        """Begin to note what happens from here on."""
        self.pool.states.clear()
        for engine in self.engines:
            engine.did.clear()

    def full(self) -> Path:
        self._seed += 1
        return self._made[0](f"full-{self._seed}", self._seed)

    def lora(self) -> Path:
        self._seed += 1
        return self._made[1](f"lora-{self._seed}", self._seed)

    def publish_full(self, *, probes: str = "") -> PolicyInfo:
        return self._publish(self.full(), None, probes)

    def publish_lora(self, parent: int | None = None, *, probes: str = "") -> PolicyInfo:
        return self._publish(self.lora(), parent, probes)

    def _publish(self, folder: Path, parent: int | None, probes: str) -> PolicyInfo:
        """Publish with probes that `right` weights pass, and `wrong` ones do not."""
        known = self.store.register("p", self.boot)
        number = max(known.version, *(info.version for info in self.store.versions("p"))) + 1
        root = str(self.store.root / "p" / f"{number:06d}") if probes == "right" else "elsewhere"
        told = probes_of(root) if probes else None
        return self.store.publish("p", folder, parent=parent, probes=told)

    def path(self, version: int) -> Path:
        path = self.store.info("p", version).path
        assert path is not None
        return path


@pytest.fixture
def make_world(
    store: PolicyStore, make_full: MakeFull, make_lora: MakeLora
) -> Callable[..., World]:
    def make(replicas: int = 1, *, is_swappable: bool = True, name: str = "p") -> World:
        engines = [FakeVllm(name) for _ in range(replicas)]
        for engine in engines:
            engine.is_swappable = is_swappable
        return World(store, make_full, make_lora, engines)

    return make
