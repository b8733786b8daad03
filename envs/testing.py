"""`check_env`: one suite that every env must pass, ours or anybody's.

Lives here: the report. The rules are in `conformance`, one function each. What no generic check
can see: whether an observation tells more than the game allows. The suite only finds the state's
own text and the oracle's answer in it, unless it is given `twins`: states that look alike to a
player. Nor can it see, within one process, an order that depends on Python's hash seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from envs.base import TextEnv
from envs.conformance import episodes, repeatable, surface
from envs.conformance.lab import Lab, Rule, RuleBroken, Twins
from envs.playing import NeverEnded, Played, Policy, play
from envs.registry import env_id

__all__ = ["Check", "NeverEnded", "Played", "Policy", "Report", "Twins", "check_env", "play"]

RULES: dict[str, Rule] = {
    "params": surface.params,
    "prompts": surface.prompts,
    "steps": episodes.steps,
    "own_rng": repeatable.own_rng,
    "seeds": repeatable.seeds,
    "interleaving": repeatable.interleaving,
    "state": repeatable.state,
    "clone": repeatable.clone,
    "queries": repeatable.queries,
    "oracle": episodes.oracle,
    "noop": episodes.noop,
    "episode_over": episodes.episode_over,
    "invalid_actions": episodes.invalid_actions,
    "legal_actions": surface.legal_actions,
    "answer_form": surface.answer_form,
    "hidden": surface.hidden,
    "speed": episodes.speed,
}
"""Every rule under the name that a report gives it, in the order of checking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule's verdict; `message` says what was found, good or bad."""

    name: str
    ok: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `check_env` found out about one env."""

    env: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.ok)

    def __str__(self) -> str:
        lines = [
            f"{'ok  ' if check.ok else 'FAIL'} {check.name:<16}{check.message}"
            for check in self.checks
        ]
        passed = len(self.checks) - len(self.failed)
        return "\n".join([*lines, f"{self.env}: {passed} of {len(self.checks)} checks passed"])


def check_env(
    factory: Callable[[], TextEnv],
    *,
    seeds: int = 1000,
    twins: Twins | None = None,
    max_us_per_turn: float = 50.0,
) -> Report:
    """Hold what `factory` makes against every rule of `TextEnv`; the report says what broke.

    `factory` makes a new env, always with the same parameters. `seeds`: how many episodes the
    oracle and the idle policy play, at least 2; other checks use a few of them. `max_us_per_turn`:
    the most microseconds that one `step` may take (median over episodes, best of several tries).

    Raises:
        ValueError: `seeds` is less than 2. Whatever the env raises is a failed check.

    """
    if seeds < 2:
        raise ValueError(f"seeds must be at least 2, to compare them, got {seeds}")
    lab = Lab(factory=factory, seeds=seeds, twins=twins, max_us_per_turn=max_us_per_turn)
    made = _run("factory", surface.constructible, lab)
    if not made.ok:
        return Report(env=getattr(factory, "__name__", "env"), checks=(made,))
    checks = (_run(name, rule, lab) for name, rule in RULES.items())
    return Report(env=env_id(factory()), checks=(made, *checks))


def _run(name: str, rule: Rule, lab: Lab) -> Check:
    try:
        message = rule(lab)
    except (RuleBroken, NeverEnded) as broken:
        return Check(name=name, ok=False, message=str(broken))
    except Exception as error:  # noqa: BLE001 - a broken env raises anything; it is this verdict
        return Check(name=name, ok=False, message=f"{type(error).__name__}: {error}")
    return Check(name=name, ok=True, message=message)
