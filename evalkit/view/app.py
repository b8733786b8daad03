"""What each address shows, and how errors look. Composes the rest of the folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import evalkit.show.html
from evalkit.errors import BadConfig, EvalkitError, UsageError
from evalkit.view.episodes import PAGE_SEEDS, episodes_page
from evalkit.view.folder import Entry, RunFolder, RunState, as_data
from evalkit.view.guard import HEADERS, POLICY, Guard
from evalkit.view.index import SORTS, Asked, index_page
from evalkit.view.pages import compare_page, error_page, files_page, run_page, run_path, words
from evalkit.view.reports import Reports
from evalkit.view.routes import NotFound, Request, Response, Route, route

logger = logging.getLogger(__name__)
ASSETS = Path(__file__).parent / "assets"
STYLE = Path(evalkit.show.html.__path__[0]) / "style.css"
REPORT_POLICY = "default-src 'unsafe-inline' data:; form-action 'none'; frame-ancestors 'self'"
"""The outer bound of what a report may do: it asks nobody for anything."""
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
}


class View:
    """The pages of a folder of runs; `add` takes further ones."""

    def __init__(self, root: Path, guard: Guard | None = None) -> None:
        self.folder = RunFolder(root)
        self.guard = guard or Guard()
        self._reports = Reports(self.folder)
        self._routes = [
            Route("GET", "/", self._index),
            Route("GET", "/assets/{name}", _asset),
            Route("GET", "/api/runs", self._runs),
            Route("GET", "/api/runs/{run}/progress", self._progress),
            Route("GET", "/runs/{run}", self._run),
            Route("GET", "/runs/{run}/report", self._report),
            Route("GET", "/runs/{run}/episodes", self._episodes),
            Route("GET", "/runs/{run}/files", self._files),
            Route("GET", "/runs/{run}/files/{name}", self._file),
            Route("GET", "/compare", self._compare),
            Route("GET", "/compare/report", self._comparison),
        ]

    def add(self, *routes: Route) -> None:
        """Take further pages."""
        self._routes += routes

    def answer(self, request: Request) -> Response:
        """Answer a request, whatever it is."""
        response = self.guard.refusal(request) or self._answered(request)
        own = {name for name, _ in response.headers}
        headers = [*HEADERS, ("Content-Security-Policy", POLICY)]
        kept = tuple((name, value) for name, value in headers if name not in own)
        return Response(
            body=response.body,
            content_type=response.content_type,
            status=response.status,
            headers=(*response.headers, *kept),
        )

    def _answered(self, request: Request) -> Response:
        try:
            return route(self._routes, request)
        except EvalkitError as error:
            status = 404 if isinstance(error, NotFound) else 400
            status = status if isinstance(error, UsageError) else 500
            return _failed(request, status, str(error))
        except Exception as error:  # a page that fails must not end the server: the next is asked
            logger.exception("%s %r", request.method, request.path)
            return _failed(request, 500, f"this page failed: {error!r}")

    def _index(self, request: Request, _: Mapping[str, str]) -> Response:
        entries = self.folder.entries()
        if [entry.name for entry in entries] == ["."]:
            return Response.moved(run_path("."))
        sort = request.query.get("sort", "date")
        if sort not in SORTS:
            raise BadConfig(f"?sort= is one of {', '.join(SORTS)}, not {sort!r}")
        asked = Asked(
            env=request.query.get("env", ""),
            model=request.query.get("model", ""),
            sort=sort,
            page=max(0, request.number("page", 0)),
        )
        return Response.html(index_page(str(self.folder.root), entries, asked))

    def _runs(self, _: Request, __: Mapping[str, str]) -> Response:
        return Response.json({"runs": [as_data(entry) for entry in self.folder.entries()]})

    def _progress(self, _: Request, names: Mapping[str, str]) -> Response:
        entry = self.folder.entry(names["run"])
        damaged = entry.state is RunState.DAMAGED
        report = "" if damaged else self._reports.version(entry)
        return Response.json({**as_data(entry), "words": words(entry), "report": report})

    def _run(self, _: Request, names: Mapping[str, str]) -> Response:
        entry = self._readable(names["run"])
        version = self._reports.version(entry)
        return Response.html(run_page(entry, version, alone=entry.name == "."))

    def _report(self, _: Request, names: Mapping[str, str]) -> Response:
        return _framed(self._reports.of_run(self._readable(names["run"])))

    def _files(self, _: Request, names: Mapping[str, str]) -> Response:
        entry = self.folder.entry(names["run"])
        path = self.folder.run(entry.name).path
        files = [(name, (path / name).stat().st_size) for name in self.folder.files(entry.name)]
        return Response.html(files_page(entry, files, alone=entry.name == "."))

    def _episodes(self, request: Request, names: Mapping[str, str]) -> Response:
        played = self.folder.played(names["run"])
        entry = self._readable(names["run"])
        played.look()
        ended = dict(played.ended)
        seed = request.number("seed", min((key.env_seed for key in ended), default=0))
        repetition = request.number("repetition", 0)
        seeds = sorted({key.env_seed for key in ended})
        place = seeds.index(seed) if seed in seeds else 0
        first = request.number("first", place // PAGE_SEEDS * PAGE_SEEDS)
        shown = played.episodes(seed, repetition)
        return Response.html(episodes_page(entry, ended, shown, seed, repetition, max(0, first)))

    def _file(self, _: Request, names: Mapping[str, str]) -> Response:
        file = self.folder.file(names["run"], names["name"])
        return Response(
            body=file,
            content_type=KINDS[file.suffix],
            headers=(
                ("Content-Disposition", "attachment"),
                ("Content-Security-Policy", "default-src 'none'; sandbox"),
            ),
        )

    def _compare(self, request: Request, _: Mapping[str, str]) -> Response:
        a, b = self._pair(request)
        self._reports.of_two(a, b)  # what cannot be compared is said here, not in the frame
        return Response.html(compare_page(a, b))

    def _comparison(self, request: Request, _: Mapping[str, str]) -> Response:
        return _framed(self._reports.of_two(*self._pair(request)))

    def _pair(self, request: Request) -> tuple[str, str]:
        """Return the names of the two runs that are asked for, if they can be compared."""
        for side in "ab":
            if not request.query.get(side):
                raise BadConfig("two runs are compared: pick one as A and one as B")
        a, b = (self._readable(request.query[side]) for side in "ab")
        if a.env_digest != b.env_digest:
            raise BadConfig(f"{a.name} and {b.name} did not play the same env: nothing to compare")
        return a.name, b.name

    def _readable(self, name: str) -> Entry:
        entry = self.folder.entry(name)
        if entry.state is RunState.DAMAGED:
            raise BadConfig(f"{name} is damaged: {entry.problem}")
        return entry


def _asset(_: Request, names: Mapping[str, str]) -> Response:
    known = {file.name: file for file in ASSETS.iterdir() if file.suffix in {".css", ".js"}}
    file = {**known, STYLE.name: STYLE}.get(names["name"])
    if file is None:
        raise NotFound(f"there is no asset {names['name']}")
    return Response(body=file.read_bytes(), content_type=KINDS[file.suffix])


def _framed(text: str) -> Response:
    """Answer with a report, which says in its head by digest which style and script it allows."""
    kind = "text/html; charset=utf-8"
    policy = ("Content-Security-Policy", REPORT_POLICY)
    return Response(body=text.encode("utf-8", "replace"), content_type=kind, headers=(policy,))


def _failed(request: Request, status: int, said: str) -> Response:
    if request.path.startswith("/api/"):
        return Response.json({"error": said}, status)
    titles = {400: "That cannot be shown", 404: "Not here"}
    return Response.html(error_page(titles.get(status, "This run cannot be read"), said), status)
