"""A fake gateway whose readiness can be changed: a small HTTP server in a thread."""

import http.server
import socketserver
import threading
import time
from typing import Final, Self

SLOW: Final = 2.5
"""Seconds before the answer of a slow gateway; less than PROBE_TIMEOUT."""


class Gateway:
    """A gateway on a free port of 127.0.0.1, which listens within a `with` block.

    Attributes:
        ready: Whether it answers 200; otherwise it answers 503.
        delay: Seconds before each answer.
    """

    def __init__(self) -> None:
        self.ready = True
        self.delay = 0.0
        gateway = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(gateway.delay)
                self.send_response(200 if gateway.ready else 503)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a probe that timed out

        self._server = Listener(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """The URL to probe."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
