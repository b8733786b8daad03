"""Several trainer processes as one: what the main one finds out, all know; what each has, it gets.

Every function here is collective: all processes call it, in the same order.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from train.errors import RunFailed

T = TypeVar("T")

_PATIENCE = timedelta(hours=24)
"""The others wait while the main one waits for episodes or for the gateway, which have their own
bounds; that a process has died is noticed by the launcher."""


def is_main() -> bool:
    """Whether this process is the one that plays, publishes and writes. Joins the others."""
    if not several():
        return True
    cuda = torch.cuda.is_available()
    backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
    return bool(PartialState(cpu=not cuda, backend=backend, timeout=_PATIENCE).is_main_process)


def several() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def told(ask: Callable[[], T] | None) -> T:
    """Return, or raise, on all processes what `ask` does on the main one; the others give None.

    So nobody waits for ever for a main process that could not go on.
    """
    held: list[object] = [None, None]
    if ask is not None:
        try:
            held = [ask(), None]
        except BaseException as error:  # noqa: BLE001 - raised again below, on every process
            held = [None, error]
        if not several():
            return _opened(held)
        held = held if held[1] is None or _travels(held[1]) else [None, RunFailed(repr(held[1]))]
    return _opened(broadcast_object_list(held, from_process=0))


def all_of(own: list[T]) -> list[T]:
    """Return what all processes have, in the order of the processes, on all of them."""
    return list(gather_object(own)) if several() else own


def _opened(held: list[object]) -> T:  # type: ignore[type-var]  # what `ask` returns
    found, error = held
    if isinstance(error, BaseException):
        raise error
    return found  # type: ignore[return-value]


def _travels(error: object) -> bool:
    """Whether an error can be handed to another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    except Exception:  # noqa: BLE001 - whatever its class does there, it cannot
        return False
    return True
