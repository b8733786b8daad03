"""The gateway's own decisions that need no connection: who asks, over what, and from where."""

from __future__ import annotations

import pytest

from serve.front.gateway import Gateway, Parts
from serve.front.plane.exchange import Exchange
from serve.front.plane.shadow import Nobody
from serve.front.relay.naming import Resolver
from serve.front.sight.meters import Meters
from serve.pool.replicas import Replica
from serve.pool.routing import Router, Wanted
from serve.pool.static import StaticPool
from serve.settings import FrontConfig, RoutingRules


def gateway(host: str = "0.0.0.0", *proxies: str) -> Gateway:
    pool = StaticPool(())
    made = Gateway(
        Parts(
            pool=pool,
            router=Router(pool.replicas),
            resolver=Resolver(RoutingRules(), lambda: ()),
            auth=None,  # type: ignore[arg-type]  # nobody is asked
            ledger=None,  # type: ignore[arg-type]
            meters=Meters(),
            limits=FrontConfig(trusted_proxies=proxies),
        ),
        host=host,
        port=0,
    )
    made.expects_https = host == "0.0.0.0"
    return made


HTTPS = (b"x-forwarded-proto", b"https")


@pytest.mark.parametrize(
    ("source", "headers", "secure"),
    [
        ("10.0.0.9", [HTTPS], True),
        ("10.0.0.9", [(b"x-forwarded-proto", b"http")], False),
        ("10.0.0.9", [], False),
        ("10.0.0.7", [HTTPS], False),
        ("127.0.0.1", [], True),
        ("127.0.0.1", [(b"x-forwarded-for", b"8.8.8.8")], False),
    ],
    ids=["proxied", "proxied http", "no word", "untrusted", "loopback", "someone's proxy"],
)
def test_beyond_loopback_only_https_is_secure(
    source: str, headers: list[tuple[bytes, bytes]], secure: bool
) -> None:
    assert gateway("0.0.0.0", "10.0.0.9").is_secure(source, headers) is secure


def test_on_loopback_everything_is_secure() -> None:
    assert gateway("127.0.0.1").is_secure("127.0.0.1", [(b"x-forwarded-for", b"8.8.8.8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.9", b"1.2.3.4", "1.2.3.4"),
        ("10.0.0.9", b"6.6.6.6, 1.2.3.4, 10.0.0.8", "1.2.3.4"),
        ("10.0.0.9", b"10.0.0.8", "10.0.0.9"),
        ("10.0.0.9", b"", "10.0.0.9"),
        ("1.1.1.1", b"1.2.3.4", "1.1.1.1"),
    ],
)
def test_behind_proxies_the_client_is_the_last_that_is_none(
    peer: str, forwarded: bytes, client: str
) -> None:
    headers = [(b"x-forwarded-for", forwarded)] if forwarded else []
    assert gateway("0.0.0.0", "10.0.0.9", "10.0.0.8").client_of(peer, headers) == client


def test_an_adapter_that_leaves_finishes_what_it_has_under_its_own_name() -> None:
    replica = Replica("r0", "127.0.0.1", 1)
    replica.served, replica.current = {"p": {1: b"", 3: b""}}, {"p": 3}
    replica.leaving = {2: set[object]()}
    exchange = Exchange(gateway("127.0.0.1"), Nobody(), b"/v1/completions", [], b"{}")
    exchange.replica, exchange.wanted = replica, Wanted("p")
    ends = []
    for exchange.version in (1, 2, 3, 4):
        ends.append(exchange.version_now())
    assert ends == [1, 2, 3, 3]
