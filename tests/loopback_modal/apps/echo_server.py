"""A server that says who it is, streams, and writes down its life; standard library only."""

import http.server
import json
import os
import signal
import threading
import time
from pathlib import Path

import modal

app = modal.App("echo", tags={"component": "test"})
STATE = os.environ.get("LOOPBACK_STATE", "/mnt/state")
image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install("numpy==2.0.0")
    .env({"LOOPBACK_STATE": STATE, "GREETING": "hello there"})
)
state = modal.Volume.from_name("echo-state", create_if_missing=True, version=2)
secret = modal.Secret.from_name("echo-secret", required_keys=["ECHO_KEY"])


class Handler(http.server.BaseHTTPRequestHandler):
    """/slow?SECONDS holds a request; /stream sends three chunks, /endless more; else facts."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/slow":
            time.sleep(float(query))
        if path == "/endless":
            self._endless()
            return
        if path == "/stream":
            self._stream()
            return
        facts = {
            "container": os.environ["MODAL_TASK_ID"],
            "path": self.path,
            "key": os.environ["ECHO_KEY"],
            "greeting": os.environ["GREETING"],
            "volume": sorted(path.name for path in Path(STATE).iterdir()),
        }
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"3\r\nab\n\r\n")
                time.sleep(0.05)
        except OSError:
            print("the client has left", flush=True)
            self.close_connection = True

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(3):
            self.wfile.write(b"3\r\nab\n\r\n")
            self.wfile.flush()
            time.sleep(0.2)
        self.wfile.write(b"0\r\n\r\n")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        print(self.path, code, flush=True)


@app.server(
    image=image,
    gpu=["H100", "A100-80GB:2"],
    port=8000,
    cpu=0.5,
    memory=512,
    volumes={STATE: state.read_only()},
    secrets=[secret],
    min_containers=0,
    max_containers=2,
    scaledown_window=int(os.environ.get("ECHO_WINDOW", "60")),
    target_concurrency=1,
    max_concurrency=2,
    startup_timeout=60,
    exit_grace_period=5,
    unauthenticated=True,
    enable_memory_snapshot=True,
)
class Echo:
    """Listens on the port it is told."""

    @modal.enter(snap=True)
    def load(self) -> None:
        """What a snapshot would hold."""
        print("loaded", flush=True)

    @modal.enter(snap=False)
    def start(self) -> None:
        """Listen."""
        port = int(os.environ.get("PALAESTRA_PORT", "8000"))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        print("started", signal.getsignal(signal.SIGTERM) is not None, flush=True)

    @modal.exit()
    def stop(self) -> None:
        """Say goodbye."""
        print("stopped", flush=True)
        self.server.shutdown()
