"""What containers write, by app and container, for `modal run` and `modal app logs`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import Container, Plane

Query = pb.AppGetLogsRequest | pb.AppFetchLogsRequest | pb.AppCountLogsRequest

_POLL_S = 0.05
_LONGEST_WAIT_FOR_LAST_WORDS_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that a container wrote, and the calls that it was serving then."""

    number: int
    app_id: str
    container: str
    function_ids: frozenset[str]
    call_ids: frozenset[str]
    stream: pb.FileDescriptor.ValueType
    text: str
    written_at: float


@dataclass(slots=True)
class Logs:
    """All lines, in the order in which they came. `calls_of` names a container's present calls."""

    plane: Plane
    calls_of: Callable[[Container], frozenset[str]]
    lines: list[Line] = field(default_factory=list)

    def add(self, container: Container, text: str, stream: pb.FileDescriptor.ValueType) -> None:
        """Keep one line."""
        function = container.function
        line = Line(
            number=len(self.lines) + 1,
            app_id=function.app_id,
            container=container.id,
            function_ids=frozenset({function.id, function.base_id or function.id}),
            call_ids=self.calls_of(container),
            stream=stream,
            text=text,
            written_at=time.time(),
        )
        self.lines.append(line)

    def text(self, *, app_id: str = "", container: str = "") -> str:
        """What an app, or one container, wrote."""
        return "".join(
            line.text
            for line in self.lines
            if app_id in {"", line.app_id} and container in {"", line.container}
        )

    async def AppGetLogs(
        self, request: pb.AppGetLogsRequest, caller: str
    ) -> AsyncIterator[pb.TaskLogsBatch]:
        seen = int(request.last_entry_id.partition("-")[0] or 0)
        deadline = time.monotonic() + request.timeout
        while True:
            done = self._done(request.app_id)
            for line in _matching(self.lines[seen:], request):
                seen = line.number
                yield _batch(line)
            if done:
                yield pb.TaskLogsBatch(app_done=True, entry_id=f"{seen}-0")
                return
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(_POLL_S)

    async def AppFetchLogs(
        self, request: pb.AppFetchLogsRequest, caller: str
    ) -> pb.AppFetchLogsResponse:
        found = list(_matching(self.lines, request))
        newest = found[-request.limit :] if request.limit else found
        return pb.AppFetchLogsResponse(batches=[_batch(line) for line in newest])

    async def AppCountLogs(
        self, request: pb.AppCountLogsRequest, caller: str
    ) -> pb.AppCountLogsResponse:
        start, width = _seconds(request.since), max(1, request.bucket_secs)
        counts = Counter(
            int((line.written_at - start) // width) for line in _matching(self.lines, request)
        )
        response = pb.AppCountLogsResponse(app_id=request.app_id)
        for index, count in sorted(counts.items()):
            bucket = response.buckets.add(stdout_logs=count)
            bucket.bucket_start_at.FromNanoseconds(int((start + index * width) * 1e9))
        return response

    def _done(self, app_id: str) -> bool:
        """True when nothing more will be written for those who listen."""
        app = self.plane.apps.get(app_id)
        if app is None or (app.logs_done and not app.stopped):
            return True
        running = any(
            container.alive and container.function.app_id == app_id
            for container in self.plane.containers.values()
        )
        late = time.time() - app.stopped_at > _LONGEST_WAIT_FOR_LAST_WORDS_S
        return app.logs_done and (late or not running)


def _matching(lines: list[Line], query: Query) -> Iterator[Line]:
    since, until = 0.0, float("inf")
    if not isinstance(query, pb.AppGetLogsRequest):
        since, until = _seconds(query.since), _seconds(query.until)
    wanted_stream = (
        query.file_descriptor if isinstance(query, pb.AppGetLogsRequest) else query.source
    )
    for line in lines:
        if (
            line.app_id == query.app_id
            and query.task_id in {"", line.container}
            and query.function_id in {"", *line.function_ids}
            and query.function_call_id in {"", *line.call_ids}
            and wanted_stream in {pb.FILE_DESCRIPTOR_UNSPECIFIED, line.stream}
            and query.search_text in line.text
            and since <= line.written_at < until
        ):
            yield line


def _seconds(stamp: object) -> float:
    return float(stamp.ToNanoseconds()) / 1e9  # type: ignore[attr-defined]  # protobuf is untyped


def _batch(line: Line) -> pb.TaskLogsBatch:
    item = pb.TaskLogs(
        data=line.text,
        timestamp=line.written_at,
        timestamp_ns=int(line.written_at * 1e9),
        file_descriptor=line.stream,
        function_call_id=next(iter(line.call_ids), ""),
    )
    return pb.TaskLogsBatch(
        task_id=line.container,
        items=[item],
        entry_id=f"{line.number}-0",
        function_id=min(line.function_ids),
    )
