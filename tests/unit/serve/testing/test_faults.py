import pytest

from serve.testing.faults import Fault, Faults


def test_strikes_by_count_and_the_first_declared_wins() -> None:
    faults = Faults(reset_every=4, too_many_every=2)
    assert [faults.strikes(count) for count in range(1, 9)] == [
        *(None, Fault.TOO_MANY, None, Fault.RESET),
        *(None, Fault.TOO_MANY, None, Fault.RESET),
    ]
    assert Faults().strikes(1) is None


def test_parses_what_the_command_line_says() -> None:
    parsed = Faults.parse(["cut_every=3", "delay_s=0.5", "chunked=1"])
    assert parsed == Faults(cut_every=3, delay_s=0.5, chunked=True)


@pytest.mark.parametrize("assignment", ["nope=1", "cut_every", "cut_every=x"])
def test_refuses_what_it_does_not_know(assignment: str) -> None:
    with pytest.raises(ValueError, match=r"no fault|invalid literal"):
        Faults.parse([assignment])
