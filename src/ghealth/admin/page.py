"""The status page: an HTML rendering of the snapshot that `/history.json` serves."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import jinja2

REFRESH: Final = 10
"""Seconds after which a browser loads the page again."""

_MINUTE: Final = 60
_DAY: Final = 24


def render(snapshot: Mapping[str, Any], *, refreshes: bool) -> str:
    """Render the page.

    Args:
        snapshot: The object that `/history.json` serves.
        refreshes: Whether a browser loads the page again by itself.
    """
    since = {service["service"]: service["since"] for service in snapshot["services"]}
    refresh = REFRESH if refreshes else None
    return _template().render(snapshot, status_since=since, refresh=refresh)


@functools.cache
def headers() -> Mapping[str, str]:
    """Return headers that limit what a browser may do with the page."""
    style = _source().partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2  # noqa: PLC0415 - 2 MB that only a person looking at the page needs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ago": _ago, "duration": _duration}
    return environment.from_string(_source())


def _source() -> str:
    return resources.files(__package__).joinpath("status.html").read_text("utf-8")


def _ago(time: str, now: str) -> str:
    """Format the time between two moments."""
    return _duration((datetime.fromisoformat(now) - datetime.fromisoformat(time)).total_seconds())


def _duration(seconds: float) -> str:
    """Format a duration in the two largest units that it needs."""
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    if minutes < _MINUTE:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, _MINUTE)
    if hours < 2 * _DAY:
        return f"{hours} h {minutes} min"
    return "{} d {} h".format(*divmod(hours, _DAY))
