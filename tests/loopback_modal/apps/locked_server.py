"""A server behind Modal's own authentication, which fails to start when it is told to."""

import http.server
import os
import threading

import modal

app = modal.App("locked")


@app.server(port=8000, startup_timeout=60, scaledown_window=60, min_containers=1)
class Locked:
    """Answers 404 to everything; nothing to see."""

    @modal.enter()
    def start(self) -> None:
        """Listen."""
        port = int(os.environ["PALAESTRA_PORT"])
        handler = http.server.BaseHTTPRequestHandler
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@app.server(port=8000, startup_timeout=60, min_containers=1)
class Broken:
    """Never comes up."""

    @modal.enter()
    def start(self) -> None:
        """Fail."""
        raise FileNotFoundError("expected a checkpoint, found none")
