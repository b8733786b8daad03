"""A trajectory as text, turn by turn, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from evalkit.record.trajectory import Trajectory, Turn


def replay_lines(trajectory: Trajectory) -> Iterator[str]:
    """Yield the lines of one episode."""
    key = trajectory.key
    yield f"arm {printable(key.arm)}, env seed {key.env_seed}, repetition {key.repetition}"
    for turn in trajectory.turns:
        yield from turn_lines(turn)
    yield ""
    yield f"     {_indented(trajectory.final_observation)}"
    best = "" if trajectory.optimal_turns is None else f" (oracle: {trajectory.optimal_turns})"
    verdict = "success" if trajectory.success else "no success"
    if not trajectory.scored:
        verdict = f"not scored: {_indented(trajectory.failure_message or '')}"
    yield (
        f"{verdict}, return {trajectory.return_:.2f}, {len(trajectory.turns)} turns{best}, "
        f"{trajectory.stop_reason.value}"
    )


def turn_lines(turn: Turn) -> Iterator[str]:
    """Yield the lines of one turn."""
    yield ""
    yield f"[{turn.turn:>2}] {_indented(turn.observation)}"
    if turn.reasoning:
        yield f"   ~ {_indented(turn.reasoning)}"
    yield f"   > {_indented(turn.completion) or '(nothing)'}"
    facts = [turn.outcome.value, f"action {turn.action or '-'}", f"reward {turn.reward:+.2f}"]
    facts += [fact for fact in (turn.event, turn.error) if fact]
    facts += [f"notes {turn.memory.value}"] if turn.memory else []
    facts += [f"version {turn.policy_version}"] if turn.policy_version else []
    yield f"   = {_indented(', '.join(facts))}"


def _indented(text: str) -> str:
    return printable(text.strip()).replace("\n", "\n     ")


def printable(text: str) -> str:
    """Return a text for a terminal: a model's control characters are shown, not sent to it."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
