from serve.accounts.sessions import Session, Sessions
from serve.wire import Scope


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def begin(sessions: Sessions, actor: str = "user:ann", since_s: float = 5.0) -> str:
    token, _ = sessions.begin(actor, frozenset({Scope.EVAL}), since_s)
    return token


def test_a_session_is_found_by_its_token() -> None:
    sessions = Sessions(clock=Clock(), lifetime_s=60)
    token, session = sessions.begin("user:ann", frozenset({Scope.EVAL}), 5.0)
    assert sessions.find(token) is session
    assert session == Session(
        actor="user:ann",
        grants=frozenset({Scope.EVAL, Scope.INFER}),
        since_s=5.0,
        expires_s=1_060.0,
    )
    assert session.may(Scope.INFER)
    assert not session.may(Scope.ADMIN)
    assert len(token) == 43
    assert token not in repr(vars(sessions))


def test_unknown_tokens_find_nothing() -> None:
    sessions = Sessions()
    begin(sessions)
    assert [sessions.find(token) for token in ("", "nope", "\ud800")] == [None, None, None]


def test_a_session_ends_by_itself() -> None:
    clock = Clock()
    sessions = Sessions(clock=clock, lifetime_s=60)
    token = begin(sessions)
    clock.now_s += 59
    assert sessions.find(token) is not None
    clock.now_s += 1
    assert sessions.find(token) is None
    assert sessions.count == 0


def test_a_session_is_ended() -> None:
    sessions = Sessions()
    token, other = begin(sessions), begin(sessions)
    sessions.end(token)
    sessions.end(token)
    assert sessions.find(token) is None
    assert sessions.find(other) is not None


def test_sessions_end_with_the_secret_that_began_them() -> None:
    sessions = Sessions()
    same, changed, gone = (begin(sessions, f"user:{name}") for name in ("ann", "bob", "cyd"))
    sessions.keep({"user:ann": 5.0, "user:bob": 6.0, "user:dan": 5.0})
    assert sessions.find(same) is not None
    assert sessions.find(changed) is None
    assert sessions.find(gone) is None


def test_sessions_are_bounded() -> None:
    sessions = Sessions(max_sessions=3)
    tokens = [begin(sessions) for _ in range(10)]
    assert [sessions.find(token) is not None for token in tokens] == [False] * 7 + [True] * 3
