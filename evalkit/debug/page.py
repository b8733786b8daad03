"""The debugger as pages of `evalkit view`: an edge, as the terminal is one; see `Workbench.do`.

    view.add(*DebugPages(view.folder).routes())

GET /debug?run=R&seed=17&arm=A    the page; it begins nothing by itself
POST /api/debug                   begin: {"run", "seed", "arm", "repetition", "turn"}
POST /api/debug/{bench}           do one thing: {"verb", "text"}
POST /api/debug/{bench}/pause     stop what plays, between two turns
GET /api/debug/{bench}            what there is to see
GET /api/debug/{bench}/futures    two futures, ?left=&right=

Behind the guard of `evalkit.view`. Whoever may post can make this machine play envs and ask models,
so less is allowed than at the terminal: only envs that are shipped, since a manifest could name any
code; no scripts, which are files; and no API key is sent, since a manifest could name both the key
and the URL that gets it.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from envs.registry import shipped_id
from evalkit.debug.futures import parting
from evalkit.debug.origin import Episode, Models, RecordedRun
from evalkit.debug.workbench import Verb, Workbench
from evalkit.errors import BadConfig, EvalkitError
from evalkit.play.contract import EnvRaised
from evalkit.specs import ModelSpec, parse_model
from evalkit.view.folder import RunFolder
from evalkit.view.pages import page, run_nav
from evalkit.view.routes import NotFound, Request, Response, Route

T = TypeVar("T")
MODELS = ("random", "oracle", "noop")
"""Baselines that a page may choose: a script is a file, a human sits at a terminal."""
MAX_BENCHES = 8
BODY = (
    '<link rel="stylesheet" href="/assets/debug.css">'
    '<h1>Debug</h1><noscript><p class="note">This page needs JavaScript; so does not: '
    "python -m evalkit debug --run RUN --seed N</p></noscript>"
    '<p id="error" class="note" role="alert" hidden></p><div id="bench"></div>'
)


@dataclass(slots=True)
class _Bench:
    """A workbench that a page works at."""

    name: str
    bench: Workbench
    models: Models
    playing: list[asyncio.Task[Any]] = field(default_factory=list)

    async def do(self, verb: Verb, text: str) -> dict[str, Any]:
        """Do one thing, or as much of it as there is until it is paused."""
        task = asyncio.current_task()
        if self.playing or task is None:
            raise BadConfig("it is playing: pause it first")
        self.playing.append(task)
        try:
            await self.bench.do(verb, text)
        except asyncio.CancelledError:
            task.uncancel()
        finally:
            self.playing.clear()
        return self.seen()

    async def pause(self) -> dict[str, Any]:
        """Stop between two turns."""
        playing = tuple(self.playing)
        for task in playing:
            task.cancel()
        if playing:
            await asyncio.wait(playing)
        return self.seen()

    async def look(self) -> dict[str, Any]:
        """Return what there is to see."""
        return self.seen()

    def seen(self) -> dict[str, Any]:
        """Return what there is to see."""
        return {**self.bench.view(), "bench": self.name, "playing": bool(self.playing)}


class DebugPages:
    """The pages, and the workbenches behind them: all in one event loop, in a thread of its own."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._benches: dict[str, _Bench] = {}
        """Those that are worked at; the one that was longest left alone comes first."""
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def routes(self) -> tuple[Route, ...]:
        """Return what `View.add` takes."""
        return (
            Route("GET", "/debug", self._page),
            Route("POST", "/api/debug", self._begin),
            Route("GET", "/api/debug/{bench}", self._look),
            Route("POST", "/api/debug/{bench}", self._do),
            Route("POST", "/api/debug/{bench}/pause", self._pause),
            Route("GET", "/api/debug/{bench}/futures", self._futures),
        )

    def close(self) -> None:
        """End the thread, and let go of every model."""
        for bench in self._benches.values():
            self._awaited(bench.models.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _page(self, request: Request, _: Mapping[str, str]) -> Response:
        name = request.query.get("run", "")
        self._folder.run(name)
        nav = run_nav(name, alone=name == ".")
        return Response.html(page(f"Debug {name}", BODY, nav=nav, about=name, script="debug.js"))

    def _begin(self, request: Request, _: Mapping[str, str]) -> Response:
        asked = _object(request)
        episode = self._episode(asked)
        turn = _whole(asked, "turn")
        models = Models(episode.config)
        bench = _Bench(secrets.token_hex(8), Workbench(episode, models), models)
        with self._lock:
            self._benches[bench.name] = bench
            old = [] if len(self._benches) <= MAX_BENCHES else [next(iter(self._benches))]
            left = [self._benches.pop(name) for name in old]
        for each in left:
            self._awaited(each.pause())
            self._awaited(each.models.aclose())
        return self._answer(bench.do(Verb.RUN, str(turn)) if turn else bench.look())

    def _episode(self, asked: Mapping[str, Any]) -> Episode:
        rundir = self._folder.run(str(asked.get("run", "")))
        if shipped_id(str(rundir.manifest()["config"]["env"])) is None:
            raise BadConfig(
                "an env of your own is played at a terminal only: python -m evalkit debug --run "
                f"{rundir.path}"
            )
        run = RecordedRun(rundir.path)
        arm = asked.get("arm")
        seed, repetition = _whole(asked, "seed"), _whole(asked, "repetition")
        found = run.find(seed, None if arm is None else str(arm), repetition)
        if run.manifest["policy"] is None:
            episode = run.episode(found, api_key_env=[])
            if _allowed(episode.config.models()[0][1]):
                return episode
        return run.episode(found, "noop", api_key_env=[])

    def _look(self, _: Request, names: Mapping[str, str]) -> Response:
        return self._answer(self._bench(names).look())

    def _do(self, request: Request, names: Mapping[str, str]) -> Response:
        bench, asked = self._bench(names), _object(request)
        verb, text = str(asked.get("verb")), str(asked.get("text", ""))
        if verb not in set(Verb):
            raise BadConfig(f"no verb {verb!r}: there are {', '.join(Verb)}")
        if verb == Verb.MODEL:
            _require_allowed(text)
        return self._answer(bench.do(Verb(verb), text))

    def _pause(self, _: Request, names: Mapping[str, str]) -> Response:
        return self._answer(self._bench(names).pause())

    def _futures(self, request: Request, names: Mapping[str, str]) -> Response:
        bench = self._bench(names)

        async def both() -> dict[str, Any]:
            asked = request.query.get("left", ""), request.query.get("right", "")
            left, right = bench.bench.futures(*asked)
            return {"left": left, "right": right, "parts_at": parting(left, right)}

        return self._answer(both())

    def _bench(self, names: Mapping[str, str]) -> _Bench:
        with self._lock:
            found = self._benches.pop(names["bench"], None)
            if found is None:
                raise NotFound("this session is over: load the page again")
            self._benches[found.name] = found
        return found

    def _answer(self, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
        """Answer with what the work returns, or with what is wrong."""
        try:
            return Response.json(self._awaited(work))
        except (EvalkitError, EnvRaised) as error:
            said = str(error) or f"the env raised {error.__cause__!r}"
            return Response.json({"error": said}, 404 if isinstance(error, NotFound) else 400)

    def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _object(request: Request) -> Mapping[str, Any]:
    asked = request.json()
    if not isinstance(asked, dict):
        raise BadConfig("expected a JSON object")
    return asked


def _whole(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name) or 0
    if type(value) is not int or not 0 <= value < 10**18:
        raise BadConfig(f"{name} is a whole number from 0 on, not {value!r}")
    return value


def _require_allowed(model: str) -> None:
    try:
        spec = parse_model(model)
    except ValueError as error:
        raise BadConfig(str(error)) from error
    if not _allowed(spec):
        raise BadConfig(f"a page may ask a URL or {', '.join(MODELS)}, not {model!r}")


def _allowed(spec: ModelSpec) -> bool:
    return spec.is_url or spec.target in MODELS
