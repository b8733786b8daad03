"""Which groups may start, and which step they belong to: staleness bounded by admission.

Groups are numbered as they are admitted, and step t trains on the t-th `groups_per_step` of them,
whatever order they finish in. A group may start while its step is at most `max_staleness` versions
ahead of what is live. So no token is staler than that when it is trained on, nothing is thrown
away for its age, and equal seeds give equal steps. Thread-safe; knows no clock and no I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from train.rollouts.rows import Group


class Schedule:
    """The groups of one run, from the step after `done_steps` to the last one, `steps`."""

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        publish_every: int,
        steps: int,
        done_steps: int = 0,
        groups: Iterable[Group] = (),
    ) -> None:
        """Take up `groups` that were finished before an interruption: they are not played again."""
        self._per_step = groups_per_step
        self._ahead = max_staleness * publish_every + publish_every - 1
        self._last = steps * groups_per_step
        self._published = done_steps
        self._next = done_steps * groups_per_step
        self._finished = {group.index: group for group in groups if group.index >= self._next}
        self._restored = frozenset(self._finished)
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self.on_admission: Callable[[], None] = lambda: None
        """Called, from any thread, when more groups may start."""

    def admit(self) -> int | None:
        """Return the next group to play, or None while none may start."""
        with self._changed:
            while self._next in self._restored:  # whether it was taken in the meantime or not
                self._next += 1
            step = self._next // self._per_step  # steps that come before its own
            if self._next >= self._last or step - self._published > self._ahead:
                return None
            self._next += 1
            return self._next - 1

    def published(self, step: int) -> None:
        """Note that the weights of that step are live."""
        with self._changed:
            self._published = step
        self.on_admission()

    def finish(self, group: Group) -> None:
        """Hand in a group that was played and scored."""
        with self._changed:
            self._finished[group.index] = group
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Let whoever waits for a step raise this."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def take(self, step: int, timeout_s: float) -> tuple[Group, ...] | None:
        """Return the groups of a step (from 1) in order; None if they are not there in time.

        Raises whatever made the worker fail.
        """
        first = (step - 1) * self._per_step
        wanted = range(first, first + self._per_step)
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or all(i in self._finished for i in wanted), timeout_s
            )
            if self._failure is not None:
                raise self._failure
            if not all(i in self._finished for i in wanted):
                return None
            return tuple(self._finished.pop(i) for i in wanted)

    def waiting(self) -> tuple[Group, ...]:
        """Return the groups that are finished and not taken: a checkpoint keeps them."""
        with self._changed:
            return tuple(self._finished[i] for i in sorted(self._finished))
