"""Goes on with a stream whose replica was lost, on another one of the same version.

Greedy decoding makes a text a function of the weights and the tokens so far, so that the client
need not learn of the loss. What cannot be joined bit for bit ends as every lost stream does.
"""

import logging
from typing import Protocol

from serve.front.migration.ask import TEXT, Ask
from serve.front.migration.ask import read as read_ask
from serve.front.migration.framing import Framing, Unjoinable
from serve.front.migration.seam import Seam
from serve.front.migration.tail import END, Tail
from serve.front.ports import Client, House
from serve.front.relay import bodies
from serve.front.relay.heads import AnswerHead
from serve.front.relay.upstream import Upstream
from serve.pool.replicas import Replica
from serve.pool.routing import Wanted, serves

logger = logging.getLogger(__name__)

_MAX_MOVES = 3
_ERROR = b'data: {"error"'


class Interrupted(Protocol):
    """The request whose stream may be cut, as far as this touches it: an Exchange."""

    gateway: House
    client: Client
    path: bytes
    body: bytes
    forwarded: bytes
    session: bytes | None
    wanted: Wanted | None
    engine_name: bytes
    replica: Replica | None
    version: int
    usage: tuple[int, int] | None

    def version_now(self) -> int:
        """Return the version that makes the tokens now."""

    def go_on_at(self, replica: Replica) -> None:
        """Take a place on another replica, for the rest of the answer."""

    def answer_data(self, data: bytes, *, done: bool) -> None:
        """Pass bytes of the answer on."""

    def replica_lost(self, reason: str) -> None:
        """Give up on the replica."""

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        """Learn that the rest of the answer will not come this way."""


def follow(exchange: Interrupted, head: AnswerHead) -> "Continuation | None":
    """Return what follows this stream, or None if nobody could go on with it.

    Nobody goes on with a stream of another gateway: which of its versions made the last tokens is
    in a trailer that is lost with it, and two versions must not be joined.
    """
    if exchange.replica is not None and exchange.replica.labels:
        return None
    if not head.chunked or head.status != 200 or b'"return_token_ids"' not in exchange.body:
        return None
    ask = read_ask(exchange.path, exchange.body)
    return None if ask is None else Continuation(exchange, ask)


class Continuation:
    """Follows one stream and, when its replica is lost, takes the next one's answer for the rest.

    It is the recipient of that answer; the exchange stays in charge of the client and the counts.
    """

    def __init__(self, exchange: Interrupted, ask: Ask) -> None:
        self._exchange = exchange
        self._tail = Tail(ask)
        self._seam: Seam | None = None
        """None also where the whole answer is made anew, because none of it went out."""
        self._request = b""
        self._moves = 0
        self._framing: Framing | None = None
        self._partial = b""

    def passes(self, data: bytes) -> bool:
        """Take bytes on their way to the client; False if they must not get there."""
        if _ERROR in data and self._next_replica() is not None:
            # The engine's core died under its front, which says so and ends the stream.
            self._exchange.replica_lost("the engine reported an error")
            return False
        self._tail.feed(data)
        return True

    @property
    def is_clean(self) -> bool:
        """Whether a whole event could follow what went to the client."""
        self._tail.digest()
        return self._tail.is_clean

    def goes_on(self) -> bool:
        """Go on elsewhere, as one does who has just lost a replica; False if that cannot be."""
        tail = self._tail
        tail.digest()
        try:
            if tail.finished and not tail.broken:
                self._end(Seam(tail))
                return True
            replica = self._next_replica()
            if replica is None:
                return False
            self._prepare(replica)
        except Unjoinable as error:
            logger.info("a stream was not continued: %s", error)
            return False
        self._moves += 1
        self._exchange.go_on_at(replica)
        return True

    def send(self, upstream: Upstream) -> None:
        """Ask for the rest."""
        exchange = self._exchange
        path = exchange.path if self._seam is None else TEXT
        head = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
            path,
            upstream.replica.host_line,
            exchange.forwarded,
            len(self._request),
        )
        upstream.send(self, head, self._request)
        if exchange.client.is_stuck:
            upstream.pause()

    # The next engine's answer.

    def answer_begins(self, head: AnswerHead, *, data_follows: bool) -> None:  # noqa: ARG002  # the port's
        """Take the head of the rest, which the client has already."""
        anew = self._seam is None
        if head.status != 200 or not head.streamed or (anew and not head.chunked):
            self._exchange.replica_lost(f"the next one answered {head.status}")
            return
        self._framing = Framing() if head.chunked else None
        self._exchange.gateway.meters.migrations += 1

    def answer_data(self, data: bytes, *, done: bool) -> None:
        """Turn the engine's events into the client's, or pass an answer made anew on as it is."""
        seam = self._seam
        if seam is None:
            self._exchange.answer_data(data, done=done)
            return
        try:
            rest = self._joined(seam, data)
            if done and not seam.done:
                raise Unjoinable("the next engine's stream ended in the middle")
            if done:
                self._finish(seam, rest)
            elif rest:
                self._tail.digest()
                self._exchange.answer_data(self._tail.framing.wrap(rest), done=False)
        except Unjoinable as error:
            logger.warning("a stream was not continued: %s", error)
            self._moves = _MAX_MOVES
            self._exchange.replica_lost(str(error))

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        """Lose this replica too."""
        self._exchange.upstream_lost(upstream, reason)

    # Below.

    def _next_replica(self) -> Replica | None:
        """Return another replica that serves the version which made the beginning."""
        exchange = self._exchange
        wanted = exchange.wanted
        if (
            wanted is None
            or self._moves >= _MAX_MOVES
            or exchange.version_now() != exchange.version
        ):
            return None
        exact = Wanted(wanted.name, exact=exchange.version)
        lost = exchange.replica
        replica = exchange.gateway.router.pick(exact, exchange.session, lost)
        # What a gateway holds is known as of the last look only: it may have changed since.
        return None if replica is lost or (replica and replica.labels) else replica

    def _prepare(self, replica: Replica) -> None:
        """Make the request for the rest; raise Unjoinable."""
        exchange, tail = self._exchange, self._tail
        wanted = exchange.wanted
        assert wanted is not None
        found = serves(replica, Wanted(wanted.name, exact=exchange.version))
        assert found is not None
        engine_name = found[1]
        self._partial = b""
        if tail.is_empty:
            self._seam = None
            self._request = exchange.body
            if engine_name != exchange.engine_name:
                self._request = bodies.with_model(
                    exchange.body, engine_name, is_named=bool(exchange.engine_name)
                )
            return
        if tail.broken:
            raise Unjoinable(tail.broken)
        self._seam = Seam(tail)
        self._request = self._seam.body(engine_name)

    def _joined(self, seam: Seam, data: bytes) -> bytes:
        """Return what the client gets for bytes of the next engine's."""
        if self._framing is not None:
            data = self._framing.payload(data)
        *events, self._partial = (self._partial + data).split(END)
        return b"".join(map(seam.take, events))

    def _end(self, seam: Seam) -> None:
        """Write what comes after the completion, which the client has to its last token."""
        tail = self._tail
        if tail.done:
            self._finish(seam, b"")
            return
        usage = tail.ask.include_usage or tail.continuous
        self._finish(seam, seam.ending(with_usage=usage and not tail.usage_sent))

    def _finish(self, seam: Seam, payload: bytes) -> None:
        """Write the last of the body, in one piece: the engine's connection may be another's."""
        self._tail.digest()
        data = self._tail.framing.finish(payload)
        self._exchange.usage = seam.usage
        self._exchange.answer_data(data, done=True)
