"""FakeEngine: the port's instance that serves canned answers over HTTP/1.1. Knows no model."""

import asyncio
from pathlib import Path
from typing import Final

import orjson

from serve.engine.base import Engine
from serve.errors import EngineDied
from serve.testing.admin import Admin
from serve.testing.answers import Answerer, Reply
from serve.testing.connection import FORMS, Connection
from serve.testing.faults import Faults
from serve.testing.lookups import LOOKUPS
from serve.testing.plain import CREATED
from serve.testing.prefix_cache import PrefixCache
from serve.testing.protocol import JSON
from serve.testing.scheduler import Scheduler
from serve.testing.stats import Stats
from serve.testing.weights import Served

_METRICS: Final = b"text/plain; version=0.0.4; charset=utf-8"
_OVERSIZED_BYTES: Final = 1_000_000


class FakeEngine(Engine):
    """An OpenAI-compatible server on loopback whose replies need no model.

    Routes, as vLLM has them: POST /v1/chat/completions, /v1/completions, /v1/responses,
    /v1/embeddings, /tokenize, /detokenize, /inference/v1/generate; GET /v1/models, /health,
    /version, /metrics; with `dev_mode` those for weights and adapters too. For tests, GET /stats
    (counts) and GET /requests (how many good answers each X-Request-ID got). Not imitated: n > 1,
    several prompts in one request, stored responses.
    """

    def __init__(
        self,
        reply: Reply = "Hello from FakeEngine.",
        *,
        model: str = "fake",
        max_model_len: int = 32_768,
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        itl_s: float = 0.0,
        kv_blocks: int = 0,
        most_running: int | None = None,
        dev_mode: bool = False,
        versioned_reply: bool = False,
        root: Path | None = None,
        faults: Faults = Faults(),  # noqa: B008  # frozen
    ) -> None:
        """`itl_s` lies before every token; streams then go an event at a time.

        `kv_blocks` is the size of its prefix cache, in blocks of 16 tokens; of more requests than
        `most_running` some wait. `dev_mode` adds vLLM's routes to change its weights; `root` is
        the checkpoint that it seems to have been started with. With `versioned_reply` it ignores
        `reply` and says `weights NAME`, repeating up to max_tokens the NAME of the weights that
        make the token: the first 8 hex digits of a digest of the checkpoint's bytes, or `boot`.
        """
        self.model = model
        self.faults = faults
        self.stats = Stats()
        self.itl_s = itl_s
        self.served = Served(model, root, is_stale=faults.stale_weights)
        self.cache = PrefixCache(blocks=kv_blocks) if kv_blocks else None
        self.scheduler = Scheduler(most_running=most_running)
        self.admin = Admin(self.served, self.scheduler, self.cache) if dev_mode else None
        self.answerer = Answerer(
            reply,
            model=model,
            max_model_len=max_model_len,
            versioned=versioned_reply,
            served=self.served,
            cache=self.cache,
            stats=self.stats,
        )
        self.oversized = Answerer("x" * _OVERSIZED_BYTES, model=model, max_model_len=max_model_len)
        self.expected_auth = f"Bearer {api_key}".encode() if api_key else None
        self.cold_until = 0.0
        self.is_frozen = False
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    async def start(self) -> None:
        """Listen; with port 0, `base_url` says where. After a `kill`, start anew on that port.

        What was loaded into it is gone then; its counts stay.
        """
        loop = asyncio.get_running_loop()
        self.died = loop.create_future()
        self.cold_until = loop.time() + self.faults.cold_s
        self.is_frozen = False
        self.served.boot()
        self.scheduler.clear()
        if self.cache is not None:
            self.cache.reset()
        self._server = await loop.create_server(
            lambda: Connection(self, loop), self._host, self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://{self._host}:{self._port}/v1"

    async def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Return at once: a FakeEngine that listens answers, be it with its faults."""

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        self._drop_all()
        await server.wait_closed()

    def kill(self) -> None:
        """Die as a crashed engine does: drop everything and settle `died`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._drop_all()
        if not self.died.done():
            self.died.set_result(EngineDied("FakeEngine was killed"))

    def freeze(self) -> None:
        """Answer nothing any more, as a process that got SIGSTOP: clients still connect."""
        self.is_frozen = True
        self.scheduler.freeze()

    def thaw(self) -> None:
        """Go on where `freeze` stopped."""
        self.is_frozen = False
        self.scheduler.thaw()
        for connection in list(self._connections):
            connection.go_on()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def opened(self, connection: Connection) -> None:
        """Count a new connection."""
        self._connections.add(connection)
        self.stats.connections_total += 1
        self.stats.connections_max = max(self.stats.connections_max, self.connections)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def read(self, path: bytes) -> tuple[int, bytes, bytes]:
        """Answer a GET: status, body and content type."""
        if (status := self._status(path)) is not None:
            return status
        posts = path in FORMS or path in LOOKUPS
        if posts or (self.admin is not None and self.admin.knows(path)):
            return 405, b'{"detail":"Method Not Allowed"}', JSON
        found = self.admin.read(path) if self.admin is not None else None
        if found is None:
            return 404, b'{"detail":"Not Found"}', JSON
        return 200, found, JSON

    def is_cold(self) -> bool:
        """Whether the clock still says that no completion is served."""
        return bool(self.faults.cold_s) and asyncio.get_running_loop().time() < self.cold_until

    def _status(self, path: bytes) -> tuple[int, bytes, bytes] | None:
        match path:
            case b"/health":
                return (503 if self.is_cold() else 200), b"", JSON
            case b"/version":
                return 200, b'{"version":"fake"}', JSON
            case b"/v1/models":
                return 200, self._models(), JSON
            case b"/metrics":
                return 200, self._metrics(), _METRICS
            case b"/stats":
                return 200, orjson.dumps(self.stats.snapshot(self.connections)), JSON
            case b"/requests":
                return 200, orjson.dumps(self.stats.answered), JSON
        return None

    def _drop_all(self) -> None:
        for connection in list(self._connections):
            connection.transport.abort()

    def _models(self) -> bytes:
        served = self.served
        cards = [_card(served.model, served.base.root or served.model, None)]
        cards[0]["max_model_len"] = self.answerer.max_model_len
        cards += [_card(name, each.root, served.model) for name, each in served.adapters.items()]
        return orjson.dumps({"object": "list", "data": cards})

    def _metrics(self) -> bytes:
        """Return vLLM's counters as far as a gateway reads them."""
        cache, running = self.cache, self.scheduler.running
        held = sum(cache.blocks_for(job.tokens) for job in running) if cache else 0
        values = {
            "num_requests_running": ("gauge", len(running)),
            "num_requests_waiting": ("gauge", len(self.scheduler.waiting)),
            "kv_cache_usage_perc": ("gauge", min(1.0, held / cache.blocks) if cache else 0.0),
            "prefix_cache_queries_total": ("counter", cache.queried_tokens if cache else 0),
            "prefix_cache_hits_total": ("counter", cache.hit_tokens if cache else 0),
            "generation_tokens_total": ("counter", self.stats.tokens_made),
        }
        labels = f'{{engine="0",model_name="{self.model}"}}'
        lines = [
            f"# TYPE vllm:{name} {kind}\nvllm:{name}{labels} {float(value)}\n"
            for name, (kind, value) in values.items()
        ]
        return "".join(lines).encode()


def _card(name: str, root: str | None, parent: str | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "palaestra",
        "root": root,
        "parent": parent,
        "max_model_len": None,
    }
