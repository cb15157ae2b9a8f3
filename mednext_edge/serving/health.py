"""The HTTP endpoint of a service: `/health` for what restarts it, `/metrics` for what watches it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mednext_edge.errors import UsageError
from mednext_edge.serving.metrics import CONTENT_TYPE, Metrics

# A request is read for at most this long, so that a peer that sends nothing holds no thread.
_TIMEOUT_S = 10


class HealthServer:
    """Answers GET until it is closed, on a thread of its own.

    Args:
        host, port: where to listen; port 0 takes a free one.
        metrics: what `/metrics` shows.
        health: -> (whether the service works, what `/health` says about it).

    Raises:
        UsageError: the port is taken or may not be used.
    """

    def __init__(
        self, host: str, port: int, metrics: Metrics, health: Callable[[], tuple[bool, dict[str, Any]]]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT_S
            server_version = "mednext-edge"
            sys_version = ""

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE, metrics.text())
                elif self.path == "/health":
                    good, words = health()
                    self._answer(200 if good else 503, "application/json", json.dumps(words) + "\n")
                else:
                    self._answer(404, "text/plain", "expected /health or /metrics\n")

            def _answer(self, status: int, kind: str, body: str) -> None:
                content = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Requests are not logged; probes come every few seconds."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UsageError(
                f"{host}:{port} cannot be used for health and metrics: {error.strerror}; choose another --http-port"
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
