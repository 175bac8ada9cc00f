"""The codes that mean success, in the syntax of an ALB's matcher."""

import re
from dataclasses import dataclass
from typing import Final

HTTP_CODES: Final = range(200, 500)
"""What an ALB's matcher for HTTP takes (ELBv2 API reference, `Matcher.HttpCode`): not 5xx, and that
must not pass a probe either, since a draining gateway answers 503."""

GRPC_CODES: Final = range(100)
"""What an ALB's matcher for gRPC takes (ELBv2 API reference, `Matcher.GrpcCode`)."""

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
        """Read single codes, lists and ranges: `200`, `200,204`, `200-299`.

        Args:
            text: What the operator wrote.
            codes: Those that may be named.

        Raises:
            ValueError: If the text is anything else.
        """
        ranges = []
        for part in text.split(","):
            match = _CODES.fullmatch(part.strip())
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (-1, -1)
            if not codes[0] <= first <= last <= codes[-1]:
                raise ValueError(text)
            ranges.append((first, last))
        return cls(tuple(ranges))

    def __contains__(self, code: int) -> bool:
        return any(first <= code <= last for first, last in self.ranges)

    def __str__(self) -> str:
        return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ranges)
