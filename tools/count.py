"""Count lines of code without blank lines, comments and docstrings."""

import ast
import io
import sys
import tokenize
from pathlib import Path


def code_lines(source: str) -> int:
    """Count the lines of a module that have code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docstrings |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped and token.string:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    """Print the lines of each module below the folders in the arguments, and their sum."""
    total = 0
    for folder in sys.argv[1:] or ["src"]:
        for path in sorted(Path(folder).rglob("*.py")):
            count = code_lines(path.read_text())
            total += count
            print(f"{count:6} {path}")
    print(f"{total:6} total")


if __name__ == "__main__":
    main()
