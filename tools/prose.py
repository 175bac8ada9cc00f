"""Finds words that make this project's prose hard to read; `make lint` runs it.

It reads Markdown without code, docstrings, comments, and the messages of the program.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HABITS: Final = {
    r"(?<!there )is no\b(?! longer)": "is not",
    r"who(?:ever|m)": "the client that …, any caller",
    r"(?:no|some)body": "no client, no caller, nothing; a person",
    r"be it": "leave it out",
    r"of (?:its|their|your|one's|our|ghealth's) own": "its own …, separate",
    r"ha(?:ve|s) to\b(?! be\b)": "must",
    r"to know": "to find out, that is needed",
    r"strangers?": "untrusted client",
    r"patien(?:ce|t)": "timeout",
    r"t(?:old|ells?)": "report, return, show",
    r"sa(?:ys?|id|ying)": "report, answer, log",
    r"heeds?": "handle",
    r"lets? go": "close, release",
    r"(?:by|in) turns": "alternately",
    r"make(?:s|) of": "conclude",
    r"operators' (?:port|page)": "admin port, status page",
    r"observers?": "sink",
    r"mend(?:s|ed)?": "fix",
    r"anew": "again",
    r"go(?:es)? on\b(?! the )": "continue, still",
    r"(?:falls?|falling|fell|fallen) (?:ill|sick)": "fail",
    r"t(?:akes?|aken|ook) (?:\w+ ){1,4}for (?:healthy|well|none)": "count as",
    r"(?:came|come|comes|becomes?|became) of": "the result of",
}
"""What to avoid, and plain words instead."""

_HABIT: Final = re.compile("|".join(rf"\b({habit})\b" for habit in HABITS), re.IGNORECASE)
_COMMENTED: Final = r".*\.(yaml|yml|toml)|Makefile|Dockerfile|\.ci/.*|tools/find-.*"
_NOT_PROSE: Final = r"^```.*?^```$|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)"


def prose(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file, with the number of its first line.

    Args:
        path: Its path in the repository.
        text: Its content.
    """
    if path.endswith(".md"):
        blank = re.compile(_NOT_PROSE, re.DOTALL | re.MULTILINE)
        text = blank.sub(lambda found: "\n" * found[0].count("\n"), text)
        yield from enumerate(text.splitlines(), 1)
    elif path.endswith(".py"):
        yield from _python(text, messages=path.startswith("src/"))
    elif re.fullmatch(_COMMENTED, path):
        for number, line in enumerate(text.splitlines(), 1):
            before, mark, comment = line.partition("#")
            if mark and not before.rstrip().endswith(("'", '"')):
                yield number, comment


def _python(text: str, *, messages: bool) -> Iterator[tuple[int, str]]:
    """Yield comments and docstrings without arguments' names, and with `messages` other texts."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    nodes = list(ast.walk(ast.parse(text)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            shown = re.sub(r"`[^`]*`|^ +\w+:", "", node.value, flags=re.MULTILINE)
            if id(node) in docstrings:
                yield from enumerate(shown.splitlines(), node.lineno)
            elif messages and " " in shown:
                yield node.lineno, shown


def found(path: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Yield each habit in a file: line, words, and plain words instead.

    Args:
        path: Its path in the repository.
        text: Its content.
    """
    plain = ["", *HABITS.values()]
    for number, line in prose(path, text):
        for match in _HABIT.finditer(line):
            yield number, match[0], plain[match.lastindex or 0]


def main() -> int:
    """Print what is found in the repository; 1 if there is any."""
    listed = subprocess.check_output(["git", "ls-files"], text=True)  # noqa: S607
    lines = [
        f"{path}:{number}: {words!r}: {plain}"
        for path in listed.splitlines()
        if Path(path).is_file()
        for number, words, plain in found(path, Path(path).read_text(errors="replace"))
    ]
    print(*lines, sep="\n", end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
