"""Stands in for the Hugging Face hub: the part of its API that huggingface_hub uses for us.

Repositories with commits in memory. Files that look large go by LFS, as the hub has them: first the
upload, checked by its digest, then the commit that names it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
Said = tuple[int, dict[str, str], bytes]
LARGE = (".safetensors", ".bin")


@dataclass(slots=True, kw_only=True)
class Repo:
    """One repository: its commits, oldest first, by their hash."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def at(self, revision: str) -> str | None:
        """Return the commit that a branch or hash names."""
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None


def blob(data: bytes) -> str:
    """Return git's own digest of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubDouble:
    """The hub on the loopback interface, for the time of a `with` block.

    `token` is the only one that is taken. `fail` maps a part of a path to a status, `corrupt` names
    files that are sent with other bytes than they have.
    """

    def __init__(self, token: str = "hf_test") -> None:
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.asked: list[str] = []
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, key: str, body: bytes) -> Said:
        """Answer a request."""
        for part, status in self.fail.items():
            if part in path:
                return _json({"error": "as the test said"}, status)
        if key not in {"", self.token}:
            return _refused("Invalid credentials in Authorization header")
        if method == "PUT":
            return self._put(path, body)
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(key, json.loads(body))
        owner, _, rest = path.removeprefix("/api/models").removeprefix("/").partition("/")
        last, slash, rest = rest.partition("/")
        name = f"{owner}/{last.removesuffix('.git')}"
        repo = self.repos.get(name)
        if repo is None or (repo.private and not key):
            return _json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self._of(repo, name, slash + rest, body, key)

    def _of(self, repo: Repo, name: str, path: str, body: bytes, key: str) -> Said:
        if path.startswith("/preupload/"):
            return self._preupload(repo, json.loads(body))
        if path == "/info/lfs/objects/batch":
            return self._batch(json.loads(body))
        if path.startswith("/commit/"):
            return self._commit(repo, name, body) if key else _refused("no token")
        kind, _, rest = path.removeprefix("/").partition("/")
        revision, _, file = rest.partition("/")
        commit = repo.at(revision or "main")
        if commit is None:
            return _json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repo.commits[commit]
        if kind == "tree":
            return _json([_entry(path, data) for path, data in files.items()])
        if kind == "resolve":
            return self._resolve(commit, file, files[file])
        return _json({"id": name, "modelId": name, "sha": commit, "siblings": [], "tags": []})

    def _create(self, key: str, asked: dict[str, Any]) -> Said:
        if not key:
            return _refused("no token")
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if name in self.repos:
            return _json({"error": "exists", "url": f"{self.url}/{name}"}, 409)
        self.repos[name] = Repo(private=asked.get("visibility") == "private")
        return _json({"url": f"{self.url}/{name}", "name": name})

    def _preupload(self, repo: Repo, asked: dict[str, Any]) -> Said:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        return _json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> Said:
        objects = []
        for each in asked["objects"]:
            upload = {"href": f"{self.url}/lfs-storage/{each['oid']}"}
            told = {"oid": each["oid"], "size": each["size"]}
            known = each["oid"] in self.lfs
            objects.append(told if known else {**told, "actions": {"upload": upload}})
        return _json({"transfer": "basic", "objects": objects})

    def _put(self, path: str, body: bytes) -> Said:
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return _json({"error": "other bytes"}, 400)
        self.lfs[oid] = body
        return 200, {}, b""

    def _commit(self, repo: Repo, name: str, body: bytes) -> Said:
        files = dict(repo.commits[commit]) if (commit := repo.at("main")) else {}
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header":
                repo.messages.append(value["summary"])
            elif said["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.lfs[value["oid"]]
        commit = hashlib.sha1(repr([sorted(files.items()), len(repo.commits)]).encode()).hexdigest()
        repo.commits[commit] = files
        url = f"{self.url}/{name}/commit/{commit}"
        return _json({"commitUrl": url, "commitOid": commit, "success": True})

    def _resolve(self, commit: str, path: str, data: bytes) -> Said:
        large = path.endswith(LARGE)
        etag = hashlib.sha256(data).hexdigest() if large else blob(data)
        sent = data[:-1] + bytes([data[-1] ^ 1]) if path in self.corrupt else data
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, sent


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        status, headers, said = self.hub.answer(self.command, path, key, body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(said)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob(data)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return entry


def _json(said: object, status: int = 200, headers: dict[str, str] | None = None) -> Said:
    return (
        status,
        {"Content-Type": "application/json", **(headers or {})},
        json.dumps(said).encode(),
    )


def _refused(why: str) -> Said:
    return _json({"error": why}, 401, {"X-Error-Message": why})
