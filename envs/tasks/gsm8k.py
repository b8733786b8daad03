"""gsm8k: a word problem in, a number out.

Lives here: the env. Its questions are a JSON Lines file in the form of GSM8K, or, called by their
own name, "generated", those of `arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from envs.base import Info, Parsed
from envs.tasks import answers, arithmetic
from envs.tasks.rows import digest_of, file_text, rows_of, source_of, stamp, text_field
from envs.tasks.single_turn import SingleTurn, Verdict

GENERATED = "generated"
_SAMPLE = tuple(str(number) for number in range(1000))


@dataclass(frozen=True, slots=True)
class _Problems:
    """A file's questions with their answers."""

    rows: tuple[tuple[str, Fraction], ...]
    digest: str


class Gsm8k(SingleTurn):
    r"""Answer a word problem: 1.0 for the right number, else 0.

    `path`: a JSON Lines file with the fields `question` and `answer`, whose last line is `#### 42`;
    seed s asks line s, counted from 0 and going round at the end. By default "generated": our own
    problems, one per seed; `reset` and the digest say so too.

    The last `<answer>` or `\boxed{}` of a reply counts. Numbers are compared exactly: 1,000, 1000
    and 1000.0 are the same, so are 1/2 and 0.5, but 0.33 is not 1/3.
    """

    id = "gsm8k"
    action_tag = "answer"
    data_params = ("path",)

    def __init__(self, *, path: str = GENERATED) -> None:
        super().__init__()
        self.path = path
        self._problems = None if path == GENERATED else _read(path, stamp(path))
        self._question, self._answer = "", Fraction(0)

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"path": self.path}

    def data_digest(self) -> str:
        """Name the questions and the rules of reading answers; see `envs.registry.digest`."""
        questions = source_of(arithmetic) if self._problems is None else self._problems.digest
        return digest_of(self.about()["source"], questions, source_of(answers))

    def number(self, seed: int) -> int:
        """Return the line that `seed` asks; of generated problems there is one per seed."""
        return seed if self._problems is None else seed % len(self._problems.rows)

    def open(self, number: int) -> str:
        """Ask a question."""
        if self._problems is None:
            self._question, answer = arithmetic.word_problem(number)
            self._answer = Fraction(answer)
        else:
            self._question, self._answer = self._problems.rows[number]
        return self._question

    def about(self) -> Info:
        """Tell whether the question was generated or is a file's."""
        return {"source": GENERATED if self._problems is None else "file"}

    def judge(self, action: str) -> Verdict:
        """Compare numbers."""
        number = answers.plain_number(action)
        if number is None:
            error = "it names no number" if action else "the reply names no number"
            return Verdict(reward=0.0, right=False, said="", error=error)
        right = number == self._answer
        said = "That is right." if right else "That is wrong."
        return Verdict(reward=float(right), right=right, said=said)

    def legal_actions(self) -> tuple[str, ...]:
        """Return a sample of answers: the whole numbers below 1,000, and the right one."""
        right = answers.number_text(self._answer)
        return _SAMPLE if right in _SAMPLE_SET else (*_SAMPLE, right)

    def action_pattern(self) -> str:
        """Return a regular expression that admits any number."""
        return f"<{self.action_tag}>-?[0-9]+(?:[./][0-9]+)?</{self.action_tag}>"

    def parse(self, completion: str) -> Parsed:
        r"""Read the last `<answer>` or `\boxed{}`."""
        return answers.read_answer(completion)

    def oracle(self) -> str:
        """Return the answer."""
        return answers.number_text(self._answer)

    @property
    def system_prompt(self) -> str:
        """What to do and the answer's format."""
        return (
            "Solve the problem. Think it through step by step, then give the result: one number "
            "without units, written like this: <answer>42</answer>"
        )


_SAMPLE_SET = frozenset(_SAMPLE)


@lru_cache(maxsize=8)
def _read(path: str, stamped: tuple[int, int]) -> _Problems:  # noqa: ARG001 - part of the key
    text = file_text(path)
    rows = []
    for place, row in rows_of(text, path):
        question = text_field(row, "question", place)
        said = text_field(row, "answer", place)
        _, mark, last = said.rpartition("####")
        number = answers.read_number(last.strip()) if mark else None
        if number is None:
            shown = said if len(said) <= 60 else f"...{said[-60:]}"
            raise ValueError(
                f"{place}: expected an answer that ends in '#### NUMBER', found {shown!r}"
            )
        rows.append((question, number))
    return _Problems(rows=tuple(rows), digest=digest_of(text))
