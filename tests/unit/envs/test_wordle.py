import random
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import NO_ACTION, EpisodeOver, Parsed, ParseKind, TextEnv
from envs.baselines import wilson
from envs.games.wordle import Wordle, marks_of, secrets, words
from envs.games.wordle_players import RememberingGuesser, forgetful_guesser
from envs.playing import oracle_policy, play, random_policy
from envs.testing import check_env

SYSTEM_PROMPT = """\
Find a hidden English word of five letters. You have 6 guesses. Each is answered with a mark below \
each letter: G the letter is in its right place, Y the word has that letter in another place, X \
the word does not have that letter (or not once more).
Guess common English words of five letters, none twice. An answer that is no such word tells you \
nothing, and two of them in a row end the game.
Answer with one word, written like this: <guess>apple</guess>"""

LEFT = "guesses left. What do you guess?"
AGAIN = "That was no valid guess: you guessed crane before. Another one in a row ends the game.\n"

GOLDEN: list[tuple[str, str, float, dict[str, Any]]] = [
    ("crane", f"c r a n e\nX X X X X\nYou have 5 {LEFT}", 0.0, {"event": "guess"}),
    (
        "crane",
        f"{AGAIN}c r a n e\nX X X X X\nYou have 5 {LEFT}",
        0.0,
        {"illegal": True, "error": "you guessed crane before", "event": "invalid_guess"},
    ),
    ("beast", f"b e a s t\nX X X Y Y\nYou have 4 {LEFT}", 0.125, {"event": "guess"}),
    ("stool", f"s t o o l\nG G X X X\nYou have 3 {LEFT}", 0.125, {"event": "guess"}),
    ("lusty", f"l u s t y\nX Y Y Y G\nYou have 2 {LEFT}", 0.0625, {"event": "guess"}),
    ("study", "s t u d y\nG G G G G\nThat is the word.", 0.6875, {"event": "win"}),
]


def start(secret: str = "apple", **params: Any) -> Wordle:
    env = Wordle(**params)
    env.reset(seed=0)
    env.load({**env.state(), "secret": secret})
    return env


def twins(env: TextEnv) -> list[dict[str, Any]]:
    """States with another secret that gives the same marks."""
    state = env.state()

    def told(secret: str) -> list[str]:
        return [marks_of(guess, secret) for guess in state["guesses"]]

    others = [word for word in secrets("all") if told(word) == told(state["secret"])]
    return [{**state, "secret": word} for word in others if word != state["secret"]][:20]


@pytest.mark.parametrize(
    "params", [{}, {"guesses": 1}, {"guesses": 8, "split": "train"}, {"split": "eval"}]
)
def test_wordle_passes_every_rule(params: dict[str, Any]) -> None:
    seeds = 1000 if not params else 50
    assert check_env(lambda: Wordle(**params), seeds=seeds, twins=twins).failed == ()


def test_golden_episode() -> None:
    env = Wordle()
    assert env.reset(seed=17) == (f"You have 6 {LEFT}", {})
    assert env.system_prompt == SYSTEM_PROMPT
    for action, observation, reward, info in GOLDEN:
        over = info["event"] == "win"
        assert env.step(action) == (observation, reward, over, False, info)
    assert env.success
    with pytest.raises(EpisodeOver):
        env.step("crane")


@pytest.mark.parametrize(
    ("guess", "secret", "marks"),
    [
        ("apple", "apple", "GGGGG"),
        ("geese", "elect", "XYGXX"),
        ("speed", "abide", "XXYXY"),
        ("speed", "erase", "YXYYX"),
        ("speed", "steal", "GXGXX"),
        ("speed", "crepe", "XYGYX"),
        ("allay", "label", "YYYXX"),
        ("llama", "label", "GYYXX"),
        ("mamma", "maxim", "GGYXX"),
        ("erase", "speed", "YXXYY"),
        ("eerie", "there", "YXYXG"),
    ],
)
def test_each_letter_of_the_secret_earns_one_mark(guess: str, secret: str, marks: str) -> None:
    assert marks_of(guess, secret) == marks


@given(st.sampled_from(words().all), st.sampled_from(words().secrets))
def test_marks_count_letters_rightly(guess: str, secret: str) -> None:
    """Against the definition: greens are equal places, coloured letters the common multiset."""
    marks = marks_of(guess, secret)
    pairs = list(zip(guess, secret, marks, strict=True))
    assert all((mark == "G") == (here == there) for here, there, mark in pairs)
    coloured = Counter(here for here, _, mark in pairs if mark != "X")
    assert coloured == Counter(guess) & Counter(secret)


def test_the_words_are_well_formed() -> None:
    text = resources.files("envs.games").joinpath("wordle_words.txt").read_text("utf-8")
    assert re.fullmatch(r"(?:[a-z]{5}\n)+\n(?:[a-z]{5}\n)+", text)
    listed = text.split()
    assert len(listed) == len(set(listed)) == len(words().all) >= 1500
    assert len(words().secrets) >= 1000
    hidden, others = (part.split() for part in text.split("\n\n"))
    assert hidden == sorted(hidden)
    assert others == sorted(others)


def test_train_and_eval_have_no_secret_in_common() -> None:
    train, held_out = set(secrets("train")), set(secrets("eval"))
    assert not train & held_out
    assert train | held_out == set(secrets("all"))
    assert 0.15 < len(held_out) / len(secrets("all")) < 0.25
    for split, allowed in (("train", train), ("eval", held_out)):
        env = Wordle(split=split)
        drawn = {(env.reset(seed=seed), env.oracle())[1] for seed in range(300)}
        assert drawn <= allowed
        assert len(drawn) > 100


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<guess>apple</guess>", Parsed("apple", ParseKind.OK)),
        ("<guess>[apple]</guess>", Parsed("apple", ParseKind.OK)),
        ("I try <GUESS> [ Apple ] </GUESS>.", Parsed("apple", ParseKind.OK)),
        ("<guess>apple", Parsed("apple", ParseKind.UNCLOSED)),
        ("<guess>apple</guess><guess>pears</guess>", Parsed("apple", ParseKind.MULTI_ACTION)),
        ("<guess>[]</guess>", Parsed(None, ParseKind.NO_ACTION)),
        ("apple", Parsed(None, ParseKind.NO_ACTION)),
        ("[apple]", Parsed(None, ParseKind.NO_ACTION)),
        ("", Parsed(None, ParseKind.EMPTY)),
    ],
)
def test_replies(reply: str, expected: Parsed) -> None:
    assert Wordle().parse(reply) == expected


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NO_ACTION, "the answer names no word"),
        ("pie", "'pie' has 3 letters, not 5"),
        ("bananas", "'bananas' has 7 letters, not 5"),
        ("qzxvj", "'qzxvj' is not in the list of words"),
        ("ap le", "'ap le' has other signs than the letters a to z"),
        ("éclat", "'éclat' has other signs than the letters a to z"),
        ("x" * 99, f"'{'x' * 40}...' has 99 letters, not 5"),
    ],
)
def test_what_is_no_guess_is_told_why(answer: str, reason: str) -> None:
    env = start()
    observation, reward, terminated, truncated, info = env.step(answer)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"illegal": True, "error": reason, "event": "invalid_guess"}
    assert observation.startswith(f"That was no valid guess: {reason}. Another one in a row ends")
    assert "You have 6 guesses left" in observation


def test_one_slip_is_forgiven_and_a_second_in_a_row_ends_the_game() -> None:
    env = start("apple")
    assert env.step("crane")[1] == 0.0625 + 0.125
    assert env.step("zzzzz")[2:4] == (False, False)
    assert env.step("paper")[2:4] == (False, False)
    env.step("zzzzz")
    observation, reward, terminated, truncated, info = env.step("zzzzz")
    assert (reward, terminated, truncated, info["event"]) == (0.0, True, False, "forfeit")
    assert "second in a row: the game is lost" in observation
    assert not env.success


def test_slips_cost_no_guess_and_turns_suffice_for_all_of_them() -> None:
    env = start("apple", guesses=3)
    guesses = iter(["crane", "beast", "train"])
    results = [env.step(NO_ACTION if turn % 2 == 0 else next(guesses)) for turn in range(6)]
    assert [result[2:4] for result in results] == [(False, False)] * 5 + [(True, False)]
    assert results[-1][4]["event"] == "loss"
    assert env.max_turns == 6


def test_a_win_returns_one_and_nothing_else_comes_near() -> None:
    policies = [random_policy(random.Random(0)), forgetful_guesser(random.Random(0))]
    for policy in policies:
        for seed in range(150):
            env = Wordle()
            played = play(env, seed, policy)
            assert played.return_ == 1.0 if played.success else 0.0 <= played.return_ <= 0.5


def test_the_hidden_word_is_never_told() -> None:
    for seed in range(50):
        env = Wordle()
        texts = [env.reset(seed=seed)[0], env.system_prompt]
        rng = random.Random(seed)
        over = False
        while not over:
            legal = [word for word in env.legal_actions() if word != env.oracle()]
            observation, _, over, _, info = env.step(rng.choice(legal))
            texts += [observation, env.optimal_scratchpad(), *map(str, info.values())]
        assert not env.success
        secret = env.oracle()
        assert not any(secret in text or " ".join(secret) in text for text in texts)


def test_notes_tell_what_all_marks_say() -> None:
    env = start("elect")
    assert env.optimal_scratchpad() == "No guess yet."
    env.step("geese")
    env.step("clean")
    assert env.optimal_scratchpad() == (
        "Guesses: geese XYGXX, clean YGGXX.\nPlaces known: _ l e _ _.\n"
        "In the word, but not there: c not at 1, e not at 2 or 5.\nNot in the word: a, g, n, s."
    )


def test_render_shows_the_hidden_word() -> None:
    env = start("elect")
    env.step("geese")
    assert env.render() == "geese XYGXX\nthe word is elect, 5 guesses left, running"


def test_the_guided_answer_admits_words_only() -> None:
    pattern = re.compile(Wordle().action_pattern())
    assert pattern.fullmatch("<guess>apple</guess>")
    assert not pattern.fullmatch("<guess>qzxvj</guess>")
    assert not pattern.fullmatch("<guess>apple</guess> ")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"guesses": 0}, "guesses must be at least 1"),
        ({"split": "test"}, "split must be one of all, train, eval, got 'test'"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Wordle(**params)


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no options"):
        Wordle().reset(seed=0, options={"secret": "apple"})


def test_anchors() -> None:
    """More of them are in the README's table, which `test_baselines` measures."""
    by_chance = [play(Wordle(), seed, random_policy(random.Random(seed))) for seed in range(300)]
    low, high = wilson(sum(one.success for one in by_chance), 300)
    assert low < 6 / len(words().all) < high
    assert all(play(Wordle(), seed, oracle_policy).turns == 1 for seed in range(1000))
    remembering = [play(Wordle(), seed, RememberingGuesser()) for seed in range(300)]
    assert sum(one.success for one in remembering) > 285
    forgetful = forgetful_guesser(random.Random(0))
    assert 180 < sum(play(Wordle(), seed, forgetful).success for seed in range(300)) < 240
