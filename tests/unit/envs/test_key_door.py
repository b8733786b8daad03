import json
import random
from statistics import fmean
from typing import Any

import pytest

from envs import NO_ACTION, EpisodeOver, ParseKind
from envs.baselines import wilson
from envs.games.key_door import ACTIONS, KeyDoor
from envs.playing import play, random_policy

SYSTEM_PROMPT = """\
You walk through a grid of 4 by 4 rooms and see only the room you are in. One room holds a key, \
another a locked door. First find the key and pick it up, then find the door and unlock it.
up, down, left and right take you to the next room in that direction. interact picks up the key, \
or unlocks the door once you carry the key; you must be in the same room. Places are written \
(row, column); (0, 0) is the top left.
You have 35 turns. Answer each one with exactly one action, written like this: \
<action>up</action>"""

SCRATCHPAD_PROMPT = """\
You do not see earlier turns. Before your action, write your notes between <scratchpad> and \
</scratchpad>. They replace your old notes and are all you will remember, so repeat what still \
matters: whether you carry the key, where you saw the key, where you saw the door, and which rooms \
you found empty. Note facts, not plans.
Example: <scratchpad>No key yet. Door at (0, 2). Empty: (0, 1), (1, 1).</scratchpad>\
<action>down</action>"""

INVALID = "That answer was not valid:"
PICTURE = """\
+---+---+---+---+
|   |   |   |   |
+---+---+---+---+
|   |   |   | . |
+---+---+---+---+
| D | K |   | A |
+---+---+---+---+
|   |   |   |   |
+---+---+---+---+
turn 1 of 35, no key
"""

EMPTY = "Your hands are empty."
NOTHING = "Nothing is here."
DOOR = "A locked door is in front of you."
AT_1_3 = "You can go up to (0, 3), down to (2, 3), left to (1, 2), or interact. What do you do?"
AT_2_3 = "You can go up to (1, 3), down to (3, 3), left to (2, 2), or interact. What do you do?"
AT_2_2 = (
    "You can go up to (1, 2), down to (3, 2), left to (2, 1), right to (2, 3), or interact. "
    "What do you do?"
)
AT_2_1 = (
    "You can go up to (1, 1), down to (3, 1), left to (2, 0), right to (2, 2), or interact. "
    "What do you do?"
)
AT_2_0 = "You can go up to (1, 0), down to (3, 0), right to (2, 1), or interact. What do you do?"
ROOM = "in a 4x4 grid."

GOLDEN: list[tuple[str, str, float, dict[str, Any]]] = [
    (
        "right",
        f"You walk into a wall. You are at (1, 3) {ROOM} {EMPTY} {NOTHING} {AT_1_3}",
        0.0,
        {"event": "bump"},
    ),
    ("down", f"You are at (2, 3) {ROOM} {EMPTY} {NOTHING} {AT_2_3}", 0.0, {}),
    (
        "interact",
        f"There is nothing to use here. You are at (2, 3) {ROOM} {EMPTY} {NOTHING} {AT_2_3}",
        0.0,
        {"event": "interact_nothing"},
    ),
    (
        "jump",
        f"{INVALID} 'jump' is not an action. You are at (2, 3) {ROOM} {EMPTY} {NOTHING} {AT_2_3}",
        0.0,
        {"illegal": True, "error": "'jump' is not an action"},
    ),
    (
        NO_ACTION,
        f"{INVALID} it names no action. You are at (2, 3) {ROOM} {EMPTY} {NOTHING} {AT_2_3}",
        0.0,
        {"illegal": True, "error": "it names no action"},
    ),
    ("left", f"You are at (2, 2) {ROOM} {EMPTY} {NOTHING} {AT_2_2}", 0.0, {}),
    ("left", f"You are at (2, 1) {ROOM} {EMPTY} A key lies on the floor. {AT_2_1}", 0.0, {}),
    ("left", f"You are at (2, 0) {ROOM} {EMPTY} {DOOR} {AT_2_0}", 0.0, {}),
    (
        "interact",
        f"The door stays shut without a key. You are at (2, 0) {ROOM} {EMPTY} {DOOR} {AT_2_0}",
        0.0,
        {"event": "interact_locked_door_fail"},
    ),
    ("right", f"You are at (2, 1) {ROOM} {EMPTY} A key lies on the floor. {AT_2_1}", 0.0, {}),
    (
        "interact",
        f"You pick up the key. You are at (2, 1) {ROOM} You carry the key. {NOTHING} {AT_2_1}",
        0.1,
        {"event": "key_picked_up"},
    ),
    ("left", f"You are at (2, 0) {ROOM} You carry the key. {DOOR} {AT_2_0}", 0.0, {}),
    (
        "interact",
        "The key turns and the door opens. You made it.",
        1.0,
        {"event": "door_unlocked"},
    ),
]


def start(seed: int = 3, **params: Any) -> KeyDoor:
    env = KeyDoor(**params)
    env.reset(seed=seed)
    return env


def play_actions(env: KeyDoor, *actions: str) -> list[tuple[float, bool, bool, str | None]]:
    results = [env.step(action) for action in actions]
    return [(reward, end, cut, info.get("event")) for _, reward, end, cut, info in results]


def test_golden_episode() -> None:
    env = KeyDoor()
    first = f"You are at (1, 3) {ROOM} {EMPTY} {NOTHING} {AT_1_3}"
    assert env.reset(seed=3) == (first, {})
    for action, observation, reward, info in GOLDEN:
        unlocked = info.get("event") == "door_unlocked"
        assert env.step(action) == (observation, reward, unlocked, False, info)
    assert env.success
    with pytest.raises(EpisodeOver):
        env.step("up")


def test_golden_prompts() -> None:
    env = start()
    assert env.system_prompt == SYSTEM_PROMPT
    assert env.scratchpad_prompt == SCRATCHPAD_PROMPT


def test_hidden_coordinates_leave_the_open_moves() -> None:
    env = KeyDoor(show_position=False)
    observation, _ = env.reset(seed=3)
    assert observation == (
        "You are somewhere in a 4x4 grid. Your hands are empty. Nothing is here. "
        "You can go up, down, left, or interact. What do you do?"
    )
    assert "(row, column)" not in env.system_prompt
    assert "your own place counted from where you started" in env.scratchpad_prompt


def test_hidden_moves_leave_only_the_room() -> None:
    env = KeyDoor(show_position=False, show_moves=False)
    observation, _ = env.reset(seed=3)
    assert observation == (
        "You are somewhere in a 4x4 grid. Your hands are empty. Nothing is here. What do you do?"
    )
    assert env.step("right")[0] == f"You walk into a wall. {observation}"
    assert env.step("down")[0] == observation


def test_a_bump_is_legal_and_costs_the_turn() -> None:
    env = start()
    assert (
        env.legal_actions()
        == env.all_actions()
        == ACTIONS
        == ("up", "down", "left", "right", "interact")
    )
    assert play_actions(env, "right") == [(0.0, False, False, "bump")]
    assert env.state()["turn"] == 1


def test_running_out_of_turns_overwrites_the_reward_of_the_last_turn() -> None:
    env = start(max_turns=4)
    assert play_actions(env, "down", "left", "left", "interact") == [
        (0.0, False, False, None),
        (0.0, False, False, None),
        (0.0, False, False, None),
        (-0.5, False, True, "max_steps_reached"),
    ]
    assert env.state()["has_key"]
    assert not env.success


def test_running_out_of_turns_on_an_invalid_answer() -> None:
    env = start(max_turns=1)
    _, reward, terminated, truncated, info = env.step("fly")
    assert (reward, terminated, truncated) == (-0.5, False, True)
    assert info["event"] == "max_steps_reached_on_invalid"
    assert info["illegal"] is True


def test_unlocking_on_the_last_turn_is_a_success() -> None:
    env = start(max_turns=6)
    way = ("down", "left", "left", "interact", "left", "interact")
    assert play_actions(env, *way)[-1] == (1.0, True, False, "door_unlocked")
    assert env.success


@pytest.mark.parametrize(
    ("params", "reason"),
    [({"size": 1}, "size must be at least 2"), ({"max_turns": 0}, "max_turns must be at least 1")],
)
def test_impossible_parameters_are_refused(params: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        KeyDoor(**params)  # type: ignore[arg-type]


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no options"):
        KeyDoor().reset(seed=0, options={"key": 3})


def test_three_distinct_rooms_also_in_the_smallest_grid() -> None:
    for seed in range(200):
        state = start(seed, size=2).state()
        assert len({state["cell"], state["key"], state["door"]}) == 3


def test_a_long_answer_is_echoed_shortly() -> None:
    info = start().step("x" * 1000)[4]
    assert info["error"] == f"'{'x' * 40}...' is not an action"


def test_replies_are_read_by_their_first_action() -> None:
    env = start()
    assert env.parse("<think><action>UP </action></think>").action == "up"
    assert env.parse("<action>up</action><action>down</action>").kind == ParseKind.MULTI_ACTION
    assert env.parse("<action>up").action == "up"


def test_optimal_scratchpad_tells_what_was_really_visited() -> None:
    env = start()
    nothing = "Carrying the key: no.\nKey: not seen yet.\nDoor: not seen yet.\n"
    assert env.optimal_scratchpad() == f"{nothing}Empty rooms seen: (1, 3)."
    play_actions(env, "down", "left", "left", "left")
    assert env.optimal_scratchpad() == (
        "Carrying the key: no.\nKey: (2, 1).\nDoor: (2, 0).\n"
        "Empty rooms seen: (1, 3), (2, 2), (2, 3)."
    )
    play_actions(env, "right", "interact")
    assert "Carrying the key: yes.\nKey: picked up.\nDoor: (2, 0).\n" in env.optimal_scratchpad()
    env.reset(seed=3)
    assert env.optimal_scratchpad() == f"{nothing}Empty rooms seen: (1, 3)."


def test_optimal_scratchpad_counts_hidden_places_from_the_start() -> None:
    env = start(show_position=False, show_moves=False)
    play_actions(env, "right", "down", "left", "left")
    assert env.optimal_scratchpad() == (
        "You are (1, -2) from your start, as (rows down, columns right).\n"
        "Carrying the key: no.\nKey: (1, -2).\nDoor: not seen yet.\n"
        "Empty rooms seen: (0, 0), (1, -1), (1, 0).\n"
        "Outer walls met: column 0 is the rightmost."
    )


def test_optimal_scratchpad_knows_walls_from_the_open_moves() -> None:
    env = start(show_position=False)
    play_actions(env, "up")
    assert env.optimal_scratchpad().endswith(
        "Outer walls met: row -1 is the top, column 0 is the rightmost."
    )


def test_render_shows_what_is_hidden() -> None:
    env = start()
    env.step("down")
    assert f"{env.render()}\n" == PICTURE


def test_tool_form_names_every_action() -> None:
    (tool,) = start().tools()
    action = tool["function"]["parameters"]["properties"]["action"]
    assert action == {"type": "string", "enum": list(ACTIONS)}


def test_optimal_turns_is_what_the_oracle_takes() -> None:
    for seed in range(300):
        env = start(seed, size=6, max_turns=60)
        promised = env.optimal_turns()
        assert promised == play(env, seed, lambda env, _: env.oracle()).turns
        assert env.optimal_turns() == 0


def test_optimal_turns_is_none_when_too_few_are_left() -> None:
    assert start(max_turns=6).optimal_turns() == 6
    env = start(max_turns=5)
    assert env.optimal_turns() is None
    play_actions(env, *["up"] * 5)
    assert env.optimal_turns() is None


def test_state_goes_through_json_at_every_turn() -> None:
    rng = random.Random(1)
    env = start(11, size=5)
    for _ in range(35):
        fork = KeyDoor(size=5)
        fork.load(json.loads(json.dumps(env.state())))
        action = rng.choice(ACTIONS)
        assert env.step(action) == fork.step(action)
        assert env.state() == fork.state()


def test_anchor_oracle_takes_7_33_turns() -> None:
    turns = [start(seed).optimal_turns() or 0 for seed in range(3000)]
    # Exactly 22/3 over all placements; the standard deviation is 2.3, so 0.15 is 3.5 errors.
    assert abs(fmean(turns) - 22 / 3) < 0.15
    assert (min(turns), max(turns)) == (4, 13)


@pytest.mark.parametrize(("max_turns", "anchor"), [(35, 0.030), (50, 0.059)])
def test_anchor_random_policy_over_the_five_actions(max_turns: int, anchor: float) -> None:
    env, policy = KeyDoor(max_turns=max_turns), random_policy(random.Random(0))
    successes = sum(play(env, seed, policy).success for seed in range(3000))
    low, high = wilson(successes, 3000)
    assert low < anchor < high
