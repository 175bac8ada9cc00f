"""Finds words that make this project's prose hard to read; `make lint` runs it.

It reads Markdown without code, docstrings, comments, and the messages of the program.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent

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

_HABIT: Final = re.compile(
    "|".join(rf"\b(?P<h{number}>{habit})\b" for number, habit in enumerate(HABITS)), re.IGNORECASE
)
_COMMENTED: Final = ("*.yaml", "*.yml", "*.toml", "Makefile", "Dockerfile", ".ci/*", "tools/find-*")


def prose(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file, with the number of its first line.

    Args:
        path: Its path in the repository.
        text: Its content.
    """
    if path.endswith(".md"):
        blank = re.compile(
            r"^```.*?^```$|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL | re.MULTILINE
        )
        text = blank.sub(lambda found: "\n" * found[0].count("\n"), text)
        yield from enumerate(text.splitlines(), 1)
    elif path.endswith(".py"):
        yield from _python(text, messages=path.startswith("src/"))
    elif _matches(path, _COMMENTED):
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
    advice = list(HABITS.values())
    for number, line in prose(path, text):
        for match in _HABIT.finditer(line):
            which = next(name for name, words in match.groupdict().items() if words)
            yield number, match[0], advice[int(which.removeprefix("h"))]


def _files() -> Iterator[tuple[str, str]]:
    """Yield the path and the content of each text file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True)  # noqa: S607
    for path in listed.stdout.decode().splitlines():
        if (ROOT / path).is_file() and (ROOT / path).suffix not in (".png", ".svg"):
            yield path, (ROOT / path).read_text(errors="replace")


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def main() -> int:
    """Print what is found; 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", help="files to check, such as 'src/*'")
    arguments = parser.parse_args()
    lines = [
        f"{path}:{number}: {words!r}: {plain}"
        for path, text in _files()
        if not arguments.patterns or _matches(path, arguments.patterns)
        for number, words, plain in found(path, text)
    ]
    print(*lines, sep="\n", end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
