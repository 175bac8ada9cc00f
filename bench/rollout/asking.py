"""HTTP requests of the kubelet and the bridges: one request per connection."""

from contextlib import closing
from http.client import HTTPConnection, HTTPException

from bench.rollout.numbers import READINESS


def http_status(
    host: str, port: int, path: str, method: str = "GET", timeout: float | None = None
) -> int:
    """Return the status code of an answer.

    Raises:
        OSError: If there is no connection, or no answer in time.
        HTTPException: If the answer is not HTTP.
    """
    with closing(HTTPConnection(host, port, timeout=timeout)) as connection:
        connection.request(method, path)
        return connection.getresponse().status


def is_ready(host: str, timeout: float) -> bool:
    """Probe a gateway as the kubelet does: ready is 200 to 399 within the timeout."""
    try:
        return 200 <= http_status(host, READINESS, "/healthz/ready", timeout=timeout) < 400
    except (OSError, HTTPException):
        return False
