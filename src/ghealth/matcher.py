"""Sets of status codes, in the syntax of an ALB's matcher."""

import re
from dataclasses import dataclass
from typing import Final

HTTP_CODES: Final = range(200, 500)
"""The codes that an ALB's HTTP matcher accepts (ELBv2 API reference, `Matcher.HttpCode`). 1xx and
5xx are excluded, and must not mean ready here either: a draining gateway answers 503."""

GRPC_CODES: Final = range(100)
"""The codes that an ALB's gRPC matcher accepts (ELBv2 API reference, `Matcher.GrpcCode`)."""

_CODES: Final = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True)
class Matcher:
    """A set of codes.

    Args:
        ranges: First and last code of each range, both included.
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str, codes: range) -> "Matcher":
        """Parse single codes, lists and ranges: `200`, `200,204`, `200-299`.

        Args:
            text: The text.
            codes: The codes that are allowed.

        Raises:
            ValueError: If the text is anything else.
        """
        ranges = []
        for part in text.split(","):
            match = _CODES.fullmatch(part.strip())
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (-1, -1)
            if not codes[0] <= first <= last <= codes[-1]:
                raise ValueError
            ranges.append((first, last))
        return cls(tuple(ranges))

    def __contains__(self, code: int) -> bool:
        return any(first <= code <= last for first, last in self.ranges)

    def __str__(self) -> str:
        return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ranges)
