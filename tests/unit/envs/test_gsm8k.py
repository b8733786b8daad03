import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import BadEnvParams, EpisodeOver, Parsed, ParseKind, digest
from envs.playing import oracle_policy, play, random_policy
from envs.tasks.answers import number_text, plain_number, read_answer, read_number
from envs.tasks.arithmetic import word_problem
from envs.tasks.gsm8k import Gsm8k
from envs.testing import check_env

ROWS = [
    {"question": "Six times seven?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42", "more": 1},
    {"question": "Half of three?", "answer": "#### 1.5"},
    {"question": "A thousand twice?", "answer": "#### 2,000"},
]
QUESTION = (
    "Greta buys 12 packs of postcards at 2 dollars a pack and a bag for 5 dollars, and pays with "
    "60 dollars. How many dollars of change does Greta get?"
)


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(file)


def test_generated_problems_pass_every_rule() -> None:
    assert check_env(Gsm8k).failed == ()


def test_a_file_passes_every_rule(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    assert check_env(lambda: envs.make("gsm8k", path=path), seeds=100).failed == ()


def test_golden_episode() -> None:
    env = Gsm8k()
    assert env.reset(seed=10) == (QUESTION, {"source": "generated"})
    assert env.system_prompt == (
        "Solve the problem. Think it through step by step, then give the result: one number "
        "without units, written like this: <answer>42</answer>"
    )
    right = env.clone().step(env.oracle())
    assert right == ("That is right.", 1.0, True, False, {"event": "right"})
    assert env.oracle() == "31"
    assert env.clone().step("32") == ("That is wrong.", 0.0, True, False, {"event": "wrong"})
    none = {"illegal": True, "error": "the reply names no number", "event": "no_answer"}
    said = "That was no answer: the reply names no number."
    assert env.step("") == (said, 0.0, False, True, none)
    with pytest.raises(EpisodeOver):
        env.step("31")


def test_generated_answers_are_whole_and_positive_and_questions_differ() -> None:
    problems = [word_problem(seed) for seed in range(3000)]
    assert all(answer > 0 for _, answer in problems)
    assert len({question for question, _ in problems}) > 2950


def test_a_seed_asks_its_line_and_goes_round(tmp_path: Path) -> None:
    env = Gsm8k(path=written(tmp_path, ROWS))
    asked = [env.reset(seed=seed) for seed in range(4)]
    assert [question for question, _ in asked] == [
        "Six times seven?",
        "Half of three?",
        "A thousand twice?",
        "Six times seven?",
    ]
    assert asked[0][1] == {"source": "file"}
    answers = [(env.reset(seed=seed), env.oracle())[1] for seed in range(3)]
    assert answers == ["42", "3/2", "2000"]


def test_an_answer_beyond_the_sample_is_legal(tmp_path: Path) -> None:
    env = Gsm8k(path=written(tmp_path, ROWS))
    env.reset(seed=2)
    assert env.legal_actions() == (*map(str, range(1000)), "2000")
    assert env.step("2000")[1] == 1.0


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"question": "?", "answer": "42"}], ":1: expected an answer that ends in '#### NUMBER'"),
        ([ROWS[0], {"question": "?"}], ":2: expected a field 'answer' that is a text"),
        (
            [{"prompt": "?", "answer": "#### 1"}],
            ":1: expected a field 'question' that is a text, f",
        ),
        (["{"], ":1: expected a JSON object, and this is none"),
        (["[1]"], ":1: expected a JSON object, found a list"),
        (["[" * 5000], ":1: expected a JSON object, and this is none"),
        ([], ": expected one JSON object a line, found no line"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path: Path, rows: list[Any], reason: str) -> None:
    with pytest.raises(BadEnvParams) as caught:
        envs.make("gsm8k", path=written(tmp_path, rows))
    assert f"rows.jsonl{reason}" in str(caught.value)


def test_a_missing_file_is_never_replaced() -> None:
    with pytest.raises(BadEnvParams, match=r"gsm8k: no/such\.jsonl: cannot be read"):
        envs.make("gsm8k", path="no/such.jsonl")


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    Gsm8k(path=path)
    written(tmp_path, [{"question": "New?", "answer": "#### 7"}])
    assert Gsm8k(path=path).reset(seed=0)[0] == "New?"


def test_the_digest_names_the_questions_not_their_place(tmp_path: Path) -> None:
    here, there = (written(tmp_path, ROWS, name) for name in ("here.jsonl", "there.jsonl"))
    other = written(tmp_path, ROWS[:2], "other.jsonl")
    digests = [digest(Gsm8k(path=path)) for path in (here, there, other)]
    assert digests[0] == digests[1]
    assert len({*digests, digest(Gsm8k())}) == 3


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", Fraction(1000)),
        ("1,000", Fraction(1000)),
        ("1000.0", Fraction(1000)),
        ("1{,}000", Fraction(1000)),
        ("-7", Fraction(-7)),
        ("\u22127", Fraction(-7)),
        ("- 7", Fraction(-7)),
        ("$1,000", Fraction(1000)),
        (r"\$42", Fraction(42)),
        ("42 apples", Fraction(42)),
        (r"\text{42 apples}", Fraction(42)),
        ("50%", Fraction(50)),
        (r"50\%", Fraction(50)),
        ("1/2", Fraction(1, 2)),
        ("2 1/2", Fraction(5, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (".5", Fraction(1, 2)),
        ("007", Fraction(7)),
        ("42.", Fraction(42)),
        ("3 + 4 = 7", None),
        ("12,34", None),
        ("1e3", None),
        ("1.2.3", None),
        ("10:30", None),
        ("4 2", None),
        ("1/0", None),
        ("1/2/3", None),
        ("²", None),
        ("٣", None),
        ("forty", None),
        ("", None),
        ("9" * 101, None),
    ],
)
def test_numbers_as_they_are_written(text: str, number: Fraction | None) -> None:
    assert read_number(text) == number


@given(st.fractions(max_denominator=999, min_value=-(10**9), max_value=10**9))
def test_a_number_in_its_one_form_reads_back(number: Fraction) -> None:
    assert plain_number(number_text(number)) == number
    assert read_answer(f"<answer>{number_text(number)}</answer>").action == number_text(number)


@given(st.text(st.sampled_from("0123456789.,/-+ $%\\{}boxedfracanswer<>e\n"), max_size=60))
def test_no_text_is_too_odd_to_read(text: str) -> None:
    read_number(text)
    parsed = read_answer(f"{text}\\boxed{{{text}<answer>{text}")
    env = Gsm8k()
    env.reset(seed=0)
    env.step(parsed.action or "")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("So it is <answer>42</answer>.", Parsed("42", ParseKind.OK)),
        (r"\boxed{42}", Parsed("42", ParseKind.OK)),
        (r"$$\boxed{1{,}234}$$", Parsed("1234", ParseKind.OK)),
        (r"\boxed{\frac{1}{2}} dollars", Parsed("1/2", ParseKind.OK)),
        (r"<answer>\boxed{1,000}</answer>", Parsed("1000", ParseKind.OK)),
        (r"\boxed{7} <answer>7.0</answer>", Parsed("7", ParseKind.OK)),
        (r"first \boxed{3} but \boxed{4}", Parsed("4", ParseKind.MULTI_ACTION)),
        ("<answer>1</answer><answer>2</answer>", Parsed("2", ParseKind.MULTI_ACTION)),
        ("<answer>5", Parsed("5", ParseKind.UNCLOSED)),
        (r"\boxed{6", Parsed("6", ParseKind.UNCLOSED)),
        ("<answer>forty</answer>", Parsed("forty", ParseKind.OK)),
        ("<answer> </answer>", Parsed(None, ParseKind.NO_ACTION)),
        ("42", Parsed(None, ParseKind.NO_ACTION)),
        (" ", Parsed(None, ParseKind.EMPTY)),
    ],
)
def test_replies(reply: str, expected: Parsed) -> None:
    assert read_answer(reply) == expected


@pytest.mark.parametrize("action", ["forty", "1e3", " 5", "[5]", "5 apples", "9" * 200])
def test_a_step_takes_plain_numbers_only(action: str) -> None:
    env = Gsm8k()
    env.reset(seed=0)
    assert env.step(action)[1:4] == (0.0, False, True)


def test_anchors() -> None:
    chance = random_policy(random.Random(0))
    assert sum(play(Gsm8k(), seed, chance).success for seed in range(2000)) < 12
    assert all(play(Gsm8k(), seed, oracle_policy).return_ == 1.0 for seed in range(2000))


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="gsm8k takes no options"):
        Gsm8k().reset(seed=0, options={"difficulty": 1})
