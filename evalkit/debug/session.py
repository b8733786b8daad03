"""The debugger of one episode: step, go back, intervene, fork. Knows no terminal and no files.

It drives the episode loop of `evalkit.play.rollout` half a turn at a time, and so can show nothing
that a run would not have played. Whatever a person changes is kept as an `Intervention`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from evalkit.debug.interventions import SAID, Intervention, InterventionKind
from evalkit.debug.recorded import Recording, turn_difference
from evalkit.errors import BadConfig, CallFailed, ContextOverflow, ReplayDiffers
from evalkit.play.contract import EnvRaised, env_contract
from evalkit.play.parsing import Reading, split_reasoning
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.rollout import Arm, Rollout, session_id
from evalkit.play.strategies import History, Messages, parse_strategy
from evalkit.record.trajectory import Key, Trajectory, Turn


class Phase(StrEnum):
    """Where within a turn an episode stands."""

    ASKING = "asking"
    """The prompt is ready, and was put to nobody."""
    ANSWERED = "answered"
    """A reply is there, and was not taken."""
    OVER = "over"
    """The episode ended."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """An episode at the beginning of a turn, before any intervention."""

    state: str
    history: History
    observation: str
    arm: Arm
    key: Key
    pattern: str | None


class Debugger:
    """One episode, played as slowly as wanted.

    `arm.policy` plays live. While turns are `recorded` and nothing is changed, their answers are
    given instead, and every turn must come out as it was recorded, to the byte: `ReplayDiffers`
    otherwise. `planned` are the interventions of the recorded turns.
    """

    def __init__(
        self,
        arm: Arm,
        key: Key,
        *,
        recorded: Sequence[Turn] = (),
        planned: Sequence[Intervention] = (),
    ) -> None:
        self._first = (arm, key)
        self.rollout = Rollout(arm, key)
        """The episode itself, for those who look."""
        self._recorded = tuple(recorded)
        self._planned = tuple(planned)
        self._marks: list[_Mark] = []
        self._pending: tuple[Ask, Completion] | None = None
        self.live = arm.policy
        """Who is asked where nothing is recorded."""
        self.interventions: list[Intervention] = []
        self.end: Trajectory | None = None
        """The record, once the episode is over."""
        try:
            self.rollout.start()
            self._enter_turn()
        except EnvRaised as raised:
            self.end = self.rollout.broken(raised)

    @property
    def turn(self) -> int:
        """The turn that is to be played, from 0; how many were played."""
        return len(self.rollout.turns)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns played so far."""
        return tuple(self.rollout.turns)

    @property
    def pending(self) -> Completion | None:
        """The answer of this turn, before it is taken."""
        return None if self._pending is None else self._pending[1]

    @property
    def arm(self) -> Arm:
        """Who plays now; its policy is `live`."""
        return replace(self.rollout.arm, policy=self.live)

    @property
    def key(self) -> Key:
        """Which episode this is."""
        return self.rollout.key

    @property
    def phase(self) -> Phase:
        """Where within the turn the episode stands."""
        if self.end is not None:
            return Phase.OVER
        return Phase.ASKING if self._pending is None else Phase.ANSWERED

    @property
    def follows_record(self) -> bool:
        """Whether the next answer is a recorded one."""
        return self.turn < len(self._recorded) and set(self.interventions) <= set(self._planned)

    async def ask(self) -> Completion:
        """Get the answer of this turn; it waits, to be looked at, changed, or taken by `step`.

        Raises:
            CallFailed: there was none; asking again is allowed.
            ReplayDiffers: the record was not made from this prompt.

        """
        self._require_going_on()
        if self._pending is None:
            self._pending = await self._answer()
        return self._pending[1]

    async def step(self) -> None:
        """Play one turn; its end may be the episode's.

        Raises:
            CallFailed: the call failed; nothing was played.
            ReplayDiffers: the turn is not the recorded one.

        """
        following = self.follows_record
        try:
            await self.ask()
            assert self._pending is not None
            (ask, completion), self._pending = self._pending, None
            stop = self.rollout.act(ask, completion)
            if following:
                self._require_same(self.rollout.turns[-1])
                before = [made for made in self.interventions if made.turn < self.turn - 1]
                self.interventions = [*before, *self._planned_in(self.turn - 1)]
            if stop is None:
                self._enter_turn()
            else:
                self.end = self.rollout.judged(stop)
        except (ContextOverflow, EnvRaised) as error:
            self.end = self.rollout.failed(error)

    async def run(self, to: int | None = None) -> None:
        """Play until turn `to` is to be played, or to the end."""
        while self.end is None and (to is None or self.turn < to):
            await self.step()

    async def finish(self) -> Trajectory:
        """Play to the end, at which a call that fails is an end as well; return the record."""
        try:
            await self.run()
        except CallFailed as failure:
            self.end = self.rollout.failed(failure)
        assert self.end is not None
        return self.end

    def back(self, turn: int) -> None:
        """Return to the beginning of `turn`; what was played and changed from there on is gone.

        Raises:
            BadConfig: that turn was not reached.

        """
        if not 0 <= turn < len(self._marks):
            raise BadConfig(f"turn {turn} was not reached: turns 0 to {len(self._marks) - 1} were")
        rollout, mark = self.rollout, self._marks[turn]
        del self._marks[turn:], rollout.turns[turn:]
        rollout.env.load(json.loads(mark.state))
        rollout.history, rollout.observation = mark.history, mark.observation
        rollout.arm, rollout.key, rollout.pattern = mark.arm, mark.key, mark.pattern
        rollout.session_id = session_id(mark.arm.run_id, mark.key)
        self.live = mark.arm.policy
        self.interventions = [made for made in self.interventions if made.turn < turn]
        self.end = self._pending = None
        self._enter_turn()

    def leave_record(self) -> None:
        """Ask the live policy from here on, whatever is recorded."""
        self._recorded = self._recorded[: self.turn]

    def intervene(self, kind: InterventionKind, value: str) -> None:
        """Change something before the reply of this turn is taken; `use` is for models.

        Raises:
            BadConfig: it cannot be changed so.

        """
        self._require_going_on()
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadConfig(f"a text that is not UTF-8 cannot be recorded: {error}") from error
        made = Intervention(turn=self.turn, kind=kind, value=value)
        try:
            self._apply(made)
        except EnvRaised as raised:
            raise BadConfig(f"the env raised {raised.__cause__!r}") from raised
        self._note_change(made)

    def use(self, policy: Policy, name: str) -> None:
        """Let another policy, called `name`, play from here."""
        self._require_going_on()
        self.live, self._pending = policy, None
        self._note_change(Intervention(turn=self.turn, kind=InterventionKind.MODEL, value=name))

    async def fork(self, turn: int) -> Debugger:
        """Return a debugger that has replayed the turns before `turn`, and goes on live.

        Raises:
            BadConfig: that turn was not reached.
            ReplayDiffers: the env does not play the same again.

        """
        if not 0 <= turn < len(self._marks):
            raise BadConfig(f"turn {turn} was not reached: turns 0 to {len(self._marks) - 1} were")
        arm, key = self._first
        past = [made for made in self.interventions if made.turn < turn]
        other = Debugger(arm, key, recorded=self.turns[:turn], planned=past)
        await other.run(turn)
        other.live = self._marks[turn].arm.policy if turn < self.turn else self.live
        return other

    def prompt(self) -> Messages:
        """Return the messages of this turn, as they would be sent now, byte for byte."""
        if self._pending is not None:
            return self._pending[0].messages
        with env_contract:
            return self.rollout.history.messages(self.rollout.observation)

    def _enter_turn(self) -> None:
        """Remember the beginning of a turn, then change what the record says was changed there."""
        rollout = self.rollout
        rollout.arm = self.arm
        with env_contract:
            state = json.dumps(rollout.env.state())
        self._marks.append(
            _Mark(
                state, rollout.history, rollout.observation, rollout.arm, rollout.key,
                rollout.pattern,
            )
        )  # fmt: skip
        if set(self.interventions) <= set(self._planned):
            for made in self._planned_in(self.turn):
                if made.kind in SAID:  # written down when the recorded answer is taken
                    continue
                if made.kind is not InterventionKind.MODEL:
                    self._apply(made)
                self.interventions.append(made)

    def _planned_in(self, turn: int) -> list[Intervention]:
        return [made for made in self._planned if made.turn == turn]

    def _note_change(self, made: Intervention) -> None:
        """Write a change down; a reply that was put in before it is not taken any more."""
        here = self.turn
        kept = [each for each in self.interventions if each.turn < here or each.kind not in SAID]
        self.interventions = [*kept, made]

    async def _answer(self) -> tuple[Ask, Completion]:
        rollout, before = self.rollout, self.rollout.history
        follows = self.follows_record
        policy = Recording(self._recorded) if follows else self.live
        rollout.arm = replace(rollout.arm, policy=policy)
        try:
            return await rollout.ask()
        except ContextOverflow as overflow:
            rollout.history = before
            if follows:
                raise ReplayDiffers(f"{self.key}: {overflow}") from overflow
            raise
        finally:
            rollout.arm = self.arm

    def _apply(self, made: Intervention) -> None:
        changes: Mapping[InterventionKind, Callable[[str], None]] = {
            InterventionKind.OBSERVATION: self._show,
            InterventionKind.NOTES: self._note,
            InterventionKind.REPLY: self._say,
            InterventionKind.ACTION: self._force,
            InterventionKind.STRATEGY: self._remember,
            InterventionKind.REPETITION: self._repeat,
        }
        changes[made.kind](made.value)

    def _show(self, text: str) -> None:
        self.rollout.observation, self._pending = text, None

    def _note(self, notes: str) -> None:
        history = self.rollout.history.with_notes(notes)
        if history is None:
            raise BadConfig(f"{self.arm.strategy} keeps no notes of the model's: none to change")
        if history.notes != notes:
            raise BadConfig(f"{self.arm.strategy} keeps {len(history.notes)} characters of notes")
        self.rollout.history, self._pending = history, None

    def _say(self, text: str) -> None:
        self._pending = self.rollout.question(self.prompt()), Completion(text=text)

    def _force(self, action: str) -> None:
        with env_contract:
            legal = self.rollout.env.legal_actions()
        if action not in legal:
            raise BadConfig(f"no legal action {action!r} in turn {self.turn}: {', '.join(legal)}")
        self._say(self.rollout.env.format_action(action))

    def _remember(self, name: str) -> None:
        """Keep the whole past by another strategy."""
        try:
            strategy = parse_strategy(name)
        except ValueError as error:
            raise BadConfig(str(error)) from error
        rollout = self.rollout
        rollout.arm, self._pending = replace(rollout.arm, strategy=strategy), None
        with env_contract:
            state = rollout.env.state()
            rollout.env.reset(seed=self.key.env_seed)
            rollout.history = strategy.start(rollout.env)
            rollout.pattern = strategy.answer_pattern(rollout.env) if rollout.arm.guided else None
            rollout.env.load(json.loads(json.dumps(state)))
        for turn in rollout.turns:
            visible, _ = split_reasoning(turn.completion)
            reply = rollout.kept(Reading(visible, turn.reasoning, turn.action or "", turn.outcome))
            rollout.history = rollout.history.update(turn.observation, reply, turn.action)

    def _repeat(self, repetition: str) -> None:
        rollout = self.rollout
        rollout.key, self._pending = replace(rollout.key, repetition=int(repetition)), None
        rollout.session_id = session_id(rollout.arm.run_id, rollout.key)

    def _require_going_on(self) -> None:
        if self.end is not None:
            raise BadConfig(f"the episode is over: {self.end.stop_reason.value}; go back to a turn")

    def _require_same(self, played: Turn) -> None:
        recorded = self._recorded[played.turn]
        if played != recorded:
            self.back(played.turn)
            raise ReplayDiffers(f"{self.key}: {turn_difference(recorded, played)}")
