"""Secrets: how keys look, and Argon2id over keys and passwords. The one door to argon2.

Hashing takes tens of milliseconds by intent: never on an event loop.
"""

import re
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from serve.errors import ConfigError
from serve.wire import KEY_PREFIX

MIN_PASSWORD_LENGTH = 12
_MAX_PASSWORD_LENGTH = 1024

_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(ak_[0-9a-f]{8}_[A-Za-z0-9_-]{43})")
_KEY_ID = re.compile(r"(?:ak_)?([0-9a-f]{8})(?:_[A-Za-z0-9_-]{43})?")

_FOR_KEYS = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
"""OWASP's least: a key has 256 random bits and needs no more; 20 ms here, 19 MiB at a time."""
_FOR_PASSWORDS = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)
"""RFC 9106's second choice, because people choose worse secrets than machines."""

NOBODY = (
    "$argon2id$v=19$m=65536,t=3,p=4$CLorzaAPmA6gSp8mQ1EVvg"
    "$gFqVVpoM1fuL85gUINlZGHd4BAr3tuW+EktdeRP5RkY"
)
"""The hash of a forgotten random secret: checking it takes as long as checking a password."""


def new_key(key_id: str | None = None) -> str:
    """Return a new key, of a new id or of the given one."""
    key_id = key_id or KEY_PREFIX + secrets.token_hex(4)
    return f"{key_id}_{secrets.token_urlsafe(32)}"


def id_of(key: str) -> str:
    """Return the id with which a key begins; also of the id itself, with or without `ak_`.

    Raises ConfigError for what is no key and no id.
    """
    found = _KEY_ID.fullmatch(key.strip())
    if found is None:
        raise ConfigError("expected the id of a key, such as ak_1a2b3c4d")
    return KEY_PREFIX + found[1]


def bearer(header: bytes) -> str | None:
    """Return the key in the value of an Authorization header, if it looks like one of ours."""
    found = _BEARER.fullmatch(header.strip())
    return None if found is None else found[1].decode()


def hash_key(key: str) -> str:
    """Return what may be stored of a key."""
    return _FOR_KEYS.hash(key)


def hash_password(password: str) -> str:
    """Return what may be stored of a password; raise ConfigError for one that is too short."""
    if not MIN_PASSWORD_LENGTH <= len(password) <= _MAX_PASSWORD_LENGTH:
        raise ConfigError(
            f"a password has {MIN_PASSWORD_LENGTH} to {_MAX_PASSWORD_LENGTH} characters, "
            f"this one has {len(password)}"
        )
    return _FOR_PASSWORDS.hash(_bytes(password))


def matches(stored: str, secret: str) -> bool:
    """Whether `stored` is the hash of this key or password."""
    if len(secret) > _MAX_PASSWORD_LENGTH:
        return False
    try:
        return _FOR_PASSWORDS.verify(stored, _bytes(secret))
    except (VerificationError, InvalidHashError):
        return False


def _bytes(secret: str) -> bytes:
    """Encode also what is no valid Unicode: half an emoji in a JSON string is a wrong password."""
    return secret.encode("utf-8", "surrogatepass")
