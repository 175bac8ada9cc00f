"""Texts from callers, in a form that is safe to show."""

from typing import Final

MAX_USER_AGENT: Final = 80
"""Maximum number of characters of a user agent that are kept."""


def printable(text: str, limit: int = MAX_USER_AGENT) -> str:
    """Render a text from a caller as printable ASCII of bounded length.

    Args:
        text: As the caller sent it.
        limit: Maximum number of characters.
    """
    shown = "".join(char if " " <= char <= "~" else "?" for char in text[:limit])
    return f"{shown[: limit - 1]}…" if len(text) > limit else shown
