"""Many episodes: order, resuming after any crash, and what concerns the whole run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from envs.games.key_door import KeyDoor
from evalkit.errors import BadConfig, CallFailed, DamagedRun, Failure, ServerLost, Unauthorized
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.rollout import Arm
from evalkit.play.runner import episode_keys, play_all, rare_collections
from evalkit.play.strategies import FullHistory, Scratchpad
from evalkit.record.journal import read_journal
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.record.tables import episode_line, turn_lines
from evalkit.record.tally import ArmTally, Tally
from evalkit.record.trajectory import Key, StopReason, Trajectory
from evalkit.testing import FakePolicy, Reply

ACTIONS = ("up", "down", "left", "right", "interact")


def lively(ask: Ask) -> Reply:
    """Answer by the prompt and the request's seed alone, as a deterministic server would."""
    said = ACTIONS[(ask.seed + len(ask.messages)) % len(ACTIONS)]
    text = f"<scratchpad>turn {ask.turn}, {said}</scratchpad><action>{said}</action>"
    return Completion(text=text, prompt_tokens=len(ask.messages), completion_tokens=ask.seed % 7)


def arms(policy: Policy, names: Sequence[str] = ("A", "B")) -> list[Arm]:
    strategies = {"A": FullHistory(), "B": Scratchpad(max_chars=10)}
    return [
        Arm(
            name=name,
            policy=policy,
            strategy=strategies[name],
            make_env=partial(KeyDoor, size=2, max_turns=4),
            run_id="run",
        )
        for name in names
    ]


def new_run(path: Path) -> RunDir:
    return RunDir.create(path, "run", {})


def play_run(
    rundir: RunDir,
    policy: Policy,
    *,
    seeds: Sequence[int] = range(6),
    k: int = 1,
    concurrency: int = 3,
    names: Sequence[str] = ("A", "B"),
) -> Tally:
    tally = Tally(
        total_episodes=len(seeds) * k * len(names), arms={name: ArmTally() for name in names}
    )
    keys = episode_keys(seeds, k, names)
    asyncio.run(play_all(arms(policy, names), keys, rundir, tally, concurrency=concurrency))
    return tally


def episodes(rundir: RunDir) -> list[Trajectory]:
    return list(TrajectoryFile(rundir.trajectories_path))


def tables(rundir: RunDir) -> str:
    """Return the lines of episodes.csv and turns.csv."""
    played = [trajectory.plain() for trajectory in episodes(rundir)]
    return "".join(line("run", each) for line in (episode_line, turn_lines) for each in played)


def request_ids(rundir: RunDir) -> list[str]:
    return [entry["request_id"] for entry in read_journal(rundir.journal_path)]


def test_episodes_come_seed_by_seed_with_their_arms_side_by_side() -> None:
    assert [str(key) for key in episode_keys([7, 3], 2, ["A", "B"])] == [
        "A/7/0", "B/7/0", "A/7/1", "B/7/1", "A/3/0", "B/3/0", "A/3/1", "B/3/1",
    ]  # fmt: skip


def test_results_and_prompts_do_not_depend_on_concurrency_or_on_the_order_of_answers(
    tmp_path: Path,
) -> None:
    results, prompts = set(), []
    for concurrency, shuffle in ((1, None), (3, 1), (50, 2)):
        rundir = new_run(tmp_path / str(concurrency))
        policy = FakePolicy(lively, shuffle=shuffle)
        play_run(rundir, policy, k=2, concurrency=concurrency)
        results.add(tables(rundir))
        asked = {
            ask.request_id: (ask.seed, b"".join(message.json for message in ask.messages))
            for ask in policy.asked
        }
        assert len(asked) == len(policy.asked)
        prompts.append(asked)
    assert len(results) == 1
    assert prompts[0] == prompts[1] == prompts[2]


def test_every_call_is_in_the_journal_once(tmp_path: Path) -> None:
    rundir, policy = new_run(tmp_path), FakePolicy(lively, shuffle=1)
    tally = play_run(rundir, policy)
    assert sorted(request_ids(rundir)) == sorted(ask.request_id for ask in policy.asked)
    assert tally.turns == len(policy.asked)
    assert tally.episodes == tally.total_episodes == 12
    entry = next(read_journal(rundir.journal_path))
    assert list(entry) == ["format", "request_id", "seed", "prompt", "at", "completion"]


def crashed(whole: RunDir, path: Path, journal: bytes) -> tuple[RunDir, set[str]]:
    """Make the directory of a run killed when its journal was so long; return whom it asked.

    An episode lies in trajectories.jsonl when all of its calls lie in the journal.
    """
    rundir = new_run(path)
    rundir.journal_path.write_bytes(journal)
    known = set(request_ids(rundir))
    for trajectory in episodes(whole):
        key = trajectory.key
        ids = {
            f"run-{key.arm}-{key.env_seed}-{key.repetition}-{turn.turn}"
            for turn in trajectory.turns
        }
        if ids <= known:
            with rundir.trajectories_path.open("ab") as file:
                file.write(trajectory.to_json() + b"\n")
    return rundir, known


def test_resuming_from_a_journal_cut_anywhere_pays_nothing_twice(tmp_path: Path) -> None:
    whole = new_run(tmp_path)
    play_run(whole, FakePolicy(lively, shuffle=1), seeds=range(3))
    everything, expected = set(request_ids(whole)), tables(whole)
    data = whole.journal_path.read_bytes()
    lines = data.splitlines(keepends=True)
    cuts = [b"".join(lines[:number]) for number in range(len(lines) + 1)]
    cuts += [data[:-cut] for cut in range(1, len(lines[-1]))]
    for number, cut in enumerate(cuts):
        rundir, known = crashed(whole, tmp_path / f"cut{number}", cut)
        policy = FakePolicy(lively, shuffle=number)
        tally = play_run(rundir, policy, seeds=range(3))
        asked = [ask.request_id for ask in policy.asked]
        assert sorted(asked) == sorted(everything - known)
        assert tally.turns == len(asked)
        assert tables(rundir) == expected
        assert sorted(request_ids(rundir)) == sorted(everything)


def test_a_torn_trajectory_is_played_again_from_the_journal(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    play_run(rundir, FakePolicy(lively), seeds=range(2))
    expected = tables(rundir)
    data = rundir.trajectories_path.read_bytes()
    last = len(data.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1, 7):
        rundir.trajectories_path.write_bytes(data[:-cut])
        policy = FakePolicy(lively)
        play_run(rundir, policy, seeds=range(2))
        assert policy.asked == []
        assert tables(rundir) == expected


def test_a_finished_run_asks_nobody(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    play_run(rundir, FakePolicy(lively))
    before = rundir.trajectories_path.read_bytes()
    policy = FakePolicy(lively)
    tally = play_run(rundir, policy)
    assert policy.asked == []
    assert rundir.trajectories_path.read_bytes() == before
    assert (tally.episodes, tally.episodes_before, tally.turns) == (12, 12, 0)


def test_lost_episodes_are_played_again_and_their_answered_calls_are_not(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    lost = FakePolicy(
        lambda ask: CallFailed(Failure.TIMEOUT, "slow") if ask.turn == 2 else lively(ask)
    )
    tally = play_run(rundir, lost)
    assert {trajectory.stop_reason for trajectory in episodes(rundir)} >= {StopReason.INFRA_ERROR}
    assert sum(arm.errors for arm in tally.arms.values()) > 0
    known = set(request_ids(rundir))
    healthy = FakePolicy(lively)
    tally = play_run(rundir, healthy)
    assert known.isdisjoint(ask.request_id for ask in healthy.asked)
    assert sum(arm.errors for arm in tally.arms.values()) == 0
    unbroken = new_run(tmp_path)
    play_run(unbroken, FakePolicy(lively))
    assert tables(rundir) == tables(unbroken)


def test_a_journaled_answer_to_another_prompt_is_not_used(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    play_run(rundir, FakePolicy(lively), names=("A",), seeds=[0])
    rundir.trajectories_path.unlink()
    entries = [json.loads(line) for line in rundir.journal_path.read_bytes().splitlines()]
    entries[1]["prompt"] = "0" * 16
    rundir.journal_path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    policy = FakePolicy(lively)
    play_run(rundir, policy, names=("A",), seeds=[0])
    assert [ask.turn for ask in policy.asked] == [1]


def test_a_damaged_journal_is_not_played_on(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    play_run(rundir, FakePolicy(lively))
    data = rundir.journal_path.read_bytes()
    rundir.journal_path.write_bytes(data[:20] + b"\n" + data[20:])
    with pytest.raises(DamagedRun, match="byte 0"):
        play_run(rundir, FakePolicy(lively))


@pytest.mark.parametrize("error", [ServerLost("away"), Unauthorized("key")])
def test_what_concerns_the_run_ends_it_and_keeps_what_was_played(
    tmp_path: Path, error: Exception
) -> None:
    rundir = new_run(tmp_path)
    policy = FakePolicy(
        lambda ask: error if ask.session_id == "run-B-4-0" else lively(ask), shuffle=3
    )
    with pytest.raises(type(error)):
        play_run(rundir, policy)
    assert 0 < len(request_ids(rundir)) < len(policy.asked)
    known = set(request_ids(rundir))
    again = FakePolicy(lively)
    play_run(rundir, again)
    assert known.isdisjoint(ask.request_id for ask in again.asked)
    assert len(episodes(rundir)) == 12


def test_a_cancelled_run_can_be_resumed(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    stop = asyncio.Event()

    class Stopping(FakePolicy):
        async def complete(self, ask: Ask) -> Completion:
            if len(self.asked) == 9:
                stop.set()
                await asyncio.Event().wait()
            return await super().complete(ask)

    async def interrupted(policy: Policy) -> None:
        tally = Tally(total_episodes=12, arms={"A": ArmTally(), "B": ArmTally()})
        keys = episode_keys(range(6), 1, ["A", "B"])
        task = asyncio.create_task(play_all(arms(policy), keys, rundir, tally, concurrency=3))
        await stop.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted(Stopping(lively)))
    assert len(request_ids(rundir)) == 9
    again = FakePolicy(lively)
    play_run(rundir, again)
    unbroken = new_run(tmp_path)
    play_run(unbroken, FakePolicy(lively))
    assert tables(rundir) == tables(unbroken)
    assert len(again.asked) == len(request_ids(unbroken)) - 9


def test_two_at_once_cannot_play_the_same_run(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)

    def intrude(ask: Ask) -> Reply:
        tally = Tally(total_episodes=1, arms={"A": ArmTally()})
        work = play_all(arms(FakePolicy(lively)), [], rundir, tally, concurrency=1)
        with pytest.raises(BadConfig, match="played by another process"):
            work.send(None)
        return lively(ask)

    play_run(rundir, FakePolicy(intrude), seeds=[0])
    assert len(episodes(rundir)) == 2


def refused(message: str = "HTTP 400: no such field") -> CallFailed:
    return CallFailed(Failure.REFUSED, message, status=400)


def test_a_request_that_the_server_takes_from_nobody_is_a_bad_config(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="A: the server refuses the request: HTTP 400"):
        play_run(new_run(tmp_path), FakePolicy(lambda _: refused()), names=("A",))


def test_an_arm_that_is_refused_is_a_bad_config_even_when_the_other_is_not(tmp_path: Path) -> None:
    policy = FakePolicy(lambda ask: refused() if "-B-" in ask.session_id else lively(ask))
    with pytest.raises(BadConfig, match="B: the server refuses"):
        play_run(new_run(tmp_path), policy, concurrency=1)


def test_one_refused_episode_is_data_once_the_arm_was_answered(tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    policy = FakePolicy(lambda ask: refused() if "-4-0" in ask.session_id else lively(ask))
    play_run(rundir, policy, names=("A",), concurrency=1)
    failures = {str(trajectory.key): trajectory.failure for trajectory in episodes(rundir)}
    assert failures == {f"A/{seed}/0": Failure.REFUSED if seed == 4 else None for seed in range(6)}
    play_run(rundir, policy, names=("A",), concurrency=1)
    assert len(episodes(rundir)) == 6


def test_a_bug_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        play_run(new_run(tmp_path), FakePolicy(lambda _: ZeroDivisionError("a bug")))


def test_the_collector_is_left_as_it_was() -> None:
    import gc

    before = gc.get_threshold()
    first, second = rare_collections(), rare_collections()
    first.__enter__()
    second.__enter__()
    assert gc.get_threshold() != before
    first.__exit__(None, None, None)
    assert gc.get_threshold() != before
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_keys_sort_by_seed_then_repetition_then_arm() -> None:
    keys = [
        Key(env_seed=seed, repetition=repetition, arm=arm)
        for arm in ("B", "A")
        for repetition in (1, 0)
        for seed in (10, 9)
    ]
    assert [str(key) for key in sorted(keys)] == [
        "A/9/0", "B/9/0", "A/9/1", "B/9/1", "A/10/0", "B/10/0", "A/10/1", "B/10/1",
    ]  # fmt: skip
