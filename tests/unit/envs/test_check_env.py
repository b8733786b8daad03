import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Self

import pytest

import envs
from envs import NO_ACTION, EpisodeOver, TextEnv
from envs.games.key_door import KeyDoor
from envs.testing import RULES, NeverEnded, Report, check_env, play

THEIR_ENV = Path(__file__).parent / "their_env.py"
Result = tuple[str, float, bool, bool, dict[str, Any]]


class GlobalRng(KeyDoor):
    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> Any:
        random.seed(seed)
        return super().reset(seed=random.randrange(10**9), options=options)


class ListensToGlobalRng(KeyDoor):
    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> Any:
        return super().reset(seed=seed + hash(random.getstate()) % 99, options=options)


class Unseeded(KeyDoor):
    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> Any:
        return super().reset(seed=random.SystemRandom().randrange(10**9), options=options)


class AlwaysTheSame(KeyDoor):
    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> Any:
        return super().reset(seed=7, options=options)


class SharedAcrossEpisodes(KeyDoor):
    lost: ClassVar[list[int]] = []

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> Any:
        self.lost.clear()
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Result:
        observation, *rest = super().step(action)
        self.lost.append(self._turn)
        return f"{observation} {len(self.lost)}", *rest  # type: ignore[return-value]


class ForgetsRooms(KeyDoor):
    def load(self, state: Mapping[str, Any]) -> None:
        super().load({**state, "visited": []})


class StateIsNotJson(KeyDoor):
    def state(self) -> dict[str, Any]:
        return {**super().state(), "visited": set(super().state()["visited"])}


class LoadDoesNothing(KeyDoor):
    def load(self, state: Mapping[str, Any]) -> None:
        self.reset(seed=0)


class SharedByClones(KeyDoor):
    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> Any:
        self.trail: list[str] = []
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Result:
        result = super().step(action)
        self.trail.append(action)
        return result

    def state(self) -> dict[str, Any]:
        return {**super().state(), "trail": list(self.trail)}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.trail = list(state["trail"])


class CloneIsItself(KeyDoor):
    def clone(self) -> Self:
        return self


class OracleCostsATurn(KeyDoor):
    def oracle(self) -> str:
        self._turn += 0 if self._over else 1
        return super().oracle()


class LazyOracle(KeyDoor):
    def oracle(self) -> str:
        return "interact"


class IllegalOracle(KeyDoor):
    def oracle(self) -> str:
        return "teleport"


class WrongPromise(KeyDoor):
    def optimal_turns(self) -> int | None:
        return 3


class BothFlags(KeyDoor):
    def step(self, action: str) -> Result:
        observation, reward, terminated, truncated, info = super().step(action)
        over = terminated or truncated
        return observation, reward, over, over, info


class NoText(KeyDoor):
    def step(self, action: str) -> Result:
        _, *rest = super().step(action)
        return "", *rest  # type: ignore[return-value]


class Endless(KeyDoor):
    def step(self, action: str) -> Result:
        self._turn = 0
        return super().step(action)


class StartsSuccessful(KeyDoor):
    @property
    def success(self) -> bool:
        return True


class PaysIdlers(KeyDoor):
    def step(self, action: str) -> Result:
        observation, reward, *rest = super().step(action)
        return observation, reward + (0.5 if action == NO_ACTION else 0.0), *rest  # type: ignore[return-value]


class GoesOnAfterTheEnd(KeyDoor):
    def step(self, action: str) -> Result:
        try:
            return super().step(action)
        except EpisodeOver:
            return "over", 0.0, True, False, {}


class RaisesOnGarbage(KeyDoor):
    def step(self, action: str) -> Result:
        if action not in self.all_actions():
            raise KeyError(action)
        return super().step(action)


class GarbageIsFree(KeyDoor):
    def step(self, action: str) -> Result:
        result = super().step(action)
        if result[4].get("illegal"):
            self._turn -= 1
        return result


class GarbageIsNotFlagged(KeyDoor):
    def step(self, action: str) -> Result:
        *rest, info = super().step(action)
        return *rest, {**info, "illegal": False}  # type: ignore[return-value]


class Echo(KeyDoor):
    def step(self, action: str) -> Result:
        observation, *rest = super().step(action)
        return f"You said {action}. {observation}", *rest  # type: ignore[return-value]


class NothingLegal(KeyDoor):
    def legal_actions(self) -> tuple[str, ...]:
        return ()


class LegalIsUnknown(KeyDoor):
    def all_actions(self) -> tuple[str, ...]:
        return ("up", "down", "left", "right")


class WritesOtherTag(KeyDoor):
    def format_action(self, action: str) -> str:
        return f"[{action}]"


class AdmitsAnything(KeyDoor):
    def action_pattern(self) -> str:
        return "(?s:.*)"


class NoPrompt(KeyDoor):
    system_prompt = "Good luck."


class KeepsParamsBack(KeyDoor):
    @property
    def params(self) -> dict[str, Any]:
        return {"max_turns": self.max_turns}


class ShowsState(KeyDoor):
    def step(self, action: str) -> Result:
        observation, *rest = super().step(action)
        return f"{observation} {json.dumps(self.state())}", *rest  # type: ignore[return-value]


class ShowsAnswer(KeyDoor):
    def step(self, action: str) -> Result:
        observation, *rest = super().step(action)
        return f"{observation} Hint: {self.format_action(self.oracle())}", *rest  # type: ignore[return-value]


class TellsTheDoor(KeyDoor):
    def step(self, action: str) -> Result:
        observation, *rest = super().step(action)
        return f"{observation} The door is in room {self._door}.", *rest  # type: ignore[return-value]


class NotesTellTheDoor(KeyDoor):
    def optimal_scratchpad(self) -> str:
        return f"The door is in room {self._door}."


class Slow(KeyDoor):
    def step(self, action: str) -> Result:
        until = perf_counter() + 120e-6
        while perf_counter() < until:
            pass
        return super().step(action)


BROKEN: list[tuple[type[KeyDoor], str]] = [
    (GlobalRng, "own_rng"),
    (ListensToGlobalRng, "own_rng"),
    (Unseeded, "seeds"),
    (AlwaysTheSame, "seeds"),
    (SharedAcrossEpisodes, "interleaving"),
    (ForgetsRooms, "state"),
    (StateIsNotJson, "state"),
    (LoadDoesNothing, "state"),
    (SharedByClones, "clone"),
    (CloneIsItself, "clone"),
    (OracleCostsATurn, "queries"),
    (LazyOracle, "oracle"),
    (IllegalOracle, "oracle"),
    (WrongPromise, "oracle"),
    (BothFlags, "steps"),
    (NoText, "steps"),
    (Endless, "steps"),
    (StartsSuccessful, "noop"),
    (PaysIdlers, "noop"),
    (GoesOnAfterTheEnd, "episode_over"),
    (RaisesOnGarbage, "invalid_actions"),
    (GarbageIsFree, "invalid_actions"),
    (GarbageIsNotFlagged, "invalid_actions"),
    (Echo, "invalid_actions"),
    (NothingLegal, "legal_actions"),
    (LegalIsUnknown, "legal_actions"),
    (WritesOtherTag, "answer_form"),
    (AdmitsAnything, "answer_form"),
    (NoPrompt, "prompts"),
    (KeepsParamsBack, "params"),
    (ShowsState, "hidden"),
    (ShowsAnswer, "hidden"),
    (TellsTheDoor, "hidden"),
    (NotesTellTheDoor, "hidden"),
    (Slow, "speed"),
]


def elsewhere(env: TextEnv) -> list[dict[str, Any]]:
    """States of key_door with what was not seen yet put into other unseen rooms."""
    state = env.state()
    unseen = [room for room in range(env.params["size"] ** 2) if room not in state["visited"]]
    twins = []
    for moved in ("key", "door"):
        other = state["door" if moved == "key" else "key"]
        if state[moved] in unseen and not (moved == "key" and state["has_key"]):
            twins += [{**state, moved: room} for room in unseen if room != other]
    return twins


def names_of_failed(report: Report) -> set[str]:
    return {check.name for check in report.failed}


@pytest.mark.parametrize(("broken", "rule"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_a_broken_env_is_caught_by_the_rule_it_breaks(broken: type[KeyDoor], rule: str) -> None:
    report = check_env(broken, seeds=6, twins=elsewhere)
    assert rule in names_of_failed(report)
    assert not report.ok


def test_every_rule_has_an_env_that_breaks_it() -> None:
    assert {rule for _, rule in BROKEN} == set(RULES)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"size": 2, "max_turns": 12},
        {"size": 5, "max_turns": 36, "show_position": False, "show_moves": False},
        {"size": 7, "show_position": False},
        {"show_moves": False},
    ],
)
def test_key_door_passes(params: dict[str, Any]) -> None:
    report = check_env(lambda: envs.make("key_door", **params), twins=elsewhere)
    assert report.failed == ()


@pytest.mark.parametrize(
    "params",
    [{}, {"opponent": "minimax"}, {"opponent": "noisy", "epsilon": 0.1}, {"max_turns": 5}],
)
def test_tic_tac_toe_passes(params: dict[str, Any]) -> None:
    report = check_env(lambda: envs.make("tic_tac_toe", **params))
    assert report.failed == ()


def test_somebody_elses_env_of_40_lines_passes() -> None:
    def corridor() -> TextEnv:
        return envs.make(f"{THEIR_ENV}:Corridor")

    written = [line for line in THEIR_ENV.read_text().splitlines() if line.strip()]
    assert len(written) <= 40
    report = check_env(corridor)
    assert report.failed == ()
    assert str(report).endswith("corridor: 18 of 18 checks passed")


def test_the_report_names_the_numbers() -> None:
    report = check_env(KeyDoor, seeds=100)
    messages = {check.name: check.message for check in report.checks}
    assert list(messages) == ["factory", *RULES]
    assert messages["oracle"] == "success 100 of 100, 7.22 turns"
    assert messages["noop"] == "100 idle episodes, no success, no gain"
    assert re.fullmatch(r"\d+\.\d\d µs a turn, the limit is 50", messages["speed"])
    assert report.env == "key_door"


def test_an_env_that_cannot_be_made_is_one_failed_check() -> None:
    report = check_env(lambda: KeyDoor(size=1))
    assert [(check.name, check.ok) for check in report.checks] == [("factory", False)]
    assert "size must be at least 2" in report.checks[0].message


def test_a_factory_must_make_a_new_env_each_time() -> None:
    env = KeyDoor()
    report = check_env(lambda: env)
    assert [check.message for check in report.failed] == ["the factory made the same object twice"]


def test_one_seed_is_too_few() -> None:
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        check_env(KeyDoor, seeds=1)


def test_the_global_random_is_left_as_it_was() -> None:
    before = random.getstate()
    check_env(KeyDoor, seeds=2)
    assert random.getstate() == before


def test_play_stops_an_endless_env() -> None:
    with pytest.raises(NeverEnded, match="not over after max_turns = 35 turns"):
        play(Endless(), 0, lambda env, observation: "up" if "(0," not in observation else "down")
