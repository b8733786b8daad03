"""What is wrong with answers: by their labels, and by who knows the weights of every version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.swap_parts.clients import Answer

Ids = tuple[int, ...]

_SAMPLE = 4
"""Every so many answers are held against the version before theirs as well."""


class Scored(Protocol):
    """An answer's tokens as an oracle finds them."""

    @property
    def logprobs(self) -> Sequence[float]:
        """Of the tokens."""

    @property
    def best(self) -> Sequence[float]:
        """The logprob of the likeliest token in each place."""


Oracle = Callable[[int, Sequence[tuple[Ids, Ids]]], Sequence[Scored]]
"""A version, and answers to prompts -> how likely their tokens are by that version's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That these tokens of an answer were made by this version."""

    version: int
    start: int
    end: int


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was found."""

    answers: int = 0
    tokens: int = 0
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Answers that have not exactly the tokens that were asked for."""
    wrong: list[str] = field(default_factory=list)
    """Answers of which a token is not of the version that its label says."""
    crossing: int = 0
    """Answers that one version began and another finished."""
    versions: set[int] = field(default_factory=set)
    """That made tokens."""
    worst: float = 0.0
    """The largest difference of a logprob, in nats, where the labels are right."""
    blind: int = 0
    """Answers of a sample that the version before theirs would explain as well."""


class Judge:
    """Judges answers with an oracle. `upper` says the newest version there was at a time."""

    def __init__(
        self, oracle: Oracle, upper: Callable[[float], int], tolerance: float, *, by_spans: bool
    ) -> None:
        """`by_spans`: whether the engine's labels say the version, as they do of full weights."""
        self._oracle, self._upper, self._tolerance = oracle, upper, tolerance
        self._by_spans = by_spans

    def judge(self, answers: Iterable[Answer]) -> Verdict:
        """Look at every answer, and at every token of those that are whole."""
        verdict = Verdict()
        whole = []
        for answer in answers:
            verdict.answers += 1
            verdict.tokens += len(answer.ids)
            verdict.crossing += answer.end is not None
            if answer.failure:
                verdict.failed.append(f"{answer.form.value}: {answer.failure}")
            elif missing := lacks(answer):
                verdict.lost.append(f"{_named(answer)}: {missing}")
            else:
                whole.append(answer)
        scores = self._scores(whole)
        for number, answer in enumerate(whole):
            found = {
                version: scored[number] for version, scored in scores.items() if number in scored
            }
            self._look(answer, found, verdict)
        return verdict

    def possible(self, answer: Answer) -> range:
        """Return the versions that may have made tokens of an answer, by its head and the time."""
        if answer.end is None:
            return range(answer.version, answer.version + 1)
        last = self._upper(answer.ended_s) if answer.end == 0 else answer.end
        return range(answer.version, last + 1)

    def _scores(self, answers: Sequence[Answer]) -> dict[int, dict[int, Scored]]:
        """Return what the oracle says of each answer, by the versions that come into question."""
        wanted: dict[int, list[int]] = {}
        for number, answer in enumerate(answers):
            versions = set(self.possible(answer))
            if number % _SAMPLE == 0 and len(versions) == 1 and answer.version > 1:
                versions.add(answer.version - 1)
            if self._by_spans:
                versions |= {span.version for span in answer.spans}
            for version in versions:
                wanted.setdefault(version, []).append(number)
        made = {}
        for version, numbers in sorted(wanted.items()):
            asked = [(answers[at].prompt, tuple(answers[at].ids)) for at in numbers]
            made[version] = dict(zip(numbers, self._oracle(version, asked), strict=True))
        return made

    def _look(self, answer: Answer, scored: Mapping[int, Scored], verdict: Verdict) -> None:
        possible = self.possible(answer)
        off = {version: self._off(answer, scored[version]) for version in scored}
        if self._by_spans and answer.spans:
            claims = [
                Claim(version=span.version, start=span.start, end=span.end) for span in answer.spans
            ]
        elif len(possible) == 1:
            claims = [Claim(version=answer.version, start=0, end=len(answer.ids))]
        else:
            claims = split(off, possible, self._tolerance)
        problem = ""
        if [claim.start for claim in claims] != [0, *(claim.end for claim in claims[:-1])]:
            problem = "the labels do not cover it"
        elif any(claim.version not in possible for claim in claims):
            problem = "the engine's labels are none that its head admits"
        worst = 0.0
        for claim in claims:
            verdict.versions.add(claim.version)
            worst = max((worst, *off[claim.version][claim.start : claim.end]))
        if not claims or claims[-1].end != len(answer.ids) or worst > self._tolerance:
            problem = problem or f"off by {worst:.3g}"
        if problem:
            verdict.wrong.append(f"{_named(answer)}: {problem}")
            return
        verdict.worst = max(verdict.worst, worst)
        if answer.end is None and answer.version - 1 in off:
            verdict.blind += max(off[answer.version - 1]) <= self._tolerance

    def _off(self, answer: Answer, scored: Scored) -> list[float]:
        """Return by how much each token is not what a version makes."""
        greedy = answer.form.is_greedy
        return [
            max(abs(told - right), best - right if greedy else 0.0)
            for told, right, best in zip(answer.logprobs, scored.logprobs, scored.best, strict=True)
        ]


def lacks(answer: Answer) -> str:
    """Say what an answer lacks of all that was asked for; "" if nothing."""
    if len(answer.ids) != answer.wanted:
        return f"{len(answer.ids)} tokens instead of {answer.wanted}, {answer.finish_reason}"
    if answer.finish_reason != "length":
        return f"it ended by {answer.finish_reason}"
    if len(answer.logprobs) != answer.wanted:
        return f"{len(answer.logprobs)} logprobs of {answer.wanted} tokens"
    if answer.told_prompt not in (None, answer.prompt):
        return "its prompt was another one"
    return ""


def split(
    off: Mapping[int, Sequence[float]], versions: Sequence[int], tolerance: float
) -> list[Claim]:
    """Cut an answer into runs of ever newer versions that made them; [] if there is no such cut.

    Each version takes as many tokens as it explains: an older one's run is the longest possible.
    """
    if not versions:
        return []
    count, at = len(off[versions[0]]), 0
    claims = []
    for version in versions:
        start = at
        while at < count and off[version][at] <= tolerance:
            at += 1
        if at > start:
            claims.append(Claim(version=version, start=start, end=at))
    return claims if at == count else []


def _named(answer: Answer) -> str:
    spans = ", ".join(f"{span.label} {span.start}-{span.end}" for span in answer.spans)
    label = answer.version if answer.end is None else f"{answer.version} to {answer.end}"
    return f"{answer.form.value} of version {label} ({spans or 'no spans'})"
