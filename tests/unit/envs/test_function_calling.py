import json
import random
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import BadEnvParams, EpisodeOver, digest
from envs.playing import oracle_policy, play, random_policy
from envs.tasks.function_calling import FunctionCalling, tasks, validate
from envs.testing import check_env

SQRT = {
    "name": "math.sqrt",
    "description": "Square root.",
    "parameters": {
        "type": "dict",
        "properties": {"x": {"type": "float", "description": "The number."}},
        "required": ["x"],
    },
}
SIMPLE = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "Root of 16?"}]],
    "function": [SQRT],
}
TOLD = {"id": "simple_python_0", "ground_truth": [{"math.sqrt": {"x": [16.0]}}]}
NOTHING = {
    "id": "live_irrelevance_3-0-0",
    "question": [
        [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Who was Gauss?"},
        ]
    ],
    "function": [SQRT],
}


def written(folder: Path, questions: list[Any], answers: list[Any] | None = None) -> str:
    file = folder / "BFCL_v4_simple_python.json"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    if answers is not None:
        beside = folder / "possible_answer" / file.name
        beside.parent.mkdir(exist_ok=True)
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in answers))
    return str(file)


def start(number: int = 0, **params: Any) -> FunctionCalling:
    env = FunctionCalling(**params)
    env.reset(seed=number)
    return env


def test_the_shipped_tasks_pass_every_rule() -> None:
    assert check_env(FunctionCalling).failed == ()
    assert check_env(lambda: FunctionCalling(partial_credit=0.2), seeds=80).failed == ()


def test_the_shipped_tasks_check_themselves() -> None:
    """Every task's own answer scores 1, and every answer known to be wrong scores 0."""
    assert validate() == []
    for number in range(len(tasks().all)):
        right, *wrong = start(number).legal_actions()
        assert start(number).step(right)[1] == 1.0
        assert {start(number).step(action)[1] for action in wrong} == {0.0}


def test_the_shipped_tasks_are_of_every_category() -> None:
    categories = [task.category for task in tasks().all]
    counted = {category: categories.count(category) for category in dict.fromkeys(categories)}
    assert counted == {
        "simple": 12,
        "multiple": 8,
        "parallel": 8,
        "parallel_multiple": 6,
        "irrelevance": 6,
    }
    wanted = {
        "simple": lambda task: len(task.wanted) == len(task.functions) == 1,
        "multiple": lambda task: len(task.wanted) == 1 < len(task.functions),
        "parallel": lambda task: len(task.wanted) > 1 == len(task.functions),
        "parallel_multiple": lambda task: len(task.wanted) > 1 < len(task.functions),
        "irrelevance": lambda task: not task.wanted,
    }
    assert all(wanted[task.category](task) for task in tasks().all)


def test_golden_episode() -> None:
    env = FunctionCalling()
    assert env.reset(seed=41) == (
        "How much is 250 euros in Japanese yen?",
        {"source": "shipped", "task": "simple_1", "category": "simple"},
    )
    assert env.system_prompt == (
        "You can call these functions:\n"
        '{"name": "convert_currency", "description": "Convert an amount of money at today\'s '
        'rate.", "parameters": {"type": "object", "properties": {"amount": {"type": "number", '
        '"description": "How much."}, "source": {"type": "string", "description": "Currency code, '
        'for example EUR."}, "target": {"type": "string", "description": "Currency code, for '
        'example USD."}}, "required": ["amount", "source", "target"]}}\n'
        "Answer with the calls as a JSON list, in this form:\n"
        '<function_calls>[{"name": "the_function", "arguments": {"its_parameter": "value"}}]'
        "</function_calls>\n"
        "Give every argument a value of its parameter's type; leave out optional arguments that "
        "nobody mentions. If no function fits, answer <function_calls>[]</function_calls>"
    )
    right = env.oracle()
    assert json.loads(right) == [
        {
            "name": "convert_currency",
            "arguments": {"amount": 250.0, "source": "EUR", "target": "JPY"},
        }
    ]
    assert env.clone().step(right) == ("That is right.", 1.0, True, False, {"event": "right"})
    swapped = right.replace("EUR", "?").replace("JPY", "EUR").replace("?", "JPY")
    said = "That is wrong: convert_currency: argument 'source' has the wrong value."
    assert env.clone().step(swapped) == (said, 0.0, True, False, {"event": "wrong"})
    error = "there is no function 'convert'"
    info = {"illegal": True, "error": error, "event": "no_answer"}
    unknown = '[{"name": "convert"}]'
    assert env.step(unknown) == (f"That was no answer: {error}.", 0.0, False, True, info)
    with pytest.raises(EpisodeOver):
        env.step(right)


def test_where_nothing_fits_nothing_may_be_called_and_silence_is_no_answer() -> None:
    number = next(at for at, task in enumerate(tasks().all) if task.category == "irrelevance")
    env = start(number)
    assert env.oracle() == "[]"
    assert env.clone().step("[]")[1] == 1.0
    assert env.clone().step("")[1] == 0.0
    assert env.parse("None of these functions can do that.").action is None
    name = env.tools()[0]["function"]["name"]
    assert env.step(f'[{{"name": "{name}"}}]')[1:4] == (0.0, True, False)


def test_a_wellformed_wrong_call_earns_nothing() -> None:
    env = start(0)
    assert env.step('[{"name": "weather.forecast", "arguments": {"city": "Oslo"}}]')[1] == 0.0


def test_partial_credit_is_for_the_right_names_and_off_by_default() -> None:
    def earned(action: str, number: int) -> float:
        return start(number, partial_credit=0.4).step(action)[1]

    parallel = next(at for at, task in enumerate(tasks().all) if task.id == "parallel_1")
    timer = '{"name": "kitchen.set_timer", "arguments": {"minutes": 1}}'
    assert earned(f"[{timer}, {timer}, {timer}]", parallel) == pytest.approx(0.4)
    assert earned(f"[{timer}]", parallel) == pytest.approx(0.4 / 3)
    assert earned("[]", parallel) == 0.0
    assert earned(start(parallel).oracle(), parallel) == 1.0
    nothing = next(at for at, task in enumerate(tasks().all) if not task.wanted)
    assert {earned(action, nothing) for action in start(nothing).legal_actions()[1:]} == {0.0}
    with pytest.raises(ValueError, match=r"partial_credit must be between 0 and 0\.5"):
        FunctionCalling(partial_credit=1.0)


def test_replies_in_every_form() -> None:
    calls = json.loads(start(1).oracle())
    native = [
        {"type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
        for call in calls
    ]
    forms = [
        f"<function_calls>{json.dumps(calls)}</function_calls>",
        "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls),
        f"<tool_call>{json.dumps(native)}</tool_call>",
    ]
    for form in forms:
        env = start(1)
        assert env.step(env.parse(form).action or "")[1] == 1.0


def test_a_file_in_the_form_of_bfcl(tmp_path: Path) -> None:
    path = written(tmp_path, [SIMPLE, NOTHING], [TOLD])
    assert check_env(lambda: FunctionCalling(path=path), seeds=50).failed == ()
    assert validate(path) == []
    env = FunctionCalling(path=path)
    shown = env.reset(seed=0)
    assert shown == (
        "Root of 16?",
        {"source": "file", "task": "simple_python_0", "category": "simple_python"},
    )
    assert env.tools()[0]["function"]["name"] == "math_sqrt"
    assert env.clone().step('[{"name": "math_sqrt", "arguments": {"x": 16}}]')[1] == 1.0
    assert env.reset(seed=3)[0] == "Who was Gauss?"
    assert env.system_prompt.startswith("You are terse.\n\nYou can call these functions:\n")
    elsewhere = tmp_path / "answers.jsonl"
    elsewhere.write_text(json.dumps(TOLD))
    other = FunctionCalling(path=path, answers=str(elsewhere))
    assert other.params == {"path": path, "answers": str(elsewhere), "partial_credit": 0.0}


def test_validate_names_what_a_data_set_gets_wrong(tmp_path: Path) -> None:
    odd = {"id": "simple_python_0", "ground_truth": [{"math.sqrt": {"x": [16.0], "y": [1]}}]}
    required = {"id": "simple_python_0", "ground_truth": [{"math.sqrt": {}}]}
    assert validate(written(tmp_path, [SIMPLE], [odd])) == []
    assert validate(written(tmp_path, [SIMPLE], [required])) == [
        "simple_python_0: its own answer is wrong: math.sqrt: missing argument 'x'"
    ]


@pytest.mark.parametrize(
    ("change", "told", "reason"),
    [
        ({}, [], "simple_python_0 has no answer, and is no irrelevance task"),
        ({"id": 3}, [TOLD], ":1: expected a field 'id' that is a text, found 3"),
        ({"question": []}, [TOLD], ":1: expected a question of one turn"),
        ({"question": [[{"role": "tool"}]]}, [TOLD], "messages of system and user, found 'tool'"),
        ({"question": [[]]}, [TOLD], "expected a message of the user, found none"),
        ({"function": []}, [TOLD], ":1: expected a field 'function' that is a list of objects"),
        ({"function": [{"name": "f"}]}, [TOLD], "expected parameters with properties for 'f'"),
        (
            {
                "function": [
                    {"name": "f", "parameters": {"properties": {"x": {"type": "ArrayList"}}}}
                ]
            },
            [TOLD],
            "f has a parameter 'x' of unknown type 'ArrayList'",
        ),
        (
            {},
            [{**TOLD, "ground_truth": [{"sqrt": {"x": [1]}}]}],
            "expected a call of a function on offer, found 'sqrt'",
        ),
        (
            {},
            [{**TOLD, "ground_truth": [{"math.sqrt": {"x": 16}}]}],
            "expected a list of accepted values for each parameter",
        ),
        (
            {},
            [{**TOLD, "ground_truth": [{"math.sqrt": [16]}]}],
            "expected each call as {function: {parameter: [values]}}",
        ),
        ({}, [{**TOLD, "ground_truth": []}], "expected a field 'ground_truth' that is a list"),
    ],
)
def test_a_bad_row_is_refused(
    tmp_path: Path, change: dict[str, Any], told: list[Any], reason: str
) -> None:
    path = written(tmp_path, [{**SIMPLE, **change}], told or None)
    with pytest.raises(BadEnvParams) as caught:
        envs.make("function_calling", path=path)
    assert reason in str(caught.value)


def test_missing_files_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(BadEnvParams, match="cannot be read"):
        envs.make("function_calling", path=str(tmp_path / "none.json"))
    with pytest.raises(BadEnvParams, match="cannot be read"):
        envs.make("function_calling", path=written(tmp_path, [SIMPLE]), answers="no/answers")
    with pytest.raises(BadEnvParams, match="the shipped tasks have their own"):
        envs.make("function_calling", answers="answers.jsonl")


def test_the_digest_names_the_data_not_its_place(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place in places:
        place.mkdir()
    other = {**TOLD, "ground_truth": [{"math.sqrt": {"x": [16.0, 4.0]}}]}
    paths = [written(place, [SIMPLE], [TOLD]) for place in places[:2]]
    paths.append(written(places[2], [SIMPLE], [other]))
    digests = [digest(FunctionCalling(path=path)) for path in paths]
    assert digests[0] == digests[1] != digests[2]


def test_anchors() -> None:
    chance = random_policy(random.Random(0))
    by_chance = sum(play(FunctionCalling(), seed, chance).success for seed in range(2000))
    assert 0.10 < by_chance / 2000 < 0.18
    assert all(play(FunctionCalling(), seed, oracle_policy).return_ == 1.0 for seed in range(80))
