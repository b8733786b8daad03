"""The command `policies` on a state folder, and against a gateway that is a process of its own."""

import argparse
import json
import re
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serve import policies_cli

VERSION = {
    "name": "p",
    "version": 2,
    "kind": "full",
    "created": 0.0,
    "parent": 1,
    "digest": "d",
    "size_bytes": 1_500_000,
    "metrics": {"won": 0.5},
    "path": None,
    "live_on": ["r0", "r1"],
}

PRUNED = {
    "versions": [2],
    "kept": [{"version": 3, "reason": "r0 serves it"}],
    "freed_bytes": 1_500_000,
}


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    policies_cli.add_parser(parser.add_subparsers(dest="command"))
    return policies_cli.run(parser.parse_args(["policies", *argv]))


def checkpoint(folder: Path, seed: int) -> str:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes([seed] * 4)
    (folder / "model.safetensors").write_bytes(data)
    return str(folder)


def test_a_policys_life_on_a_state_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state", str(tmp_path / "state"))
    first, second = checkpoint(tmp_path / "a", 1), checkpoint(tmp_path / "b", 2)
    assert run("publish", "p", first, *state) == 0
    assert run("publish", "p@5", second, "--metric", "won=0.5", "--metric", "n=3", *state) == 0
    assert run("rollback", "p@1", *state) == 0
    assert capsys.readouterr().out == "p@1\np@5\np@1\n"
    assert run("list", *state) == 0
    assert re.sub(r" +", " ", capsys.readouterr().out) == "p means p@1, of 2\n"
    assert run("show", "p", *state) == 0
    old, new = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"p@1 +full \S+ \S+Z +0\.0 MB  latest", old)
    assert re.fullmatch(r"p@5 +full \S+ \S+Z +0\.0 MB  won=0\.5  n=3", new)
    assert run("show", "p@5", *state) == 0
    told = capsys.readouterr().out
    assert f"source   {second}" in told
    assert "parent   1" in told


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (("show", "nobody"), 1, "no policy 'nobody'"),
        (("show", "nobody@3"), 1, "no version 3 of 'nobody'; there are: none"),
        (("publish", "p", "nowhere"), 1, "nowhere is not a folder"),
        (("rollback", "p"), 2, "expected NAME@VERSION, got 'p'"),
        (("show", "p@x"), 2, "expected NAME or NAME@VERSION"),
    ],
)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    assert run(*argv, "--state", str(tmp_path)) == code
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["won", "=1", "won=much"])
def test_a_metric_is_a_name_and_a_number(tmp_path: Path, metric: str) -> None:
    with pytest.raises(SystemExit):
        run("publish", "p", "x", "--metric", metric, "--state", str(tmp_path))


class Gateway(BaseHTTPRequestHandler):
    """Answers every question about policies, if the key is right."""

    asked: list[tuple[str, object]]

    def do_GET(self) -> None:
        self.answer({"policies": [{"name": "p", "latest": 2, "versions": [VERSION]}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        self.answer(PRUNED if self.path.endswith("prune") else VERSION)

    def answer(self, value: object) -> None:
        allowed = self.headers["Authorization"] == "Bearer secret"
        data = json.dumps(value if allowed else {"error": {"message": "no such key"}}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@pytest.fixture
def gateway() -> Iterator[str]:
    Gateway.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_same_at_a_gateway(
    gateway: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADMIN", "secret")
    where = ("--url", gateway, "--api-key-env", "ADMIN")
    assert run("publish", "p", str(tmp_path / "w"), "--swap", "keep", *where) == 0
    assert run("rollback", "p@2", *where) == 0
    assert [path for path, _ in Gateway.asked] == ["/admin/publish", "/admin/rollback"]
    body = Gateway.asked[0][1]
    assert isinstance(body, dict)
    assert (body["path"], body["swap"]) == (str(tmp_path / "w"), "keep")
    assert run("list", *where) == 0
    assert run("show", "p", *where) == 0
    assert run("show", "q", *where) == 1
    said = capsys.readouterr()
    assert re.sub(r" +", " ", said.out).splitlines() == [
        *("p@2", "p@2", "p means p@2, of 1"),
        "p@2 full 1970-01-01 00:00:00Z 1.5 MB latest won=0.5 live on r0, r1",
    ]
    assert "the gateway has no q" in said.err
    assert run("list", "--url", gateway) == 1
    assert "401: no such key" in capsys.readouterr().err
    assert run("list", *where[:2], "--api-key-env", "NOT_SET_ANYWHERE") == 2


def test_probes_come_from_a_file_and_old_versions_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state", str(tmp_path / "state"))
    probes = tmp_path / "probes"
    probes.write_text('{"tokens": [[1, 2]], "logprobs": [[-0.5]], "tolerance": 0.01}')
    for seed in range(4):
        told = ("--probes", str(probes)) if seed == 3 else ()
        assert run("publish", "p", checkpoint(tmp_path / str(seed), seed), *told, *state) == 0
    capsys.readouterr()
    assert run("prune", "p", "--versions", "2-4,1,9", *state) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("p@1 pruned", "p@2 pruned", "p@3 pruned"),
        *("p@4 stays: 'p' means it", "p@9 stays: there is no such version", "0.0 MB freed"),
    ]
    assert run("show", "p", *state) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["pruned"] * 3 + ["probed"]
    probes.write_text("{}")
    assert run("publish", "p", str(tmp_path / "0"), "--probes", str(probes), *state) == 2
    assert "expected tokens, logprobs and tolerance" in capsys.readouterr().err
    assert run("publish", "p", str(tmp_path / "0"), "--probes", "nowhere", *state) == 2


@pytest.mark.parametrize("versions", ["", "a", "1-", "-3", "1,,2"])
def test_versions_to_prune_are_numbers_and_ranges(versions: str) -> None:
    with pytest.raises(SystemExit):
        run("prune", "p", f"--versions={versions}")


def test_prune_at_a_gateway(
    gateway: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN", "secret")
    where = ("--url", gateway, "--api-key-env", "ADMIN")
    assert run("prune", "p", "--versions", "2-3", *where) == 0
    assert Gateway.asked == [("/admin/policies/prune", {"name": "p", "versions": [2, 3]})]
    assert capsys.readouterr().out == "p@2 pruned\np@3 stays: r0 serves it\n1.5 MB freed\n"
