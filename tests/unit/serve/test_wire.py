"""Policy addresses, constraints and error objects."""

from __future__ import annotations

import json
import math

import pytest

from serve.wire import (
    BadProbes,
    BadReference,
    PolicyRef,
    Probes,
    VersionConstraint,
    error_body,
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("key-door", PolicyRef("key-door")),
        ("key-door@7", PolicyRef("key-door", 7)),
        ("org/model.v2@000012", PolicyRef("org/model.v2", 12)),
        ("/data/checkpoint", PolicyRef("/data/checkpoint")),
        ("llama3:8b@2", PolicyRef("llama3:8b", 2)),
    ],
)
def test_a_reference_names_a_policy_or_a_version(text: str, reference: PolicyRef) -> None:
    assert PolicyRef.parse(text) == reference


def test_a_reference_prints_as_it_is_written() -> None:
    assert [str(PolicyRef("a")), str(PolicyRef("a", 7))] == ["a", "a@7"]


@pytest.mark.parametrize("text", ["", "@7", "a@", "a@x", "a@-1", "a@1@2", "a b", "../x", "é"])
def test_what_is_no_reference_says_what_was_expected(text: str) -> None:
    with pytest.raises(BadReference, match="expected NAME or NAME@VERSION"):
        PolicyRef.parse(text)


@pytest.mark.parametrize(
    ("text", "admitted"),
    [(">=3", [3, 4, 5]), (" >= 5 ", [5]), ("==2", [2])],
)
def test_a_constraint_admits_versions(text: str, admitted: list[int]) -> None:
    constraint = VersionConstraint.parse(text)
    assert [version for version in range(1, 6) if constraint.admits(version)] == admitted


@pytest.mark.parametrize("text", ["", "3", ">3", "<=3", ">=", ">=x", ">=1,==2"])
def test_what_is_no_constraint_says_what_was_expected(text: str) -> None:
    with pytest.raises(BadReference, match="expected >=VERSION or ==VERSION"):
        VersionConstraint.parse(text)


def test_errors_are_openais() -> None:
    body = error_body("no", status=409, kind="conflict_error", code="not_ready", param="model")
    assert json.loads(body) == {
        "error": {"message": "no", "type": "conflict_error", "param": "model", "code": "not_ready"}
    }


GOOD = {"tokens": [[1, 2, 3], [0, 7]], "logprobs": [[-0.5, -1], [-3.25]], "tolerance": 0.01}


def test_probes_are_read_as_they_were_written() -> None:
    probes = Probes.from_json(GOOD)
    assert probes.tokens == ((1, 2, 3), (0, 7))
    assert probes.logprobs == ((-0.5, -1.0), (-3.25,))
    assert probes.tolerance == 0.01
    assert Probes.from_json(json.loads(json.dumps(probes.to_json()))) == probes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": []}, "expected 1 to 64 probes, got 0"),
        ({"tokens": [[1, 2]] * 65, "logprobs": [[-1.0]] * 65}, "expected 1 to 64 probes, got 65"),
        ({"logprobs": [[-0.5, -1]]}, "2 probes have logprobs for 1"),
        ({"tokens": [[1, 2, 3], [0]]}, "probe 1: expected 2 to 4096 tokens, got 1"),
        ({"tokens": [[1] * 4097, [0, 7]]}, "probe 0: expected 2 to 4096 tokens, got 4097"),
        ({"tokens": [[1, 2], [0, 7]]}, "probe 0: 2 tokens have 1 logprobs, got 2"),
        ({"tokens": [[1, 2, -3], [0, 7]]}, "probe 0: expected token ids from 0 on"),
        ({"tokens": [[1, 2, True], [0, 7]]}, "probe 0: expected token ids from 0 on"),
        ({"tokens": [[1, 2, "3"], [0, 7]]}, "probe 0: expected token ids from 0 on"),
        ({"logprobs": [[-0.5, math.nan], [-3.25]]}, "probe 0: expected finite logprobs"),
        ({"logprobs": [[-0.5, -1], [-math.inf]]}, "probe 1: expected finite logprobs"),
        (
            {"tokens": [[1] * 4096] * 5, "logprobs": [[-1.0] * 4095] * 5},
            "expected at most 16384 tokens in all, got 20480",
        ),
        ({"tolerance": 0}, "expected a tolerance above 0, got 0.0"),
        ({"tolerance": math.nan}, "expected a tolerance above 0, got nan"),
        ({"tolerance": math.inf}, "expected a tolerance above 0, got inf"),
        ({"tolerance": "much"}, "expected tokens, logprobs and tolerance"),
        ({"logprobs": 7}, "expected tokens, logprobs and tolerance"),
    ],
)
def test_probes_that_cannot_be_compared(change: dict[str, object], reason: str) -> None:
    with pytest.raises(BadProbes, match=reason):
        Probes.from_json(GOOD | change)
