"""The guard around every call into an env: envs are users' code, and one must not end a run."""

from __future__ import annotations

from types import TracebackType


class EnvRaised(Exception):
    """The env broke its contract; carries what it raised as its cause."""


class EnvContract:
    """Translates whatever exception leaves the block into `EnvRaised`.

    Broad on purpose: the block runs nothing but the env. Cancellation and Ctrl-C pass.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            raise EnvRaised from error


env_contract = EnvContract()
