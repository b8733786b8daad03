import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.pool.replicas import Replica, ReplicaState
from serve.pool.routing import Router, Routing, Wanted, choose, serves
from tests.unit.serve.pool.fakes import ready

M = Wanted("m")


@pytest.mark.parametrize(
    ("versions", "wanted", "version"),
    [
        ((1,), M, 1),
        ((1, 7), M, 7),
        ((7, 1), M, 1),
        ((1, 7), Wanted("m", exact=1), 1),
        ((1, 7), Wanted("m", exact=2), None),
        ((1, 7), Wanted("m", minimum=7), 7),
        ((7, 1), Wanted("m", minimum=2), 7),
        ((1, 7), Wanted("m", minimum=8), None),
        ((1, 7), Wanted("m", exact=1, minimum=2), None),
        ((1, 7), Wanted("other"), None),
    ],
    ids=str,
)
def test_which_version_answers(
    versions: tuple[int, ...], wanted: Wanted, version: int | None
) -> None:
    found = serves(ready(1, *versions)[0], wanted)
    assert found == (None if version is None else (version, b'"%d"' % version))


def test_a_replica_without_a_current_version_serves_none_by_the_bare_name() -> None:
    replica = ready(1, 3)[0]
    replica.current.clear()
    assert serves(replica, M) is None
    assert serves(replica, Wanted("m", exact=3)) == (3, b'"3"')


tables = st.lists(
    st.builds(
        lambda state, in_flight, sessions, versions, weight: (
            state,
            in_flight,
            sessions,
            sorted(versions),
            weight,
        ),
        st.sampled_from(ReplicaState),
        st.integers(0, 40),
        st.integers(0, 5),
        st.sets(st.integers(1, 3)),
        st.sampled_from([0.5, 1.0]),
    ),
    max_size=6,
)
wishes = st.builds(
    Wanted,
    st.sampled_from(["m", "other"]),
    minimum=st.integers(0, 4),
    exact=st.none() | st.integers(1, 3),
)


@given(tables, wishes, st.booleans(), st.integers(-1, 5), st.integers(-1, 5))
def test_the_chosen_one_can_serve(
    table: list[tuple[ReplicaState, int, int, list[int], float]],
    wanted: Wanted,
    has_session: bool,
    pinned_at: int,
    avoid_at: int,
) -> None:
    replicas = ready(len(table))
    for replica, (state, in_flight, sessions, versions, weight) in zip(
        replicas, table, strict=True
    ):
        replica.state, replica.weight = state, weight
        replica.in_flight, replica.sessions = in_flight, sessions
        replica.served = {"m": dict.fromkeys(versions, b'"m"')}
        replica.current = {"m": versions[-1]} if versions else {}
    able = [one for one in replicas if one.is_ready and serves(one, wanted) is not None]
    session = b"s" if has_session else None
    pinned = replicas[pinned_at] if has_session and 0 <= pinned_at < len(replicas) else None
    avoid = replicas[avoid_at] if 0 <= avoid_at < len(replicas) else None

    chosen = choose(replicas, wanted, session, pinned, random.Random(0), avoid)

    assert (chosen is None) is (not able)
    if chosen is None:
        return
    assert chosen in able
    assert chosen is not avoid or able == [avoid]
    rest = [one for one in able if one is not avoid] or able
    least = min(one.in_flight for one in rest)
    if pinned in rest and pinned.in_flight - least <= 8:
        assert chosen is pinned
    elif has_session and chosen is not pinned:
        loads = {(one.in_flight + 1) / one.weight for one in rest}
        assert (chosen.in_flight + 1) / chosen.weight == min(loads)


def test_the_version_comes_before_the_session() -> None:
    old, new = ready(2, 1)
    new.served, new.current = {"m": {1: b'"m@1"', 2: b'"m"'}}, {"m": 2}
    router = Router([old, new])
    new.in_flight = 8
    assert router.pick(M, b"s") is old
    assert router.pick(Wanted("m", minimum=2), b"s") is new
    assert router.pick(Wanted("m", exact=3), b"s") is None
    assert router.pick(M, b"s") is new, "what was cached last is on the new one"
    assert router.spills == 0


def test_a_session_stays_until_its_replica_is_saturated() -> None:
    replicas = ready(3)
    router = Router(replicas)
    home = router.pick(M, b"s")
    assert home is not None
    others = [one for one in replicas if one is not home]
    home.in_flight = 8
    assert router.pick(M, b"s") is home
    for one in others:
        one.in_flight = 30
    home.in_flight = 38
    assert router.pick(M, b"s") is home, "it leads by 8 only"
    home.in_flight = 60
    assert router.pick(M, b"s") is home, "it leads by half of what it has"
    home.in_flight = 61
    moved = router.pick(M, b"s")
    assert moved in others
    assert (router.spills, home.sessions, router.sessions) == (1, 0, 1)
    assert moved is not None
    home.in_flight, moved.in_flight = 0, 8
    assert router.pick(M, b"s") is moved, "it does not run back"


def test_without_a_session_the_less_loaded_of_two_is_taken() -> None:
    replicas = ready(4)
    for replica, in_flight in zip(replicas, (0, 10, 20, 30), strict=True):
        replica.in_flight = in_flight
    router = Router(replicas, seed=3)
    picked = Counter(one.id for _ in range(3000) if (one := router.pick(M)))
    assert picked["r3"] == 0, "it loses against everybody"
    # Of the six pairs, three have the idlest, two the next one, one the third.
    for name, share in (("r0", 1 / 2), ("r1", 1 / 3), ("r2", 1 / 6)):
        assert picked[name] / 3000 == pytest.approx(share, abs=0.04)
    assert router.sessions == 0


def test_a_replica_that_is_eased_in_gets_less() -> None:
    one, two = ready(2)
    two.weight = 0.5
    router = Router([one, two])
    for number in range(300):
        picked = router.pick(M, b"%d" % number)
        assert picked is not None
        picked.in_flight += 1
    assert (one.in_flight, two.in_flight) == (200, 100)


@pytest.mark.parametrize("session", [b"s", None])
def test_what_is_to_be_avoided_is_the_last_resort(session: bytes | None) -> None:
    one, two = ready(2)
    router = Router([one, two])
    first = router.pick(M, session)
    second = router.pick(M, session, avoid=first)
    assert {first, second} == {one, two}
    assert router.spills == 0
    two.state = ReplicaState.DOWN
    assert router.pick(M, session, avoid=one) is one


def test_the_table_of_sessions_is_bounded() -> None:
    replicas = ready(2)
    router = Router(replicas, max_sessions=10)
    for number in range(100):
        assert router.pick(M, b"%d" % number) is not None
        assert router.sessions <= 10
    assert sum(replica.sessions for replica in replicas) == 10
    router.finish(b"99")
    router.finish(b"nobody")
    assert router.sessions == sum(replica.sessions for replica in replicas) == 9


def test_policies_have_sessions_of_their_own() -> None:
    replicas = ready(2)
    for replica in replicas:
        replica.served["b"], replica.current["b"] = {1: b'"b"'}, 1
    router = Router(replicas)
    assert router.pick(M, b"s") is not router.pick(Wanted("b"), b"s")
    router.finish(b"s")
    assert (router.sessions, [replica.sessions for replica in replicas]) == (0, [0, 0])


steps = st.lists(
    st.tuples(
        st.sampled_from(["pick", "pick", "pick", "avoid", "finish", "down", "up", "leave"]),
        st.integers(0, 5),
        st.integers(0, 3),
    ),
    max_size=80,
)


@given(steps)
def test_sessions_are_counted_where_they_are(steps: list[tuple[str, int, int]]) -> None:
    replicas = ready(4)
    table = list(replicas)
    router = Router(table, max_sessions=4)
    for what, session, number in steps:
        replica, name = replicas[number], b"%d" % session
        if what == "pick":
            router.pick(M, name)
        elif what == "avoid":
            router.pick(M, name, avoid=replica)
        elif what == "finish":
            router.finish(name)
        elif what == "leave" and replica in table and len(table) > 1:
            replica.state = ReplicaState.STOPPED
            table.remove(replica)
            router.forget(replica)
        elif replica in table:
            replica.state = ReplicaState.DOWN if what == "down" else ReplicaState.READY
        assert all(one.sessions >= 0 for one in replicas)
        assert sum(one.sessions for one in replicas) == router.sessions <= 4


def test_only_the_sessions_of_a_replica_that_leaves_move() -> None:
    replicas = ready(4)
    router = Router(replicas)
    homes = {number: router.pick(M, b"%d" % number) for number in range(400)}
    gone = replicas.pop(1)
    gone.state = ReplicaState.STOPPED
    router.forget(gone)
    moved = {number: router.pick(M, b"%d" % number) for number in range(400)}
    assert {n for n in homes if moved[n] is not homes[n]} == {n for n in homes if homes[n] is gone}
    assert gone.sessions == 0
    assert [replica.sessions for replica in replicas] == pytest.approx([133] * 3, abs=2)


@pytest.mark.parametrize("count", [2, 3, 7, 16])
@pytest.mark.parametrize("stays", [True, False], ids=["in flight", "over at once"])
def test_a_burst_of_new_sessions_spreads(count: int, stays: bool) -> None:
    replicas = ready(count)
    router = Router(replicas)
    picked: Counter[str] = Counter()
    for number in range(1000):
        replica = router.pick(M, b"%d" % number)
        assert replica is not None
        picked[replica.id] += 1
        replica.in_flight += stays
    assert len(picked) == count
    assert max(picked.values()) / (1000 / count) <= 1.2


def test_round_robin_takes_everybody_in_turn_and_pins_nobody() -> None:
    replicas = ready(3)
    router = Router(replicas, routing=Routing.ROUND_ROBIN)
    picked = [router.pick(M, b"same") for _ in range(6)]
    assert picked[:3] == picked[3:]
    assert set(picked) == set(replicas)
    replicas[0].state = ReplicaState.DOWN
    assert {router.pick(M) for _ in range(4)} == set(replicas[1:])
    assert router.sessions == 0


def test_random_takes_anybody_evenly() -> None:
    replicas = ready(4)
    replicas[0].in_flight = 1000
    router = Router(replicas, routing=Routing.RANDOM)
    picked = Counter(one.id for _ in range(4000) if (one := router.pick(M, b"same")))
    assert [picked[replica.id] for replica in replicas] == pytest.approx([1000] * 4, rel=0.15)
    again = Router(replicas, routing=Routing.RANDOM)
    once = Counter(one.id for _ in range(4000) if (one := again.pick(M)))
    assert once == picked, "the same seed draws the same"


@pytest.mark.parametrize("routing", Routing)
def test_any_routing_respects_states_versions_and_who_is_to_be_avoided(routing: Routing) -> None:
    one, two, three = replicas = ready(3, 1)
    two.state = ReplicaState.DRAINING
    three.served, three.current = {"m": {2: b'"m"'}}, {"m": 2}
    router = Router(replicas, routing=routing)
    for session in (b"s", None):
        assert {router.pick(Wanted("m", exact=1), session) for _ in range(9)} == {one}
        assert {router.pick(M, session, avoid=one) for _ in range(9)} == {three}
        assert router.pick(Wanted("m", exact=2), session, avoid=three) is three
        assert router.pick(Wanted("m", exact=3), session) is None
    assert Router([], routing=routing).pick(M) is None


def test_a_replica_says_where_it_is() -> None:
    six = Replica("r", "::1", 80)
    assert (six.base_url, six.host_line) == ("http://[::1]:80", b"host: [::1]:80\r\n")
    six.serve_only("m", 3, 'a "name"')
    assert (six.served, six.current) == ({"m": {3: b'"a \\"name\\""'}}, {"m": 3})
    assert repr(six) == "<Replica r starting in_flight=0>"
