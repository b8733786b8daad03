"""Policies without a model: random, oracle, noop, human, and a script of replies."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from evalkit.errors import BadConfig
from evalkit.play.contract import env_contract
from evalkit.play.policy import Ask, Completion, Policy


class RandomPolicy(Policy):
    """Any action that the rules allow now, with equal chances, by the request's seed."""

    async def complete(self, ask: Ask) -> Completion:
        """Draw an action."""
        with env_contract:
            action = random.Random(ask.seed).choice(ask.env.legal_actions())
        return Completion(text=ask.env.format_action(action))


class OraclePolicy(Policy):
    """The best action, with full knowledge of the hidden state."""

    async def complete(self, ask: Ask) -> Completion:
        """Ask the env."""
        with env_contract:
            return Completion(text=ask.env.format_action(ask.env.oracle()))


class NoopPolicy(Policy):
    """Never says anything."""

    async def complete(self, ask: Ask) -> Completion:  # noqa: ARG002
        """Say nothing."""
        return Completion(text="")


class HumanPolicy(Policy):
    """A person at the terminal: sees what a model would see, types what it would write."""

    def __init__(self, read: Callable[[str], str] = input) -> None:
        self._read = read
        self._last_session = ""

    async def complete(self, ask: Ask) -> Completion:
        """Show the prompt and read a line; a bare action is put into its tag."""
        shown = [ask.messages[-1].content]
        if ask.session_id != self._last_session:
            self._last_session = ask.session_id
            shown.insert(0, ask.messages[0].content)
        sys.stdout.write("\n" + "\n\n".join(shown) + "\n")
        try:
            line = await self._line(f"[turn {ask.turn}] > ")
        except EOFError:
            raise KeyboardInterrupt from None
        bare = line.strip().lower() in ask.env.all_actions()
        return Completion(text=ask.env.format_action(line.strip().lower()) if bare else line)

    async def _line(self, prompt: str) -> str:
        """Read a line on a thread that the program does not wait for: Ctrl-C ends at once."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        def settle(line: str | None) -> None:
            if not answer.done():
                if line is None:
                    answer.set_exception(EOFError())
                else:
                    answer.set_result(line)

        def read() -> None:
            try:
                line = self._read(prompt)
            except EOFError:
                line = None
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, line)

        threading.Thread(target=read, daemon=True).start()
        return await answer


class ScriptPolicy(Policy):
    """Replies from a file, in order, from the top in each episode; silence after the last."""

    def __init__(self, replies: Sequence[str]) -> None:
        self._replies = tuple(replies)

    @classmethod
    def read(cls, path: Path) -> ScriptPolicy:
        """Read one reply per line; of a .jsonl file, one JSON string per line.

        Raises:
            BadConfig: no such file, or a line that is not a JSON string.

        """
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadConfig(f"script:{path}: {error}") from error
        if path.suffix != ".jsonl":
            return cls(lines)
        replies = []
        for number, line in enumerate(lines, 1):
            try:
                reply = orjson.loads(line)
            except ValueError as error:
                raise BadConfig(f"script:{path}:{number}: not JSON: {error}") from error
            if not isinstance(reply, str):
                raise BadConfig(f"script:{path}:{number}: expected a JSON string")
            replies.append(reply)
        return cls(replies)

    async def complete(self, ask: Ask) -> Completion:
        """Give the reply of this turn."""
        return Completion(text=self._replies[ask.turn] if ask.turn < len(self._replies) else "")
