"""function_calling: a request and functions in, the right calls out.

Lives here: the env and the reading of its data, in the form of BFCL v4 (a file of questions, a
file of answers). What is right, `call_checker` knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.base import Info, Parsed
from envs.tasks import call_checker, calls
from envs.tasks.call_checker import Expected, best_calls, known_type, why_wrong, wrong_calls
from envs.tasks.calls import Call, Function, NotCalls
from envs.tasks.rows import (
    Row,
    digest_of,
    file_text,
    rows_of,
    shipped_text,
    source_of,
    stamp,
    text_field,
)
from envs.tasks.single_turn import SingleTurn, Verdict

SHIPPED = "shipped"
_QUESTIONS, _ANSWERS = "function_calling.jsonl", "function_calling_answers.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request. `rules`: its system message; `wanted`: empty where nothing is to be called."""

    id: str
    rules: str
    request: str
    functions: tuple[Function, ...]
    wanted: tuple[Expected, ...]

    @property
    def category(self) -> str:
        """What kind of task it is, from its id: simple, multiple, parallel, irrelevance, .."""
        return self.id.rpartition("_")[0] or self.id


@dataclass(frozen=True, slots=True)
class Tasks:
    """A data set. `digest`: names its texts."""

    all: tuple[Task, ...]
    digest: str


class FunctionCalling(SingleTurn):
    """Call the right functions with the right arguments: 1.0 if every call is right, else 0.

    `path`: a file of questions in BFCL's form, one JSON object a line; `answers`: the file of its
    answers, by default the one of the same name in `possible_answer/` beside it. Seed s asks line
    s, counted from 0 and going round at the end. By default "shipped": 40 tasks of our own.

    Where no function fits, the right answer is an empty list of calls; a reply that names no list
    at all is no answer. `partial_credit` (0 to 0.5, by default 0): what a wrong reply gets if it
    calls the right functions as often as is wanted, and in proportion for some of them; nothing
    where nothing is to be called.
    """

    id = "function_calling"
    action_tag = calls.TAG
    data_params = ("path", "answers")

    def __init__(
        self, *, path: str = SHIPPED, answers: str | None = None, partial_credit: float = 0.0
    ) -> None:
        super().__init__()
        if not 0.0 <= partial_credit <= 0.5:
            raise ValueError(f"partial_credit must be between 0 and 0.5, got {partial_credit}")
        self.path = path
        self.answers = answers
        self.partial_credit = partial_credit
        self._tasks = tasks(path, answers)
        self._task = self._tasks.all[0]

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "path": self.path,
            "answers": self.answers,
            "partial_credit": self.partial_credit,
        }

    def data_digest(self) -> str:
        """Name the tasks and the rules of checking them; see `envs.registry.digest`."""
        return digest_of(self._tasks.digest, source_of(calls), source_of(call_checker))

    def number(self, seed: int) -> int:
        """Return the line that `seed` asks."""
        return seed % len(self._tasks.all)

    def open(self, number: int) -> str:
        """Ask for something."""
        self._task = self._tasks.all[number]
        return self._task.request

    def about(self) -> Info:
        """Tell which task of which data it is."""
        source = SHIPPED if self.path == SHIPPED else "file"
        return {"source": source, "task": self._task.id, "category": self._task.category}

    def judge(self, action: str) -> Verdict:
        """Check the calls."""
        task = self._task
        try:
            made = calls.offered(action, task.functions)
        except NotCalls as error:
            return Verdict(reward=0.0, right=False, said="", error=str(error))
        wrong = why_wrong(made, task.wanted, task.functions)
        if not wrong:
            return Verdict(reward=1.0, right=True, said="That is right.")
        credit = self.partial_credit * _share_of_names(made, task.wanted)
        return Verdict(reward=credit, right=False, said=f"That is wrong: {wrong}.")

    def legal_actions(self) -> tuple[str, ...]:
        """Return a sample of answers: the right one first, then nearly right and empty ones."""
        return call_checker.sample_actions(self._task.wanted, self._task.functions)

    def action_pattern(self) -> str:
        """Return a regular expression that admits a list in one line."""
        return calls.ACTION_PATTERN

    def parse(self, completion: str) -> Parsed:
        """Read `<function_calls>[..]</function_calls>`, or Hermes' form; see `calls`."""
        return calls.parse_calls(completion)

    def oracle(self) -> str:
        """Return the right calls, with the first of the accepted values."""
        return calls.write_calls(best_calls(self._task.wanted, self._task.functions))

    @property
    def system_prompt(self) -> str:
        """The functions, the answer's format, and what the task's own system message says."""
        rules = f"{self._task.rules}\n\n" if self._task.rules else ""
        return f"{rules}{calls.offer(self._task.functions)}"

    def tools(self) -> list[dict[str, Any]]:
        """Return the functions as OpenAI tools."""
        return [function.as_tool() for function in self._task.functions]


def validate(path: str = SHIPPED, answers: str | None = None) -> list[str]:
    """Check the checker on a data set: name every task whose own answer is not right.

    And every one for which an answer passes that is known to be wrong. Empty is good.

    Raises:
        ValueError: the data set cannot be read.

    """
    found = []
    for task in tasks(path, answers).all:
        reason = why_wrong(best_calls(task.wanted, task.functions), task.wanted, task.functions)
        if reason:
            found.append(f"{task.id}: its own answer is wrong: {reason}")
        found += [
            f"{task.id}: a wrong answer passes: {calls.write_calls(made)}"
            for made in wrong_calls(task.wanted, task.functions)
            if not why_wrong(made, task.wanted, task.functions)
        ]
    return found


def tasks(path: str = SHIPPED, answers: str | None = None) -> Tasks:
    """Read a data set, or the shipped one.

    Raises:
        ValueError: a file cannot be read or does not hold what it must; the message says where.

    """
    if path == SHIPPED:
        if answers is not None:
            raise ValueError("answers goes with a path: the shipped tasks have their own")
        return _shipped()
    beside = Path(path).parent / "possible_answer" / Path(path).name
    if answers is None and beside.is_file():
        answers = str(beside)
    stamps = (stamp(path), None if answers is None else stamp(answers))
    return _from_files(path, answers, stamps)


@lru_cache(maxsize=1)
def _shipped() -> Tasks:
    return _read(shipped_text(_QUESTIONS), _QUESTIONS, shipped_text(_ANSWERS), _ANSWERS)


@lru_cache(maxsize=8)
def _from_files(path: str, answers: str | None, stamps: object) -> Tasks:  # noqa: ARG001 - of the key
    return _read(file_text(path), path, file_text(answers) if answers else "", answers or "")


def _read(questions: str, path: str, answers: str, answers_path: str) -> Tasks:
    rows = rows_of(questions, path)
    told = rows_of(answers, answers_path) if answers else []
    by_id = {text_field(row, "id", place): (place, row) for place, row in told}
    found = tuple(_task(row, place, by_id) for place, row in rows)
    return Tasks(found, digest_of(questions, answers))


def _task(row: Row, place: str, answers: Mapping[str, tuple[str, Row]]) -> Task:
    name = text_field(row, "id", place)
    rules, request = _messages(row, place)
    functions = tuple(_function(one, place) for one in _objects(row, "function", place))
    if name in answers:
        where, answer = answers[name]
        wanted = tuple(
            _expected(one, functions, where) for one in _objects(answer, "ground_truth", where)
        )
    elif "irrelevance" in name:
        wanted = ()
    else:
        raise ValueError(f"{place}: {name} has no answer, and is no irrelevance task")
    return Task(id=name, rules=rules, request=request, functions=functions, wanted=wanted)


def _messages(row: Row, place: str) -> tuple[str, str]:
    """Return (what system messages say, what users say) of a question's only turn."""
    turns = row.get("question")
    if not (isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list)):
        raise ValueError(f"{place}: expected a question of one turn: [[{{role, content}}, ..]]")
    said: dict[str, list[str]] = {"system": [], "user": []}
    for message in turns[0]:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in said:
            raise ValueError(f"{place}: expected messages of system and user, found {role!r}")
        said[role].append(text_field(message, "content", place))
    if not said["user"]:
        raise ValueError(f"{place}: expected a message of the user, found none")
    return "\n\n".join(said["system"]), "\n\n".join(said["user"])


def _objects(row: Row, name: str, place: str) -> Sequence[Row]:
    value = row.get(name)
    if not (isinstance(value, list) and value and all(isinstance(one, dict) for one in value)):
        raise ValueError(f"{place}: expected a field {name!r} that is a list of objects")
    return value


def _function(described: Row, place: str) -> Function:
    name = text_field(described, "name", place)
    parameters = described.get("parameters")
    if not (isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict)):
        raise ValueError(f"{place}: expected parameters with properties for {name!r}")
    unknown = [key for key, one in parameters["properties"].items() if not known_type(one)]
    if unknown:
        kind = parameters["properties"][unknown[0]].get("type")
        raise ValueError(f"{place}: {name} has a parameter {unknown[0]!r} of unknown type {kind!r}")
    description = str(described.get("description", ""))
    return Function(name=name, description=description, parameters=parameters)


def _expected(answer: Row, functions: Sequence[Function], place: str) -> Expected:
    name, accepted = next(iter(answer.items()))
    if len(answer) != 1 or not isinstance(accepted, dict):
        raise ValueError(f"{place}: expected each call as {{function: {{parameter: [values]}}}}")
    if name not in {function.name for function in functions}:
        raise ValueError(f"{place}: expected a call of a function on offer, found {name!r}")
    lists = all(isinstance(values, list) and values for values in accepted.values())
    if not lists:
        raise ValueError(f"{place}: expected a list of accepted values for each parameter")
    return Expected(name, accepted)


def _share_of_names(made: Sequence[Call], wanted: Sequence[Expected]) -> float:
    """Return which share of the calls made or wanted, whichever are more, agrees in the name."""
    common = Counter(call.name for call in made) & Counter(one.name for one in wanted)
    return common.total() / max(len(made), len(wanted), 1) if wanted else 0.0
