"""The curve as JUnit XML, for CI: a test case per version, which fails where it is worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as Xml

from evalkit.watch.curve import Status, printable, sentence


def junit(rows: Sequence[Mapping[str, Any]], env: str) -> bytes:
    """Return the XML: worse versions are failures, failed ones errors, missed ones skipped."""
    failures = sum(bool(row["worse"]) for row in rows)
    statuses = [row["status"] for row in rows]
    counts = {
        "tests": len(rows),
        "failures": failures,
        "errors": statuses.count(Status.FAILED),
        "skipped": statuses.count(Status.MISSED),
    }
    said = {name: str(count) for name, count in counts.items()}
    root = Xml.Element("testsuites", said)
    suite = Xml.SubElement(root, "testsuite", {"name": "evalkit watch", **said})
    for row in rows:
        case = Xml.SubElement(
            suite, "testcase", {"classname": printable(env), "name": printable(row["version"])}
        )
        line = sentence(row)
        if row["status"] is Status.FAILED:
            Xml.SubElement(case, "error", {"message": line})
        elif row["status"] is Status.MISSED:
            Xml.SubElement(case, "skipped", {"message": line})
        elif row["worse"]:
            Xml.SubElement(case, "failure", {"message": line})
        else:
            Xml.SubElement(case, "system-out").text = line
    Xml.indent(root)
    written: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"
