import pytest

from serve.front.relay import labels
from serve.front.relay.heads import AnswerHead
from serve.pool.replicas import Replica
from serve.pool.routing import Wanted

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2"


def gateway() -> Replica:
    replica = Replica("ta-1", "127.0.0.1", 80, labels=True, affinity=("A-One", "A-Two"))
    replica.served, replica.current = {"p": {7: b'"p@7"', 6: b'"p@6"'}}, {"p": 7}
    return replica


def engine() -> Replica:
    replica = Replica("r0", "127.0.0.1", 80)
    replica.served, replica.current = {"p": {7: b'"p"'}}, {"p": 7}
    return replica


def added(raw: bytes, replica: Replica, begun: int, now: int) -> list[bytes]:
    head = AnswerHead(raw)
    before = len(head.lines)
    labels.label(head, replica, begun, now)
    return head.lines[before:]


def test_an_engine_is_labelled_by_us_whatever_it_says() -> None:
    said = OK + b"\r\nX-Policy-Version: 99\r\nX-Replica: me"
    assert added(said, engine(), 7, 7) == [b"x-policy-version: 7\r\nx-replica: r0"]
    assert added(OK, engine(), 7, 8)[-1] == b"x-policy-version-end: 8"


def test_a_gateways_own_labels_pass() -> None:
    said = OK + b"\r\nX-Policy-Version: 8\r\nX-Replica: replica-0\r\nX-Policy-Version-End:9"
    assert added(said, gateway(), 7, 7) == [
        b"x-policy-version: 8",
        b"x-policy-version-end: 9",
        b"x-replica: ta-1/replica-0",
    ]
    assert labels.version_in(AnswerHead(said), 7) == 8


def test_what_no_weights_made_has_no_version() -> None:
    refused = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2"
    assert added(refused, gateway(), 7, 7) == [b"x-replica: ta-1"]
    assert labels.version_in(AnswerHead(refused), 7) == 7
    odd = AnswerHead(OK + b"\r\nx-policy-version: seven")
    assert labels.version_in(odd, 7) == 7


@pytest.mark.parametrize("status", sorted(labels.TURNS_AWAY))
def test_who_is_turned_away_learns_when_to_come_again(status: int) -> None:
    raw = b"HTTP/1.1 %d No\r\ncontent-length: 2" % status
    assert b"retry-after: 1" in added(raw, gateway(), 7, 7)
    head = AnswerHead(raw + b"\r\nRetry-After: 9")
    labels.label(head, gateway(), 7, 7)
    assert [line for line in head.lines if b"etry" in line] == [b"Retry-After: 9"]


@pytest.mark.parametrize(
    ("wanted", "name", "lines"),
    [
        (Wanted("p"), b'"p"', b""),
        (Wanted("p", exact=6), b'"p@6"', b""),
        (Wanted("p", minimum=7), b'"p"', b"x-policy-constraint: >=7\r\n"),
        (Wanted('p"q', exact=6), b'"p\\"q@6"', b""),
    ],
)
def test_a_gateway_chooses_what_nobody_asked_us_to(
    wanted: Wanted, name: bytes, lines: bytes
) -> None:
    assert labels.name_for(wanted) == name
    assert labels.lines_for(gateway(), wanted, None) == lines


def test_affinity_goes_under_each_name() -> None:
    sent = labels.lines_for(gateway(), Wanted("p", minimum=2), b"s1")
    assert sent == b"a-one: s1\r\na-two: s1\r\nx-policy-constraint: >=2\r\n"


def test_the_version_of_the_moment() -> None:
    replica = engine()
    assert labels.version_now(replica, Wanted("p"), 7) == 7
    assert labels.version_now(replica, Wanted("p"), 6) == 7
    replica.leaving = (6,)
    assert labels.version_now(replica, Wanted("p"), 6) == 6
    assert labels.version_now(gateway(), Wanted("p"), 5) == 5, "that is its own to say"


def test_a_trailer_says_who_ended_it() -> None:
    assert labels.with_trailer(b"0\r\n\r\n", 1, 1) == b"0\r\n\r\n"
    assert labels.with_trailer(b"0\r\n\r\n", 1, 2) == b"0\r\nx-policy-version-end: 2\r\n\r\n"
    assert labels.with_trailer(b"cut", 1, 2) == b"cut"
