"""One request from its last byte to the last byte of its answer. Knows no sockets but by callback.

admitted -> held while no replica is ready -> sent -> answered. A replica that is lost before a byte
went to the client costs a retry elsewhere; after that, a visible error. Whatever way it ends, the
counts that it took are given back once, in `_leave` and `_finish`.
"""

import asyncio

from serve import wire
from serve.accounts.limits import Account, Denied
from serve.front.migration.continuation import Continuation, follow
from serve.front.plane.elsewhere import is_worth_it
from serve.front.plane.request import Inquiry, Tally, clock
from serve.front.ports import Client, Headers, House
from serve.front.relay import bodies, heads, labels
from serve.front.relay.upstream import Upstream
from serve.pool.health import OURS
from serve.pool.replicas import Replica
from serve.pool.routing import Wanted, serves

_HOLD_BYTES = 1 << 20
"""An answer up to this size is sent when it is whole, so that one cut short can be retried."""
_CONNECT_S = 5.0
_CLIENT_GONE = 499


class Exchange(Inquiry, Tally):
    """A request on the data plane, and everything that it holds."""

    wanted: Wanted | None = None
    replica: Replica | None = None
    done = False
    continuation: Continuation | None = None
    """Follows a stream that another replica could go on with."""
    _event_end = True
    _stale_retried = False
    _turned_away = False
    """Whether a gateway has refused it, so that it went elsewhere."""
    _upstream: Upstream | None = None
    _connecting: asyncio.Task[None] | None = None
    _head: heads.AnswerHead | None = None
    _parts: list[bytes] | None = None

    def __init__(
        self, gateway: House, client: Client, path: bytes, headers: Headers, body: bytes
    ) -> None:
        super().__init__(client, path, headers, body)
        self.gateway = gateway

    # Going out.

    def start(self) -> None:
        """Check who asks for what, and send it on its way."""
        account = self.gateway.auth.known(self.authorization)
        if account is None:
            self._connecting = self.gateway.loop.create_task(self._verify())
        else:
            self._admit(account)

    def dispatch(self, avoid: Replica | None = None) -> None:
        """Send to the replica that routing chooses, or be held or refused if there is none."""
        wanted = self.wanted
        assert wanted is not None
        replica = self.gateway.router.pick(wanted, self.session, avoid)
        if replica is None:
            self.gateway.unserved(self)
            return
        found = serves(replica, wanted)
        assert found is not None
        self.version, engine_name = found
        if replica.labels:
            engine_name = labels.name_for(wanted)
        if engine_name != self.engine_name:
            is_named = bool(self.engine_name)
            self.body = bodies.with_model(self.body, engine_name, is_named=is_named)
            self.engine_name = engine_name
        self._take(replica)
        self._send_over(replica)

    def refuse(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Answer with an error object of our own."""
        if self.done:
            return
        self.status = status
        body = wire.error_body(message, status=status, kind=kind, code=code)
        extra = heads.for_refusal(retry_after_s, self.request_id)
        self.client.write(
            heads.answer(status, body, keep_alive=self.client.keep_alive, extra=extra)
        )
        self._finish()
        self.client.exchange_done()

    def client_gone(self) -> None:
        """Stop everything at once: nobody waits for the answer."""
        if self.done:
            return
        self.status = _CLIENT_GONE
        if self._connecting is not None:
            self._connecting.cancel()
        if self._upstream is not None:
            self._upstream.abort()
        self._leave()
        self.gateway.meters.aborts += 1
        self._finish()

    def go_on_at(self, replica: Replica) -> None:
        """Take a place on another replica, for the rest of an answer that has begun."""
        self._take(replica)
        self.read_at = clock()
        self._connecting = self.gateway.loop.create_task(self._connect(replica))

    def pause(self) -> None:
        """Take no more from the engine: the client does not read."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """Take the answer on."""
        if self._upstream is not None:
            self._upstream.resume()

    def replica_lost(self, reason: str) -> None:
        """Give up on the replica: retry elsewhere if no byte was sent, else end visibly."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._lost(reason, self._drop())

    # Coming back.

    def answer_begins(self, head: heads.AnswerHead, *, data_follows: bool) -> None:
        """Take the head of the answer."""
        self.first_byte_at = self.read_at = clock()
        self.status = head.status
        self.streamed = head.streamed
        self._head = head
        assert self.replica is not None
        if self.replica.labels and self._goes_elsewhere(head, self.replica):
            return
        if head.streamed:
            self.continuation = follow(self, head)
        if head.length is not None and head.length <= _HOLD_BYTES and not head.streamed:
            self._parts = []
        elif not (data_follows or head.streamed):
            # A stream's head waits for its first event: an engine lost before that loses nothing.
            self._write_head(b"")

    def answer_data(self, data: bytes, *, done: bool) -> None:
        """Pass bytes of the answer on, or keep them until it is whole."""
        self.bytes_out += len(data)
        if self._parts is not None:
            if not done:
                self._parts.append(data)
                self.read_at = clock()
                return
            self._upstream = None  # free, maybe another's by now: not ours to pause
            if self._parts:
                data = b"".join((*self._parts, data))
            self.whole = data
            self._write_head(data)
        else:
            if self.continuation is not None and not self.continuation.passes(data):
                return
            self._watch(data)
            if done:
                self._upstream = None
                if self._head is not None and self._head.chunked:
                    data = labels.with_trailer(data, self.version, self.version_now())
            if self.began:
                self.client.write(data)
            else:
                self._write_head(data)
        if done:
            self._leave()
            self._finish()
            self.client.exchange_done()

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        """Try again where that is safe; a reused connection may just have been stale."""
        self._upstream = None
        replica = self.replica
        assert replica is not None
        if not self.began and self._head is None and upstream.reused and not self._stale_retried:
            self._stale_retried = True
            self.gateway.meters.retries += 1
            self.retries += 1
            if replica.is_ready:
                self._connecting = self.gateway.loop.create_task(self._connect(replica))
                return
        else:
            self.gateway.pool.failed(replica, reason)
        self._lost(reason, upstream)

    # Below.

    async def _verify(self) -> None:
        verdict = await self.gateway.auth.verify(self.authorization, self.client.source)
        self._connecting = None
        if isinstance(verdict, Denied):
            self._deny(verdict)
        elif not self.done:
            self._admit(verdict)

    def _deny(self, denied: Denied) -> None:
        why = {"kind": denied.kind, "code": denied.code}
        self.refuse(denied.status, denied.message, **why, retry_after_s=denied.retry_after)

    def _admit(self, account: Account) -> None:
        gateway = self.gateway
        if not account.may(self.scope):
            message = f"this key's scopes do not cover {self.path.decode('latin-1')}"
            self.refuse(403, message, kind="permission_error", code="insufficient_scope")
            return
        denied = account.admit(self.started_at)
        if denied is not None:
            self._deny(denied)
            return
        self.account = account
        try:
            asked = bodies.read(self.body)
            self.wanted = gateway.resolver.wanted(asked.model, self.constraint, self.session)
        except ValueError as error:
            self.refuse(400, str(error))
            return
        self.model = self.wanted.name
        self.engine_name = b'"%b"' % asked.model.encode() if asked.model else b""
        gateway.shadow(self)
        self.dispatch()

    def _send_over(self, replica: Replica) -> None:
        while replica.idle:
            upstream: Upstream = replica.idle.popitem()[0]
            if not upstream.closed:
                self._send(upstream)
                return
        self._connecting = self.gateway.loop.create_task(self._connect(replica))

    async def _connect(self, replica: Replica) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, upstream = await self.gateway.loop.create_connection(
                    lambda: Upstream(replica), replica.host, replica.port, ssl=replica.tls
                )
        except OSError as error:  # TimeoutError is one
            self._connecting = None
            reason = f"cannot connect: {str(error) or type(error).__name__}"
            if error.errno not in OURS:
                self.gateway.pool.failed(replica, reason)
            if self.replica is replica:
                self._lost(reason)
            return
        self._connecting = None
        if self.done or self.replica is not replica:
            upstream.abort()
        elif self.began:
            assert self.continuation is not None
            self._upstream = upstream
            self.continuation.send(upstream)
        else:
            self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        self._upstream = upstream
        replica, forwarded = upstream.replica, self.forwarded
        if replica.labels:
            assert self.wanted is not None
            forwarded += labels.lines_for(replica, self.wanted, self.session)
        head = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
            self.path,
            replica.host_line,
            forwarded,
            len(self.body),
        )
        upstream.send(self, head, self.body)

    def _drop(self) -> Upstream | None:
        """Let go of the connection, and of the answer on it."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        return upstream

    def _take(self, replica: Replica) -> None:
        self.replica = replica
        replica.in_flight += 1
        replica.requests += 1
        replica.active.add(self)

    def _leave(self) -> None:
        """Give back the place on the replica, if one is held."""
        replica = self.replica
        if replica is not None and self in replica.active:
            replica.active.discard(self)
            replica.in_flight -= 1

    def _lost(self, reason: str, upstream: Upstream | None = None) -> None:
        """Go elsewhere, once, or end so that everybody can see it."""
        replica = self.replica
        self._leave()
        self.gateway.meters.upstream_failures += 1
        if self.began:
            if not (self.continuation and self.continuation.goes_on()):
                self._end_visibly(reason, upstream)
            return
        self.streamed = False  # nothing of that answer was used: it costs nobody tokens
        if self.retries - self._stale_retried - self._turned_away >= 1:
            message = "the replica was lost before it answered, and so was the next one"
            self.refuse(502, message, kind="api_error", code="replica_lost", retry_after_s=1)
        else:
            self._begin_anew(replica)

    def _begin_anew(self, avoid: Replica | None) -> None:
        """Ask again, somewhere else if that can be: no byte went to the client."""
        self._head = None
        self._parts = None
        self.continuation = None
        self.streamed = False
        self.first_byte_at = 0.0
        self.bytes_out = 0
        self.retries += 1
        self.gateway.meters.retries += 1
        self.dispatch(avoid=avoid)

    def _goes_elsewhere(self, head: heads.AnswerHead, replica: Replica) -> bool:
        """Ask another gateway, once, where this one cannot answer now."""
        self.version = labels.version_in(head, self.version)
        if self._turned_away or head.status not in labels.TURNS_AWAY:
            return False
        assert self.wanted is not None
        if not is_worth_it(self.gateway, head.status, replica, self.wanted, self.session):
            return False
        self._turned_away = True
        self._drop()
        self._leave()
        self._begin_anew(replica)
        return True

    def _end_visibly(self, reason: str, upstream: Upstream | None) -> None:
        """End an answer that has begun: with an error event where one fits, else by a cut."""
        if self.continuation is not None:
            is_clean = self.continuation.is_clean
        else:
            whole_events = self.streamed and self._event_end
            is_clean = whole_events and upstream is not None and upstream.at_boundary
        if is_clean:
            self.client.keep_alive = False
            self.client.write(heads.last_event(reason))
        self.status = 502
        self._finish()
        if is_clean:
            self.client.exchange_done()
        else:
            self.client.cut()

    def _write_head(self, body: bytes) -> None:
        head = self._head
        assert head is not None
        replica = self.replica
        assert replica is not None
        lines = head.lines
        labels.label(head, replica, self.version, self.version_now())
        if head.length is None and not head.chunked:
            self.client.keep_alive = False
        if not self.client.keep_alive:
            lines.append(b"connection: close")
        lines.append(b"\r\n")
        self.began = True
        self.client.write(b"\r\n".join(lines) + body)

    def version_now(self) -> int:
        """Return the version that makes the tokens now."""
        replica, wanted = self.replica, self.wanted
        assert replica is not None
        assert wanted is not None
        return labels.version_now(replica, wanted, self.version)

    def _watch(self, data: bytes) -> None:
        """Count the events and keep the usage that passes by."""
        if not data:
            return
        self.read_at = clock()
        self.events += data.count(b"data: ")
        self._event_end = data.endswith((b"\n\n\r\n", b"\r\n\r\n\r\n", b"\n\n"))
        if b'"usage"' in data and (found := bodies.usage(data)) and found[1]:
            self.usage = found  # a usage that a read cut in two has no completion: an estimate then

    def _finish(self) -> None:
        """Settle the accounts, exactly once."""
        self.done = True
        self.gateway.finished(self)
