"""Probes lie beside the version that they are of, whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.errors import BadCheckpoint, VersionConflict
from serve.policies.store import MANIFEST, PolicyStore
from serve.wire import Probes

Make = Callable[..., Path]

PROBES = Probes(tokens=((1, 2, 3), (4, 5)), logprobs=((-0.1, -2.5), (-1e-9,)), tolerance=1e-3)
OTHER = Probes(tokens=((1, 2),), logprobs=((-0.1,),), tolerance=1e-3)


def test_they_are_kept_as_they_came(store: PolicyStore, make_full: Make) -> None:
    plain = store.publish("p", make_full("a", 1))
    probed = store.publish("p", make_full("b", 2), probes=PROBES)
    assert (store.probes(plain), store.probes(probed)) == (None, PROBES)
    file = store.root / "p" / "000002" / "probes.json"
    assert json.loads(file.read_text())["format"] == "probes/1"
    again = PolicyStore(store.root)
    assert again.probes(again.info("p", 2)) == PROBES
    assert "probes.json" not in {each.name for each in probed.files}


def test_a_manifest_from_before_has_none(store: PolicyStore, make_full: Make) -> None:
    store.publish("p", make_full("a", 1))
    file = store.root / "p" / "000001" / MANIFEST
    values = json.loads(file.read_text())
    del values["probes"]
    file.write_text(json.dumps(values))
    assert PolicyStore(store.root).info("p", 1).probes == ""


def test_the_same_weights_with_other_probes_are_another_version(
    store: PolicyStore, make_full: Make
) -> None:
    folder = make_full("a", 1)
    versions = [
        store.publish("p", folder, probes=probes).version
        for probes in (None, PROBES, PROBES, None, OTHER)
    ]
    assert versions == [1, 2, 2, 2, 3]
    with pytest.raises(VersionConflict, match="exists with other bytes or probes"):
        store.publish("p", folder, version=3, probes=PROBES)


def test_a_version_that_is_published_again_is_what_it_was(
    store: PolicyStore, make_full: Make
) -> None:
    first = store.publish("p", make_full("a", 1), probes=PROBES)
    store.publish("p", make_full("b", 2))
    assert first.path is not None
    again = store.publish("p", first.path, probes=OTHER)
    assert (again.version, again.digest, store.probes(again)) == (3, first.digest, OTHER)
    store.verify(again)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace("-2.5", "-2.6"), "has been changed since it was published"),
        (lambda text: text[:-3], "has been changed since it was published"),
        (None, "cannot read"),
    ],
)
def test_damage_is_seen(
    store: PolicyStore, make_full: Make, damage: Callable[[str], str] | None, reason: str
) -> None:
    info = store.publish("p", make_full("a", 1), probes=PROBES)
    file = store.root / "p" / "000001" / "probes.json"
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text()))
    with pytest.raises(BadCheckpoint, match=reason):
        store.probes(info)
