"""JUnit XML, read by a standard parser."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as Xml

from evalkit.watch.curve import Status
from evalkit.watch.junit import junit


def _row(version: str, status: Status, **changed: Any) -> dict[str, Any]:
    numbers = {
        "success": 0.5,
        "lo": 0.4,
        "hi": 0.6,
        "n": 10,
        "n_error": 0,
        "diff_best": None,
        "worse": None,
    }
    return {"version": version, "status": status, "message": None, **numbers, **changed}


def test_every_version_is_a_test_case() -> None:
    worse = {"diff_best": -0.4, "best": "m@1", "p_worse": 0.001, "worse": True}
    rows = [
        _row("m@1", Status.EVALUATED),
        _row("m@2", Status.FAILED, message='HTTP 400: "<no>"\x00\x1b & \ud800'),
        _row("m@3", Status.MISSED, message="gone"),
        _row("m@4", Status.EVALUATED, **worse),
    ]
    root = Xml.fromstring(junit(rows, "key_door"))
    (suite,) = root
    counts = {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert root.attrib == counts
    assert suite.attrib == {"name": "evalkit watch", **counts}
    assert [case.get("name") for case in suite] == ["m@1", "m@2", "m@3", "m@4"]
    assert {case.get("classname") for case in suite} == {"key_door"}
    assert [case[0].tag for case in suite] == ["system-out", "error", "skipped", "failure"]
    assert suite[1][0].get("message") == 'm@2 failed: HTTP 400: "<no>" & '
    assert "significantly worse" in str(suite[3][0].get("message"))


def test_a_curve_without_versions_is_an_empty_suite() -> None:
    assert Xml.fromstring(junit([], "key_door")).get("tests") == "0"
