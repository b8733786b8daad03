"""From a model's name to the policy and the versions that may answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from serve.front.relay.naming import Resolver
from serve.pool.routing import Wanted
from serve.wire import BadReference


@dataclass
class Split:
    version: int
    share: float


@dataclass
class Rules:
    aliases: dict[str, str] = field(default_factory=dict)
    canary: dict[str, Split] = field(default_factory=dict)
    shadow: dict[str, Split] = field(default_factory=dict)


def resolver(rules: Rules | None = None, names: tuple[str, ...] = ("p", "q")) -> Resolver:
    return Resolver(rules or Rules(), lambda: names)  # type: ignore[arg-type]  # same fields


@pytest.mark.parametrize(
    ("model", "constraint", "wanted"),
    [
        ("p", None, Wanted("p")),
        ("p@7", None, Wanted("p", exact=7)),
        ("p", b">=3", Wanted("p", minimum=3)),
        ("p", b"==3", Wanted("p", exact=3)),
        ("p@3", b">=2", Wanted("p", minimum=2, exact=3)),
        ("prod", None, Wanted("p", exact=2)),
        ("newest", None, Wanted("q")),
        ("unknown", None, Wanted("unknown")),
    ],
)
def test_names_constraints_and_aliases(
    model: str, constraint: bytes | None, wanted: Wanted
) -> None:
    resolve = resolver(Rules(aliases={"prod": "p@2", "newest": "q"}))
    assert [resolve.wanted(model, constraint, None) for _ in range(2)] == [wanted, wanted]


@pytest.mark.parametrize(
    ("model", "constraint", "message"),
    [
        ("p@x", None, "expected NAME or NAME@VERSION"),
        ("p", b"7", "expected >=VERSION"),
        ("p@3", b"==4", "p@3 cannot also be version 4"),
        (None, None, "`model` is missing: name one of p, q"),
        ("", None, "`model` is missing"),
    ],
)
def test_what_cannot_be_resolved(model: str | None, constraint: bytes | None, message: str) -> None:
    with pytest.raises(BadReference, match=message):
        resolver().wanted(model, constraint, None)


def test_the_only_policy_needs_no_name() -> None:
    assert resolver(names=("p",)).wanted(None, None, None) == Wanted("p")


def test_a_policy_wins_over_an_alias_of_its_name() -> None:
    assert resolver(Rules(aliases={"p": "q"})).wanted("p", None, None) == Wanted("p")


def test_new_rules_hold_at_once() -> None:
    resolve = resolver(Rules(aliases={"prod": "p@1"}))
    assert resolve.wanted("prod", None, None).exact == 1
    resolve.rules = Rules(aliases={"prod": "p@2"})  # type: ignore[assignment]  # same fields
    assert resolve.wanted("prod", None, None).exact == 2


def test_a_canary_takes_its_share_of_the_sessions_and_keeps_them() -> None:
    resolve = resolver(Rules(canary={"p": Split(version=8, share=0.2)}))
    sessions = [b"episode-%d" % number for number in range(5000)]
    first = [resolve.wanted("p", None, session).exact for session in sessions]
    assert first == [resolve.wanted("p", None, session).exact for session in sessions]
    assert Counter(first)[8] == pytest.approx(1000, abs=120)
    anonymous = Counter(resolve.wanted("p", None, None).exact for _ in range(5000))
    assert anonymous[8] == pytest.approx(1000, abs=120)


def test_who_names_a_version_is_no_canary() -> None:
    resolve = resolver(Rules(canary={"p": Split(version=8, share=1.0)}))
    assert resolve.wanted("p@3", None, None).exact == 3
    assert resolve.wanted("p", b">=2", None).exact is None
    assert resolve.wanted("p", None, None).exact == 8


def test_a_shadow_gets_its_share() -> None:
    resolve = resolver(Rules(shadow={"p": Split(version=8, share=0.5)}))
    versions = Counter(resolve.shadow_version("p", b"%d" % number) for number in range(2000))
    assert versions[8] == pytest.approx(1000, abs=100)
    assert resolve.shadow_version("q", b"1") is None
