"""From the model that a request names to the policy and the versions that may answer. Pure.

Aliases and canary splits are rules that may change at any moment; `rules` is replaced whole.
"""

import zlib
from collections.abc import Callable, Collection

from serve.pool.routing import Wanted
from serve.settings import RoutingRules
from serve.wire import BadReference, PolicyRef, VersionConstraint

_MAX_REMEMBERED = 4096
_MAX_CONSTRAINT_BYTES = 64
_PARTS = 1 << 16


class Resolver:
    """Reads model names and constraints. `names` gives the policies that exist."""

    def __init__(self, rules: RoutingRules, names: Callable[[], Collection[str]]) -> None:
        self._rules = rules
        self._names = names
        self._anonymous = 0
        self._known: dict[tuple[str | None, bytes | None], Wanted] = {}

    @property
    def rules(self) -> RoutingRules:
        """The aliases, canaries and shadows in force."""
        return self._rules

    @rules.setter
    def rules(self, rules: RoutingRules) -> None:
        self._rules = rules
        self._known = {}

    def wanted(self, model: str | None, constraint: bytes | None, session: bytes | None) -> Wanted:
        """Return what routing looks for; raise BadReference (a ValueError) for what makes none."""
        known = self._known.get((model, constraint))
        if known is None:
            known = self._read(model, constraint)
        if self._rules.canary and known.exact is None and constraint is None:
            rule = self._rules.canary.get(known.name)
            if rule is not None and self._draw(b"canary", session) < rule.share * _PARTS:
                return Wanted(known.name, exact=rule.version)
        return known

    def shadow_version(self, name: str, session: bytes | None) -> int | None:
        """Return the version that gets a copy of this request, or None."""
        rule = self._rules.shadow.get(name)
        if rule is None or self._draw(b"shadow", session) >= rule.share * _PARTS:
            return None
        return rule.version

    def _read(self, model: str | None, constraint: bytes | None) -> Wanted:
        reference = self._reference(model)
        exact, minimum = reference.version, 0
        if constraint is not None:
            if len(constraint) > _MAX_CONSTRAINT_BYTES:
                raise BadReference("expected >=VERSION or ==VERSION")
            bound = VersionConstraint.parse(constraint.decode("latin-1"))
            if bound.exact is not None and exact not in (None, bound.exact):
                raise BadReference(f"{reference} cannot also be version {bound.exact}")
            exact = bound.exact if exact is None else exact
            minimum = bound.minimum
        found = Wanted(reference.name, minimum=minimum, exact=exact)
        if model:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[model, constraint] = found
        return found

    def _reference(self, model: str | None) -> PolicyRef:
        names = self._names()
        if not model:
            if len(names) != 1:
                raise BadReference("`model` is missing: name one of " + ", ".join(sorted(names)))
            return PolicyRef(next(iter(names)))
        if model in names:
            return PolicyRef(model)
        return PolicyRef.parse(self._rules.aliases.get(model, model))

    def _draw(self, purpose: bytes, session: bytes | None) -> int:
        """Return a number below 65,536: the same for the same session, spread evenly over them."""
        if session is None:
            self._anonymous += 1
            session = b"%d" % self._anonymous
        return zlib.crc32(purpose + session) & (_PARTS - 1)
