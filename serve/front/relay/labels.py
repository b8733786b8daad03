"""Which weights made an answer, in its head and trailer: our word, or an upstream gateway's. Pure.

A replica that is a gateway of ours knows at each moment what it serves, where we know it only as of
the last look: its word goes on to the client, and what we send it leaves the choice to it.
"""

from serve.front.relay import heads
from serve.front.relay.heads import AnswerHead
from serve.pool.replicas import Replica, encoded
from serve.pool.routing import Wanted
from serve.wire import POLICY_CONSTRAINT_HEADER, PolicyRef

TURNS_AWAY = frozenset((409, 429, 502, 503))
"""Said by a gateway, or by what stands before it, of a request that another one may well answer."""
COLD = 503
"""Said where no engine is ready, or no container is there at all."""

_CONSTRAINT = POLICY_CONSTRAINT_HEADER.lower().encode()
_RETRY_AFTER = b"retry-after:"


def name_for(wanted: Wanted) -> bytes:
    """Return what the body's `model` has to be at a gateway, as JSON.

    It gets the bare name where no version was asked for or chosen: it knows its newest best.
    """
    return encoded(str(PolicyRef(wanted.name, wanted.exact)))


def lines_for(replica: Replica, wanted: Wanted, session: bytes | None) -> bytes:
    """Return the header lines that a gateway gets besides: the constraint, and the affinity."""
    lines = [b"%b: %b\r\n" % (name, session) for name in replica.affinity if session]
    if wanted.minimum and wanted.exact is None:
        lines.append(b"%b: >=%d\r\n" % (_CONSTRAINT, wanted.minimum))
    return b"".join(lines)


def version_in(head: AnswerHead, otherwise: int) -> int:
    """Return the version that an upstream gateway says it dispatched to."""
    said = (head.labels or {}).get(heads.VERSION, b"")
    return int(said) if said.isdigit() else otherwise


def label(head: AnswerHead, replica: Replica, begun: int, now: int) -> None:
    """Add to an answer's head which weights began it, which make it now, and who."""
    if replica.labels:
        head.lines += _passed_on(head.labels or {}, replica)
        if head.status in TURNS_AWAY and not _says_when(head):
            head.lines.append(_RETRY_AFTER + b" 1")
        return
    stamp = replica.stamps.get(begun)
    if stamp is None:
        stamp = replica.stamps[begun] = heads.stamp(begun, replica.id)
    head.lines.append(stamp)
    if now != begun:
        head.lines.append(heads.ended_by(now))


def version_now(replica: Replica, wanted: Wanted, begun: int) -> int:
    """Return the version that makes an answer's tokens now. A gateway says so itself."""
    if replica.labels or begun in replica.leaving or begun in replica.served.get(wanted.name, ()):
        return begun
    return replica.current.get(wanted.name, begun)


def with_trailer(data: bytes, begun: int, end: int) -> bytes:
    """Say in a trailer that another version finished a stream in chunks than began it."""
    if end == begun or not data.endswith(b"\r\n"):
        return data
    return b"%b%b\r\n\r\n" % (data[:-2], heads.ended_by(end))


def _says_when(head: AnswerHead) -> bool:
    return any(line[: len(_RETRY_AFTER)].lower() == _RETRY_AFTER for line in head.lines)


def _passed_on(labels: dict[bytes, bytes], replica: Replica) -> list[bytes]:
    """Return an upstream gateway's own labels; its replica's name is only unique beneath its own.

    An answer without them was made by no weights: it refuses, or comes from what stands between.
    """
    lines = [b"%b: %b" % (name, value) for name, value in labels.items() if name != heads.REPLICA]
    inner = labels.get(heads.REPLICA)
    who = replica.id.encode() if inner is None else b"%b/%b" % (replica.id.encode(), inner)
    return [*lines, b"%b: %b" % (heads.REPLICA, who)]
