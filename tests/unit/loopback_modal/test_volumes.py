"""Volumes, secrets, dicts and queues by the real CLI and SDK; what a container has."""

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.loopback_modal import LoopbackModal


def _run(modal: LoopbackModal, program: str) -> str:
    done = modal.python("-c", program)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_files_go_up_and_come_down(modal: LoopbackModal, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "small.txt").write_text("hello")
    (tmp_path / "up" / "large.bin").write_bytes(b"x" * 9_000_000 + b"\0" * 100)
    assert modal.cli("volume", "create", "files", "--version", "2").returncode == 0
    put = modal.cli("volume", "put", "files", str(tmp_path / "up"), "/data")
    assert put.returncode == 0, put.stdout + put.stderr
    assert (modal.volume("files") / "data" / "small.txt").read_text() == "hello"
    listed = modal.cli("volume", "ls", "files", "/data")
    assert "data/small.txt" in listed.stdout
    got = modal.cli("volume", "get", "files", "/data/large.bin", str(tmp_path / "down.bin"))
    assert got.returncode == 0, got.stdout + got.stderr
    assert (tmp_path / "down.bin").read_bytes() == b"x" * 9_000_000 + b"\0" * 100
    assert modal.cli("volume", "rm", "files", "/data/small.txt").returncode == 0
    assert not (modal.volume("files") / "data" / "small.txt").exists()


def test_the_sdk_uploads_reads_copies_and_removes(modal: LoopbackModal) -> None:
    program = """
import io, modal
volume = modal.Volume.from_name("sdk", create_if_missing=True, version=2)
with volume.batch_upload() as batch:
    batch.put_file(io.BytesIO(b"some data"), "/a/b.txt")
print(b"".join(volume.read_file("a/b.txt")).decode())
volume.copy_files(["a/b.txt"], "a/c.txt")
volume.remove_file("a/b.txt")
print([entry.path for entry in volume.listdir("/", recursive=True)])
try:
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"other"), "/a/c.txt")
except FileExistsError as error:
    print(error)
try:
    volume.read_file("none").__next__()
except FileNotFoundError as error:
    print(error)
"""
    assert _run(modal, program).splitlines() == [
        "some data",
        "['a', 'a/c.txt']",
        "/a/c.txt: already exists",
        "none: no such file or directory",
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("modal.Volume.from_name('none').hydrate()", "Volume 'none' not found"),
        ("modal.Secret.from_name('none').hydrate()", "Secret 'none' not found"),
        (
            "modal.Secret.from_name('echo-secret', required_keys=['A', 'ECHO_KEY']).hydrate()",
            "Secret is missing key(s) A",
        ),
    ],
)
def test_what_is_missing_is_named(modal: LoopbackModal, program: str, message: str) -> None:
    done = modal.python("-c", f"import modal; {program}")
    assert done.returncode == 1
    assert message in done.stderr


def test_dicts_and_queues_hold_what_they_are_given(modal: LoopbackModal) -> None:
    program = """
import modal
table = modal.Dict.from_name("table", create_if_missing=True)
table["a"] = 1
table.update({"b": 2})
print(table["a"], table.get("none"), table.len(), "b" in table, table.pop("b"))
queue = modal.Queue.from_name("queue", create_if_missing=True)
queue.put_many([1, 2, 3])
print(queue.len(), queue.get(), queue.get_many(5))
"""
    assert _run(modal, program).splitlines() == ["1 None 2 True 2", "3 1 [2, 3]"]


def test_a_container_has_what_is_shipped_and_no_more(
    modal: LoopbackModal, apps: Path, state: dict[str, str]
) -> None:
    done = modal.cli("deploy", str(apps / "probe.py"), env=state)
    assert done.returncode == 0, done.stdout + done.stderr
    program = """
import modal
def f(name): return modal.Function.from_name("probe", name)
print(list(f("imports").starmap([("envs",), ("evalkit",), ("numpy",), ("envs", True)])))
print(repr(f("version").remote("palaestra")), f("version").remote("modal"))
print(f("reload").remote(False), f("reload").remote(True), sep="|")
"""
    imports, versions, reloads = _run(modal, program).splitlines()
    assert imports == "[True, False, True, False]"
    assert versions == f"'' {version('modal')}"
    held = modal.volume("probe-state").resolve() / "held"
    assert reloads == f"reloaded|there are open files preventing the operation: {held}"


def test_a_fault_is_injected_as_often_as_told(modal: LoopbackModal) -> None:
    modal.fail("VolumeList", message="not now", times=1)
    program = "import modal; modal.Volume.objects.list(); print('listed')"
    refused = modal.python("-c", program)
    assert "not now" in refused.stderr
    assert _run(modal, program) == "listed"
