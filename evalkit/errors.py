"""Everything that evalkit raises, in one tree.

    EvalkitError
    ├── UsageError          the request cannot be carried out as it stands (exit code 2)
    │   ├── BadConfig       an option, a config file or a run directory is not usable
    │   ├── Unreachable     nothing answers at the URL
    │   ├── Unauthorized    the server wants another API key
    │   └── UnknownModel    the server does not have that model
    ├── RunFailed           the run stopped and can be resumed (exit code 1)
    │   ├── ServerLost      the server was away for longer than the run may wait
    │   ├── ReplayDiffers   a recorded episode does not play the same again
    │   └── DamagedRun      a file of the run directory is not what was written
    └── CallFailed          one call to a policy failed: data of its episode, not a crash
        └── ContextOverflow the prompt no longer fits the model's context

A bad rollout is data, not a crash; a bad config is a crash, not data.
"""

from __future__ import annotations

from enum import StrEnum


class EvalkitError(Exception):
    """Anything evalkit raises on purpose."""


class UsageError(EvalkitError):
    """The request cannot be carried out as it stands."""


class BadConfig(UsageError):
    """An option, a config file or a run directory is not usable."""


class Unreachable(UsageError):
    """Nothing answers at the URL."""


class Unauthorized(UsageError):
    """The server wants another API key."""


class UnknownModel(UsageError):
    """The server does not have that model."""


class RunFailed(EvalkitError):
    """The run stopped before its end; its directory can be resumed."""


class ServerLost(RunFailed):
    """The server was away for longer than the run may wait."""


class ReplayDiffers(RunFailed):
    """A recorded episode does not play the same again: its env or its prompts are others."""


class DamagedRun(RunFailed):
    """A file of the run directory is not what was written."""


class Failure(StrEnum):
    """Why a call to a policy, or the env itself, failed. Never the model's doing."""

    CONNECT = "connect"
    """The connection broke before a complete response."""
    TIMEOUT = "timeout"
    """No complete response in time."""
    RATE_LIMITED = "rate_limited"
    """429 until patience ended."""
    CONFLICT = "conflict"
    """409 until patience ended: no replica serves the version that was asked for."""
    UNAVAILABLE = "unavailable"
    """Nothing listens, or 503: the server is away or starting."""
    SERVER_ERROR = "server_error"
    """Any other 5xx."""
    BAD_REPLY = "bad_reply"
    """A 200 whose body is not a chat completion, or not HTTP at all."""
    REFUSED = "refused"
    """A 4xx: the server does not accept the request as it is."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The prompt does not fit the model's context."""
    ENV_BUG = "env_bug"
    """The env raised."""


class CallFailed(EvalkitError):
    """One call failed. `retry_after_s` is what the server asked to wait, where it did."""

    def __init__(
        self, failure: Failure, message: str, *, status: int = 0, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status
        self.retry_after_s = retry_after_s


class ContextOverflow(CallFailed):
    """The prompt no longer fits the model's context."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure.CONTEXT_OVERFLOW, message, status=400)


def first_error(
    several: BaseExceptionGroup[BaseException], *ours: type[BaseException]
) -> BaseException:
    """Return the exception of a group that says most: one of `ours` before any other."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [several]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, ours)), flat[-1])
