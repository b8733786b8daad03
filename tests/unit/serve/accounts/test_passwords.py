import re

import pytest
from argon2 import extract_parameters
from argon2.low_level import Type

from serve.accounts.passwords import (
    NOBODY,
    bearer,
    hash_key,
    hash_password,
    id_of,
    matches,
    new_key,
)
from serve.errors import ConfigError

KEY = "ak_1a2b3c4d_" + "x" * 43


def test_keys_are_new_each_time() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"ak_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", key) for key in keys)
    assert id_of(new_key("ak_1a2b3c4d")) == "ak_1a2b3c4d"


@pytest.mark.parametrize("text", ["ak_1a2b3c4d", "1a2b3c4d", KEY, f" {KEY}\n"])
def test_an_id_is_read_from_what_people_have(text: str) -> None:
    assert id_of(text) == "ak_1a2b3c4d"


@pytest.mark.parametrize("text", ["", "ak_9", "ak_9a2b3c4", "AK_1A2B3C4D", KEY + "x", "' OR 1=1"])
def test_what_is_no_id_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="expected the id of a key") as caught:
        id_of(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (f"Bearer {KEY}", KEY),
        (f"bearer   {KEY} ", KEY),
        (KEY, None),
        (f"Basic {KEY}", None),
        ("Bearer sk-none", None),
        (f"Bearer {KEY}x", None),
        (f"Bearer {KEY} {KEY}", None),
        ("Bearer ak_1A2B3C4D_" + "x" * 43, None),
        ("Bearer " + "é" * 55, None),
        ("", None),
    ],
)
def test_a_key_is_read_from_a_header(header: str, key: str | None) -> None:
    assert bearer(header.encode()) == key


def test_secrets_are_argon2id() -> None:
    for stored in (hash_key(KEY), hash_password("a long password"), NOBODY):
        assert extract_parameters(stored).type is Type.ID


def test_only_the_secret_itself_matches() -> None:
    stored = hash_key(KEY)
    assert matches(stored, KEY)
    assert not matches(stored, KEY[:-1] + "y")
    assert not matches(stored, "x" * 2_000)
    assert not matches("no hash at all", KEY)


@pytest.mark.parametrize("password", ["twelve chars", "a" * 1024, "päßwörter-😀!", "\ud800" * 12])
def test_passwords_of_any_letters(password: str) -> None:
    stored = hash_password(password)
    assert matches(stored, password)
    assert not matches(stored, password + "!")


@pytest.mark.parametrize("password", ["", "eleven char", "a" * 1025])
def test_passwords_have_a_length(password: str) -> None:
    with pytest.raises(ConfigError, match=f"12 to 1024 characters, this one has {len(password)}"):
        hash_password(password)
