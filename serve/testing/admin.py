"""The routes by which an engine's owner changes its weights and adapters, in vLLM's shapes.

They ask for no key, as vLLM's do not. Knows no connection: an answer goes to a callback, because
a pause that waits for requests is answered when they are done.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from serve.testing.prefix_cache import PrefixCache
from serve.testing.refusals import Refusal, decode, invalid, missing
from serve.testing.scheduler import PauseMode, Scheduler
from serve.testing.weights import Served

_MOST_CALLS = 1000
_JSON: Final = b"application/json"

Answer = tuple[int, bytes, bytes]
"""Status, body, content type."""
Tell = Callable[[Answer], None]


class Admin:
    """The administration of one engine."""

    def __init__(self, served: Served, scheduler: Scheduler, cache: PrefixCache | None) -> None:
        self.calls: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST_CALLS)
        """What was asked for, oldest first: path, and body or query."""
        self._served = served
        self._scheduler = scheduler
        self._cache = cache
        self._posts: dict[bytes, Callable[[dict[str, Any]], object]] = {
            b"/resume": self._resume,
            b"/abort_requests": self._abort,
            b"/init_weight_transfer_engine": self._init,
            b"/start_weight_update": self._start,
            b"/update_weights": self._update,
            b"/finish_weight_update": self._finish,
            b"/update_weight_version": self._label,
            b"/reset_prefix_cache": self._reset,
            b"/collective_rpc": self._rpc,
            b"/v1/load_lora_adapter": self._load,
            b"/v1/unload_lora_adapter": self._unload,
        }

    def knows(self, path: bytes) -> bool:
        """Whether there is such a route, for POST."""
        return path in self._posts or path == b"/pause"

    def read(self, path: bytes) -> bytes | None:
        """Answer a GET, None if there is no such route."""
        match path:
            case b"/is_paused":
                return orjson.dumps({"is_paused": self._scheduler.is_paused})
            case b"/weight_info":
                return orjson.dumps({"weight_version": self._served.label})
            case b"/get_world_size":
                return b'{"world_size":1}'
            case _:
                return None

    def ask(self, path: bytes, query: bytes, body: bytes, tell: Tell) -> None:
        """Answer a POST, now or when it is done."""
        try:
            if path == b"/pause":
                self._pause({k: v[-1] for k, v in parse_qs(query.decode()).items()}, tell)
                return
            request = decode(body) if body else {}
            if path != b"/abort_requests" or body:
                self.calls.append((path.decode(), request))
            if path == b"/abort_requests" and not body:
                raise Refusal("Invalid JSON format", kind="Bad Request")
            result = self._posts[path](request)
        except Refusal as refusal:
            tell((refusal.status, refusal.body(), _JSON))
            return
        if isinstance(result, str):
            tell((200, result.encode(), b"text/plain"))
        else:
            tell((200, orjson.dumps(result), _JSON))

    def _pause(self, query: dict[str, str], tell: Tell) -> None:
        try:
            mode = PauseMode(query.get("mode", PauseMode.ABORT))
        except ValueError:
            message = "Input should be 'abort', 'wait' or 'keep'"
            raise invalid("literal_error", "query.mode", message) from None
        self.calls.append(("/pause", dict(query)))

        def done() -> None:
            if self._cache is not None and query.get("clear_cache", "true") == "true":
                self._cache.reset()
            tell((200, b'{"status":"paused"}', _JSON))

        self._scheduler.pause(mode, done)

    def _resume(self, request: dict[str, Any]) -> object:  # noqa: ARG002  # as the others
        self._scheduler.resume()
        return {"status": "resumed"}

    def _abort(self, request: dict[str, Any]) -> object:
        names = request.get("request_ids")
        found = self._scheduler.abort(names or None)
        return {"status": "aborted", "aborted": len(names) if names else found}

    def _init(self, request: dict[str, Any]) -> object:
        if "init_info" not in request:
            raise missing("init_info")
        return {"message": "Weight transfer initialized"}

    def _start(self, request: dict[str, Any]) -> object:  # noqa: ARG002
        self._served.start_update()
        return {"message": "Weight update started"}

    def _update(self, request: dict[str, Any]) -> object:
        info = request.get("update_info")
        if not isinstance(info, dict):
            raise missing("update_info")
        self._served.update(info.get("path"), apply=bool(info.get("apply")))
        return {"message": "Weights updated"}

    def _finish(self, request: dict[str, Any]) -> object:
        label = request.get("weight_version")
        self._served.finish_update(None if label is None else str(label))
        return {"message": "Weight update finished"}

    def _label(self, request: dict[str, Any]) -> object:
        self._served.label = _text(request, "new_version")
        return {"success": True, "new_version": self._served.label}

    def _reset(self, request: dict[str, Any]) -> object:  # noqa: ARG002
        """Empty the cache, unless requests that run hold blocks of it."""
        is_free = self._scheduler.is_paused or not self._scheduler.running
        if is_free and self._cache is not None:
            self._cache.reset()
        return {"success": is_free}

    def _rpc(self, request: dict[str, Any]) -> object:
        if request.get("method") is None:
            raise Refusal("Missing 'method' in request body", kind="Bad Request")
        return {"results": [None]}

    def _load(self, request: dict[str, Any]) -> object:
        name, path = _text(request, "lora_name"), _text(request, "lora_path")
        return self._served.load_adapter(name, path, in_place=bool(request.get("load_inplace")))

    def _unload(self, request: dict[str, Any]) -> object:
        return self._served.unload_adapter(_text(request, "lora_name"))


def _text(request: dict[str, Any], name: str) -> str:
    if name not in request:
        raise missing(name)
    if not isinstance(request[name], str):
        raise invalid("string_type", f"body.{name}", "Input should be a valid string")
    return str(request[name])
