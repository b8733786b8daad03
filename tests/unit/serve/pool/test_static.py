import asyncio
from pathlib import Path

import pytest

from serve.errors import ConfigError
from serve.pool.base import Demand
from serve.pool.replicas import ReplicaState
from serve.pool.static import StaticPool
from serve.pool.tls import trusting
from serve.testing import FakeEngine
from tests.unit.serve.pool.fakes import HEALTH, until


def test_upstreams_are_probed_until_they_are_left() -> None:
    async def run() -> None:
        async with FakeEngine() as one, FakeEngine() as two:
            pool = StaticPool([one.root_url, two.root_url], **HEALTH)
            assert [replica.base_url for replica in pool.replicas] == [one.root_url, two.root_url]
            assert [replica.id for replica in pool.replicas] == ["upstream-0", "upstream-1"]
            async with pool:
                assert not any(replica.is_ready for replica in pool.replicas)
                await until(lambda: all(replica.is_ready for replica in pool.replicas))
                assert (pool.desired, pool.can_wake, pool.fatal.done()) == (None, True, False)
                pool.wake()
                assert pool.demand() == Demand()
            await pool.stop()
            await asyncio.sleep(0.03)
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_the_set_is_fixed() -> None:
    with pytest.raises(ConfigError, match="cannot be scaled to 2"):
        asyncio.run(StaticPool(["http://127.0.0.1"]).scale(2))
    assert StaticPool(["http://127.0.0.1"]).replicas[0].port == 80
    assert StaticPool(["http://[::1]:81"]).replicas[0].base_url == "http://[::1]:81"
    assert not StaticPool([]).can_wake


def test_upstreams_over_https() -> None:
    with pytest.raises(ConfigError, match="https://h: there is nothing to believe"):
        StaticPool(["https://h"])
    with pytest.raises(ConfigError, match=r"remote\.ca: cannot read .*no\.pem"):
        trusting(["https://h"], Path("no.pem"))
    assert trusting(["http://h"], Path("no.pem")) is None
    tls = trusting(["http://h", "https://h"], None)
    pool = StaticPool(["https://h", "http://i"], tls=tls, headers=[("authorization", "Bearer k")])
    secure, plain = pool.replicas
    assert (secure.base_url, secure.tls, plain.tls) == ("https://h:443", tls, None)
    assert secure.host_line == b"host: h\r\nauthorization: Bearer k\r\n"
    assert plain.host_line == b"host: i:80\r\nauthorization: Bearer k\r\n"


def test_an_upstream_that_is_replaced_comes_back() -> None:
    async def run() -> None:
        first = FakeEngine()
        await first.start()
        port = int(first.root_url.rpartition(":")[2])
        held: list[str] = []
        async with StaticPool([first.root_url], **HEALTH) as pool:
            replica = pool.replicas[0]
            await until(lambda: replica.is_ready)
            pool.listeners.append(
                lambda changed: held.append(changed.state.value) if not changed.is_ready else None
            )
            await first.stop()
            pool.failed(replica, "reset")
            assert held == ["down"]
            await until(lambda: replica.reason != "reset")
            assert (replica.state, replica in pool.replicas) == (ReplicaState.DOWN, True)
            async with FakeEngine(port=port):
                loop = asyncio.get_running_loop()
                healthy_s = loop.time()
                await until(lambda: replica.is_ready)
                assert loop.time() - healthy_s < 1
        assert held == ["down", "syncing"]

    asyncio.run(run())
