"""Policy addresses, constraints and error objects."""

from __future__ import annotations

import json

import pytest

from serve.wire import BadReference, PolicyRef, VersionConstraint, error_body


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
