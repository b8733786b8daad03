"""Function calls and their inputs: queued, running, retried, finished. No processes, no wire."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import Container, Function, Plane

MOST_LOSSES = 8  # as many containers as Modal lets an input lose before it gives up

_SUCCESS = pb.GenericResult.GENERIC_STATUS_SUCCESS
_TERMINATED = pb.GenericResult.GENERIC_STATUS_TERMINATED


@dataclass(slots=True, kw_only=True)
class Input:
    """One input of a call, and what has become of it."""

    id: str
    call: FunctionCall
    idx: int
    payload: pb.FunctionInput
    attempts: int = 0
    losses: int = 0
    container: str = ""
    containers: list[str] = field(default_factory=list)
    started_at: float = 0.0
    timer: asyncio.TimerHandle | None = None
    output: pb.FunctionGetOutputsItem | None = None

    @property
    def done(self) -> bool:
        """True when it has its last output."""
        return self.output is not None


@dataclass(slots=True, kw_only=True)
class FunctionCall:
    """One call: `.remote` and `.spawn` have one input, `.map` many."""

    id: str
    function: Function
    kind: pb.FunctionCallType.ValueType
    invocation: pb.FunctionCallInvocationType.ValueType
    inputs: list[Input] = field(default_factory=list)
    finished: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    chunks: list[pb.DataChunk] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)
    cancelled: bool = False

    @property
    def unfinished(self) -> int:
        """How many inputs have no output yet."""
        return sum(not item.done for item in self.inputs)


@dataclass(slots=True)
class Work:
    """The queues of all functions. `changed` is notified whenever an input comes, moves or ends."""

    plane: Plane
    timed_out: Callable[[Input], None]
    calls: dict[str, FunctionCall] = field(default_factory=dict)
    queues: dict[str, deque[Input]] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    version: int = 0
    _waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def open(self, request: pb.FunctionMapRequest) -> FunctionCall:
        """A new call without inputs."""
        call = FunctionCall(
            id=self.plane.new_id("fc"),
            function=self.plane.functions[request.function_id],
            kind=request.function_call_type,
            invocation=request.function_call_invocation_type,
        )
        self.calls[call.id] = call
        return call

    def put(self, call: FunctionCall, item: pb.FunctionPutInputsItem) -> Input:
        """Queue one more input of a call."""
        new = Input(id=self.plane.new_id("in"), call=call, idx=item.idx, payload=item.input)
        call.inputs.append(new)
        self.inputs[new.id] = new
        self.queue(call.function.id).append(new)
        self.notify()
        return new

    def queue(self, function_id: str) -> deque[Input]:
        """The inputs of a function that no container has."""
        return self.queues.setdefault(function_id, deque())

    def take(self, container: Container, most: int) -> list[Input]:
        """Give up to so many queued inputs to a container."""
        queue = self.queue(container.function.id)
        taken: list[Input] = []
        while queue and len(taken) < most:
            item = queue.popleft()
            item.container, item.started_at = container.id, time.time()
            item.containers.append(container.id)
            container.inputs.add(item.id)
            limit_s = container.function.definition.timeout_secs
            if limit_s:
                loop = asyncio.get_running_loop()
                item.timer = loop.call_later(limit_s, self.timed_out, item)
            taken.append(item)
        return taken

    def settle(self, item: Input, result: pb.GenericResult, data_format: int = 0) -> None:
        """An attempt has ended: finish the input, or queue it again if it may be retried."""
        if item.done:
            return
        self.release(item)
        policy = item.call.function.definition.retry_policy
        may_retry = result.status not in {_SUCCESS, _TERMINATED} and item.attempts < policy.retries
        if may_retry and not item.call.cancelled:
            delay_s = min(
                policy.initial_delay_ms * policy.backoff_coefficient**item.attempts,
                policy.max_delay_ms or float("inf"),
            )
            item.attempts += 1
            asyncio.get_running_loop().call_later(delay_s / 1000, self.requeue, item)
            return
        self.finish(item, result, data_format)

    def finish(self, item: Input, result: pb.GenericResult, data_format: int = 0) -> None:
        """Give the input its last output."""
        if item.done:
            return
        self.release(item)
        item.output = pb.FunctionGetOutputsItem(
            result=result,
            idx=item.idx,
            input_id=item.id,
            data_format=pb.DataFormat.ValueType(data_format),
            task_id=item.containers[-1] if item.containers else "",
            input_started_at=item.started_at,
            output_created_at=time.time(),
            retry_count=item.attempts,
        )
        item.call.finished.append(item.output)
        self.notify()

    def requeue(self, item: Input) -> None:
        """Queue an input again, before all others."""
        if not item.done:
            self.release(item)
            self.queue(item.call.function.id).appendleft(item)
            self.notify()

    def release(self, item: Input) -> None:
        """Take the input from whatever holds it."""
        if item.timer is not None:
            item.timer.cancel()
            item.timer = None
        container = self.plane.containers.get(item.container)
        if container is not None:
            container.inputs.discard(item.id)
            container.idle_since = asyncio.get_running_loop().time()
        item.container = ""
        queue = self.queue(item.call.function.id)
        if item in queue:
            queue.remove(item)

    def notify(self) -> None:
        """Wake all who wait."""
        self.version += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Return at the next change, or when the time is over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return
        finally:
            self._waiters.discard(waiter)


def failure(status: pb.GenericResult.GenericStatus.ValueType, message: str) -> pb.GenericResult:
    """A result that says why there is none."""
    return pb.GenericResult(status=status, exception=message)
