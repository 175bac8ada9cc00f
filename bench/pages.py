"""Generated parts of pages: tables in Markdown, between comments that name them."""

from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = (f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|" for row in (head, *rows))
    return "\n".join((next(lines), "|---" * len(head) + "|", *lines))


def filled(text: str, maker: str, parts: Mapping[str, str]) -> str:
    """Fill in parts of a page.

    Args:
        text: The page.
        maker: The command that makes them.
        parts: By name.
    """
    for name, made in parts.items():
        begin, end = f"<!-- {name}: made by `{maker}` -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return text
