"""A client of one vLLM's administrative routes: its weights, its adapters, its counters.

Those routes ask for no key, so only engines that nobody else reaches have them. Knows no replica
and no store: it is told a folder and a label.
"""

import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from serve.errors import EngineNotReady, SwapFailed
from serve.wire import SwapMode

UNLABELLED = "default"
"""vLLM's label for the weights that it was started with."""
CHANGING = "changing"
"""The label during a swap: one that is killed in the middle must not keep the old one's."""
UNPROVEN = "?"
"""At a label's end: the weights are in, and their probes were not passed yet."""

_TIMEOUT_S = 30.0
_LOAD_TIMEOUT_S = 900.0
_PROBE_TIMEOUT_S = 120.0

_METRIC = re.compile(r"^(vllm:[a-z_]+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_METRICS = {
    "vllm:prefix_cache_queries_total": "prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as /v1/models lists it."""

    name: str
    root: str | None = None
    """Where its weights came from."""
    parent: str | None = None
    """The base model's name, for an adapter."""
    max_model_len: int | None = None
    """The longest prompt and completion together, in tokens."""


class VllmAdmin:
    """One engine, from entering to leaving. Raises EngineNotReady where it cannot be reached."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url` is `http://HOST:PORT` without a path, or https with `tls`."""
        self.base_url = base_url
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=[*headers, *([("authorization", f"Bearer {api_key}")] if api_key else [])],
            timeout=_TIMEOUT_S,
            # After an error vLLM closes the connection, too late for the next request to notice.
            limits=httpx.Limits(max_keepalive_connections=0),
            transport=transport,
            trust_env=False,
            # Plain HTTP: reading the certificates would keep the loop for 60 ms.
            verify=tls or False,
        )

    async def models(self) -> tuple[ServedModel, ...]:
        """Return what it serves: base models, and adapters after them."""
        listed = await self._get("/v1/models")
        try:
            return tuple(
                ServedModel(
                    name=str(card["id"]),
                    root=card.get("root"),
                    parent=card.get("parent") or None,
                    max_model_len=card.get("max_model_len"),
                )
                for card in listed.json()["data"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineNotReady(f"{self.base_url}/v1/models is no list of models") from error

    async def version(self) -> str:
        """Return the version of vLLM itself."""
        return str((await self._get("/version")).json()["version"])

    async def weight_info(self) -> str | None:
        """Return the label of the weights it serves; None if its weights cannot be changed."""
        answer = await self._ask("GET", "/weight_info")
        if answer.status_code != 200:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(answer.json()["weight_version"])
        return None

    async def label_weights(self, label: str) -> None:
        """Name the weights that it serves already; raise SwapFailed."""
        await self._demand("/update_weight_version", {"new_version": label})

    async def swap_weights(
        self,
        path: str,
        label: str,
        mode: SwapMode,
        applied: Callable[[], None] = lambda: None,
        pausing: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve the weights of the folder `path` from now on, under `label`.

        Requests in flight are frozen meanwhile, or with ABORT ended; what comes waits. `pausing`
        is called when the new weights are read, before the pause, and `applied` when they are in,
        before any token is made with them. After a SwapFailed it goes on with the weights it had;
        after an EngineNotReady in the middle it is labelled CHANGING until the next swap.
        """
        before = await self.weight_info()
        if before is None:
            raise SwapFailed(f"{self.base_url} has no routes to change its weights")
        await self._begin()
        await self._update(path, apply=False)
        pausing()
        async with self._paused("abort" if mode is SwapMode.ABORT else "keep"):
            await self.label_weights(CHANGING)
            try:
                await self._update(path, apply=True)
            except SwapFailed:
                await self._insist("/update_weight_version", {"new_version": before})
                raise
            await self._insist("/finish_weight_update", {"weight_version": label})
            applied()

    async def load_lora(self, name: str, path: str) -> None:
        """Serve the adapter in the folder `path` under `name` besides; raise SwapFailed."""
        adapter = {"lora_name": name, "lora_path": path}
        await self._demand("/v1/load_lora_adapter", adapter, timeout_s=_LOAD_TIMEOUT_S)

    async def unload_lora(self, name: str) -> None:
        """Serve that adapter no more; harmless if it is not there."""
        answer = await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if answer.status_code not in (200, 404):
            raise SwapFailed(_said(answer))

    async def prompt_logprobs(self, model: str, tokens: Sequence[int]) -> tuple[float, ...]:
        """Return the logprob of each token but the first, given those before it, in nats.

        Computed anew: vLLM reads no cached prefix for these. Raises SwapFailed if it cannot say.
        """
        body = {
            "model": model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        answer = await self._demand("/v1/completions", body, timeout_s=_PROBE_TIMEOUT_S)
        try:
            _, *found = answer.json()["choices"][0]["prompt_logprobs"]
            return tuple(
                float(known[str(token)]["logprob"])
                for token, known in zip(tokens[1:], found, strict=True)
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SwapFailed(f"{self.base_url} does not say the logprobs of a prompt") from error

    async def abort_requests(self) -> None:
        """End all requests in flight with what they have; raise SwapFailed."""
        await self._demand("/abort_requests", {})

    async def resume(self) -> None:
        """Go on after a pause that somebody left behind; harmless otherwise."""
        paused = await self._ask("GET", "/is_paused")
        if paused.status_code == 200 and paused.json().get("is_paused"):
            await self._insist("/resume")

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; raise SwapFailed."""
        await self._demand("/reset_prefix_cache")

    async def metrics(self) -> dict[str, float]:
        """Return the few counters that are shown, summed over its engines."""
        text = (await self._get("/metrics")).text
        found: dict[str, float] = {}
        for name, value in _METRIC.findall(text):
            if name in _METRICS:
                found[_METRICS[name]] = found.get(_METRICS[name], 0.0) + float(value)
        return found

    async def _begin(self) -> None:
        """Open an update, and first close one that a gateway killed in the middle left open."""
        if (await self._ask("POST", "/start_weight_update")).status_code == 200:
            return
        await self._ask("POST", "/finish_weight_update", {})
        await self._demand("/start_weight_update")

    async def _update(self, path: str, *, apply: bool) -> None:
        update = {"update_info": {"path": path, "apply": apply}}
        await self._demand("/update_weights", update, timeout_s=_LOAD_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def _paused(self, mode: str) -> AsyncIterator[None]:
        """Make no token meanwhile. Clears the caches, which hold what the old weights made."""
        try:
            await self._demand("/pause", params={"mode": mode, "clear_cache": "true"})
            yield
        finally:
            await self._insist("/resume")

    async def _demand(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> httpx.Response:
        """Post, and raise SwapFailed with what it said if that is not a success."""
        answer = await self._ask("POST", path, body, params=params, timeout_s=timeout_s)
        if not answer.is_success:
            raise SwapFailed(_said(answer))
        return answer

    async def _insist(self, path: str, body: Mapping[str, object] | None = None) -> None:
        """Post what has to succeed for the engine to be of use; raise EngineNotReady."""
        try:
            await self._demand(path, body)
        except SwapFailed as error:
            raise EngineNotReady(str(error)) from error

    async def _get(self, path: str) -> httpx.Response:
        answer = await self._ask("GET", path)
        if answer.is_success:
            return answer
        raise EngineNotReady(_said(answer))

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> httpx.Response:
        try:
            return await self._client.request(
                method, path, json=body, params=params, timeout=timeout_s
            )
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise EngineNotReady(f"{self.base_url}{path}: {why}") from error

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(exc_type, exc, traceback)


def _said(answer: httpx.Response) -> str:
    """Return an engine's complaint on one line: its message, whichever shape it has."""
    text = answer.text
    with contextlib.suppress(ValueError):
        body = json.loads(text)
        if isinstance(body, dict):
            error = body.get("error", body.get("detail", body.get("message", text)))
            text = str(error.get("message", error) if isinstance(error, dict) else error)
    return f"{answer.request.url}: {answer.status_code} {' '.join(text.split())[:500]}"
