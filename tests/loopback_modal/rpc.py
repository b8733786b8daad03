"""The wire: one gRPC service whose calls are methods, named as the calls, of plain objects.

A service is any object with methods such as `async def AppCreate(self, request, caller)`, or an
async generator for a call that streams its replies. This module knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, cast

from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.server import Server, Stream
from modal_proto.api_grpc import ModalClientBase

MODAL_VERSION = version("modal")

logger = logging.getLogger(__name__)

Request = Any  # one of the generated messages; each service method names its own
Reply = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as it arrived: its name, its message, and the container that made it, if one did."""

    name: str
    request: Request
    container: str = ""


@dataclass(slots=True, kw_only=True)
class Fault:
    """What the next `times` calls of a name answer instead of being served."""

    name: str
    status: Status
    message: str
    times: int
    container: str = ""

    def hits(self, call: Call) -> bool:
        """True when this call is the one to fail; counts it."""
        if self.name != call.name or self.times <= 0 or self.container not in {"", call.container}:
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class CallLog:
    """Every call that arrived, in order, and the faults that wait for some."""

    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def admit(self, call: Call) -> None:
        """Record the call; raise its fault if one waits for it."""
        self.calls.append(call)
        for fault in self.faults:
            if fault.hits(call):
                raise GRPCError(fault.status, fault.message)


class ServiceMethod(Protocol):
    """What a service offers for one call: a coroutine, or an async generator of replies."""

    def __call__(self, request: Request, caller: str, /) -> Awaitable[Reply] | AsyncIterator[Reply]:
        """Serve one call made by a container (its task id) or by a client ("")."""


class Router:
    """What grpclib serves: every call of Modal's control plane, by a given service or not at all.

    `caller` is the container that this router listens for, as a worker's socket does in the cloud:
    the runtime does not say who it is. A call that no service has answers UNIMPLEMENTED with its
    name and the installed modal version, so that a newer client says what it now asks for.
    """

    def __init__(self, services: Sequence[object], log: CallLog, caller: str = "") -> None:
        self._log = log
        self._caller = caller
        self._methods: dict[str, ServiceMethod] = {}
        for service in services:
            for name, method in inspect.getmembers(service, callable):
                if name[0].isupper():
                    self._methods[name] = cast(ServiceMethod, method)
        unknown = set(self._methods) - {_call_name(path) for path in _PATHS}
        if unknown:
            raise TypeError(f"modal {MODAL_VERSION} has no calls named {unknown}")

    def __mapping__(self) -> Mapping[str, Handler]:
        return {
            path: handler._replace(func=self._served(_call_name(path), handler))
            for path, handler in _PATHS.items()
        }

    @property
    def names(self) -> set[str]:
        """The calls that are served."""
        return set(self._methods)

    def _served(self, name: str, handler: Handler) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        method = self._methods.get(name)

        async def serve(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            self._log.admit(Call(name=name, request=request, container=self._caller))
            if method is None:
                raise GRPCError(Status.UNIMPLEMENTED, unimplemented(name))
            if handler.cardinality.server_streaming:
                async for reply in cast(AsyncIterator[Reply], method(request, self._caller)):
                    await stream.send_message(reply)
            else:
                reply = await cast(Awaitable[Reply], method(request, self._caller))
                await stream.send_message(reply)

        return _with_errors_logged(name, serve)


def unimplemented(name: str) -> str:
    """The message for a call that the loopback does not serve."""
    return (
        f"{name} is not served by the loopback control plane (modal {MODAL_VERSION}): "
        "see tests/loopback_modal/README.md, 'Add a call'"
    )


def _with_errors_logged(
    name: str, serve: Callable[[Stream[Any, Any]], Awaitable[None]]
) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    async def serve_or_log(stream: Stream[Any, Any]) -> None:
        try:
            await serve(stream)
        except GRPCError:
            raise
        except Exception:
            # The client is told UNKNOWN and nothing more: the reason must be found in the log.
            logger.exception("%s failed in the loopback control plane", name)
            raise

    return serve_or_log


class Listener:
    """A router on a port of 127.0.0.1."""

    def __init__(self, router: Router) -> None:
        self._server = Server([router])
        self.url = ""

    async def open(self) -> None:
        """Listen; `url` says where."""
        await self._server.start("127.0.0.1", 0)
        listening = self._server._server
        assert isinstance(listening, asyncio.Server)
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Listen no more."""
        self._server.close()
        await self._server.wait_closed()


class _Names:
    """Answers each attribute with its own name: the generated base class then lists its calls."""

    def __getattr__(self, name: str) -> str:
        return name


def _call_name(path: str) -> str:
    return path.rpartition("/")[2]


_PATHS: Mapping[str, Handler] = ModalClientBase.__mapping__(cast(ModalClientBase, _Names()))
