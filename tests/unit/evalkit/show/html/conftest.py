"""Reports of arms that are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from evalkit.record.numbers import ArmNumbers
from evalkit.record.references import Reference
from evalkit.show.report import Report, make_report

REFERENCES = {
    "random": Reference(
        policy="random", n_episodes=4, successes=1, return_mean=0.25, turns_mean=9.0
    ),
    "oracle": Reference(
        policy="oracle", n_episodes=4, successes=4, return_mean=1.0, turns_mean=2.0
    ),
}
COLUMNS = (
    "format run_id arm model base_url_host model_fingerprint env env_version env_hash env_args "
    "strategy guided n_seeds k run_seed temperature max_tokens git_sha evalkit_version"
).split()


@pytest.fixture(scope="session")
def reported() -> Callable[..., Report]:
    """Return what makes a report of arms' numbers."""

    def report(numbers: Mapping[str, ArmNumbers], **known: Any) -> Report:
        identities = {
            arm: {
                **dict.fromkeys(COLUMNS, "x"),
                "usd_per_mtok_in": None,
                "usd_per_mtok_out": None,
                "k": 1,
                "guided": False,
                "arm": arm,
                "run_id": "run-1",
                "base_url_host": "",
                **known,
            }
            for arm in numbers
        }
        return make_report(numbers, identities, REFERENCES)

    return report
