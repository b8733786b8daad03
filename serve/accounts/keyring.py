"""The keys of this moment, in memory: which header belongs to which account. No I/O, no Argon2.

A header that was proven is known by its digest (0.2 us; a dict keyed by the header itself would
take 0.02 us, and would keep every key in memory for a core dump to show).
"""

from hashlib import blake2b

from serve.accounts.limits import Account, Limits
from serve.accounts.records import Snapshot
from serve.wire import Scope

_MAX_KNOWN = 65_536
_MAX_WRONG = 10_000


class Keyring:
    """What a snapshot says, and which headers were proven against it. Both tables are bounded."""

    def __init__(self) -> None:
        self.anonymous = Account("anonymous", "anonymous", [Scope.ADMIN], Limits())
        self.is_open = False
        self._was_closed = False
        self.accounts: dict[str, Account] = {}
        """By id, without the revoked ones."""
        self.changed_s: dict[str, float] = {}
        """Actor -> when the secret that proves it was made."""
        self._hashes: dict[str, str] = {}
        self._otherwise: Account | None = None
        self._known: dict[bytes, Account] = {}
        self._proven: dict[bytes, str] = {}
        """Digest of a known header -> the hash that it was proven against."""
        self._wrong: dict[bytes, str] = {}
        """Digest of a header that was proven wrong -> the hash that it was proven against."""

    def known(self, header: bytes | None) -> Account | None:
        """Return whose header this is, if it was proven before; anybody's if no key exists."""
        if header is None:
            return self._otherwise
        return self._known.get(blake2b(header).digest(), self._otherwise)

    def hash_of(self, key_id: str) -> str | None:
        """Return what is stored of the key, unless it is revoked or never was."""
        return self._hashes.get(key_id)

    def is_wrong(self, header: bytes) -> bool:
        """Whether it is already proven that this is not a key."""
        return blake2b(header).digest() in self._wrong

    def proven(self, header: bytes, key_id: str, stored: str) -> Account | None:
        """Remember that the header fits `stored`; None if that is no longer the key's hash."""
        if self._hashes.get(key_id) != stored:
            return None
        if len(self._known) >= _MAX_KNOWN:
            oldest = next(iter(self._known))
            del self._known[oldest], self._proven[oldest]
        digest = blake2b(header).digest()
        account = self._known[digest] = self.accounts[key_id]
        self._proven[digest] = stored
        return account

    def disproven(self, header: bytes, stored: str) -> None:
        """Remember that the header does not fit `stored`, so that repeating it costs nothing."""
        if len(self._wrong) >= _MAX_WRONG:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[blake2b(header).digest()] = stored

    def apply(self, snapshot: Snapshot) -> None:
        """Take over what the store says now. Accounts that stay keep their counts."""
        live = {key.id: key for key in snapshot.keys if key.revoked_s is None}
        self._hashes = {key_id: snapshot.hashes[key_id] for key_id in live}
        self.accounts = {
            key.id: self.accounts.get(key.id)
            or Account(
                key.id,
                key.name,
                key.scopes,
                key.limits,
                used_tokens=snapshot.used_tokens.get(key.id, 0),
            )
            for key in live.values()
        }
        self.changed_s = {f"key:{key.id}": key.changed_s for key in live.values()}
        self.changed_s |= {f"user:{user.name}": user.changed_s for user in snapshot.users}
        # Once closed it stays closed: what was guarded must not fall open while it runs.
        self._was_closed |= bool(snapshot.keys or snapshot.users)
        self.is_open = not self._was_closed
        self._otherwise = self.anonymous if self.is_open else None
        self._forget()

    def _forget(self) -> None:
        """Drop what was proven against a hash that is gone."""
        valid = set(self._hashes.values())
        self._wrong = {d: stored for d, stored in self._wrong.items() if stored in valid}
        self._proven = {d: stored for d, stored in self._proven.items() if stored in valid}
        self._known = {d: self._known[d] for d in self._proven}
