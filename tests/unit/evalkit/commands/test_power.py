"""`evalkit power`, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.planning import _episode_rho
from evalkit.record.testing import arms_of

SMALL = "--env key_door --env-arg size=2 -n 12".split()


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_power_plans_from_numbers_and_from_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("power --baseline .5 --effect .1 --rho .47".split()) == 0
    assert capsys.readouterr().out.startswith(
        "60.0 % against 50.0 % success, with 80 % power at alpha 0.05 (rho 0.47: 27.0 % of seeds "
        "are won by one arm only)\n"
        "  paired      229 seeds that both arms play\n"
        "  unpaired    385 seeds of its own for each arm; pairing saves 41 % of the episodes\n"
        "  sequential  "
    )
    assert main(["--model", "A=noop", "--model", "B=oracle", *SMALL]) == 0
    (run,) = (folder / "results").iterdir()
    capsys.readouterr()
    assert main(["power", str(run), "--effect", ".5", "--seeds", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "B against A: +100.0 points of success on 12 shared seeds; rho 0.00"
    assert lines[1].startswith("10 seeds show a gain of ")


def test_repetitions_and_single_arms_are_planned_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("power --baseline .5 --effect -.1 --rho .47 -k 4".split()) == 0
    said = capsys.readouterr().out
    assert "53 seeds that both arms play, 4 times each (212 episodes per arm)" in said
    assert "sequential" not in said
    assert main("power --baseline .5 --seeds 5".split()) == 0
    assert "5 seeds show no gain over 50.0 % with 80 % power" in capsys.readouterr().out
    assert main("power --baseline .5 --effect .01".split()) == 0
    assert "not simulated beyond 20000 seeds" in capsys.readouterr().out
    assert main(["--model", "random", *SMALL, "-k", "3"]) == 0
    (run,) = (folder / "results").iterdir()
    capsys.readouterr()
    assert main(["power", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("random: ")
    assert lines[0].endswith("as between repetitions of a seed")
    assert lines[1].startswith("12 seeds, 3 times each show ")
    assert main(["power", str(run), "--rho", ".2"]) == 0
    assert "rho 0.20, as given" in capsys.readouterr().out
    assert main(["--model", "noop", *SMALL, "--out", "alike"]) == 0
    (run,) = (folder / "alike").iterdir()
    assert main(["power", str(run)]) == 0
    assert "rho 0.00, for want of seeds that were repeated" in capsys.readouterr().out


def test_the_correlation_is_that_of_episodes() -> None:
    same = arms_of(A="0011" * 5, B="0011" * 5)
    assert _episode_rho(same["A"], same["B"]) == pytest.approx(1.0)
    other = arms_of(A="0011" * 5, B="0101" * 5)
    assert _episode_rho(other["A"], other["B"]) == pytest.approx(0.0)
    always = arms_of(A="1111", B="0101")
    assert _episode_rho(always["A"], always["B"]) == 0.0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--effect .1 -k 0", "k is at least 1, not 0"),
        ("--effect .1 --alpha 2", "expected 0 < alpha < power < 1, got alpha=2.0, power=0.8"),
        ("--effect .1 --power .01", "got alpha=0.05, power=0.01"),
        ("--effect .6", "expected baseline + effect in [0, 1], got 0.5 and 0.6"),
        ("--seeds -3", "seeds is at least 1, not -3"),
    ],
)
def test_numbers_that_no_design_has_are_refused(
    asked: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", "--baseline", ".5", *asked.split()]) == 2
    assert message in capsys.readouterr().err


def test_an_effect_that_an_arm_cannot_have_is_said_and_the_others_are_planned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", "A=noop", "--model", "B=oracle", "--model", "C=oracle"]
    assert main([*models, *SMALL]) == 0
    (run,) = (folder / "results").iterdir()
    capsys.readouterr()
    assert main(["power", str(run), "--effect", ".5"]) == 0
    said = capsys.readouterr().out
    assert "50.0 % against 0.0 % success" in said
    assert said.endswith(
        "no gain over 100.0 % is possible\nno success rate is +50.0 points from 100.0 %\n"
    )
