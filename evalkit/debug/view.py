"""What there is to see of an episode at a standstill, as JSON types: for a terminal, or a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from evalkit.debug.session import Debugger
from evalkit.play.contract import EnvRaised, env_contract
from evalkit.play.strategies import Messages, prompt_digest

T = TypeVar("T")


def view(debugger: Debugger) -> dict[str, Any]:
    """Return everything there is to see, as JSON types.

    `state` and `picture` show what is hidden from the policy; `oracle` is the best action.
    """
    rollout, end = debugger.rollout, debugger.end
    over = end is not None
    messages: Messages = () if over else _seen(debugger.prompt) or ()
    env = rollout.env
    return {
        "key": asdict(debugger.key),
        "turn": debugger.turn,
        "max_turns": env.max_turns,
        "phase": debugger.phase,
        "follows_record": debugger.follows_record,
        "strategy": str(rollout.arm.strategy),
        "observation": rollout.observation,
        "prompt": {
            "digest": prompt_digest(messages) if messages else None,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
        },
        "reply": None if debugger.pending is None else debugger.pending.text,
        "notes": _seen(lambda: rollout.history.notes),
        "notes_editable": not over and rollout.history.with_notes("") is not None,
        "state": _seen(env.state),
        "picture": _seen(env.render),
        "legal_actions": [] if over else list(_seen(env.legal_actions) or ()),
        "oracle": None if over else _seen(env.oracle),
        "turns": [asdict(turn) for turn in rollout.turns],
        "interventions": [asdict(made) for made in debugger.interventions],
        "return": sum(turn.reward for turn in rollout.turns) if end is None else end.return_,
        "success": None if end is None else end.success,
        "stop_reason": None if end is None else end.stop_reason,
        "failure_message": None if end is None else end.failure_message,
    }


def _seen(look: Callable[[], T]) -> T | None:
    """Look at an env that may be broken: then None."""
    try:
        with env_contract:
            return look()
    except EnvRaised:
        return None
