"""Runs mutmut, and fails if a change of the code survives the tests without an explanation here.

mutmut (its settings are in pyproject.toml) makes one small change at a time in the files that
implement the promise. If no test fails, the change must be one without an effect.

It leaves out functions that have a decorator, such as properties.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import Final

TIMEOUT: Final = 1800
"""Seconds; a run takes about five minutes on two cores."""

CAUGHT: Final = {"killed", "timeout"}
"""What mutmut calls a change that a test noticed, by a failure or because it did not end."""

EXPLAINED: Final = {
    "it is as false as False": ("self._watches_ended = None", "self._closed = None"),
    "it is as false as no addresses": ("self._fixed: Sequence[str] = None",),
    "it is unequal to every status, as None is": ('last_sent: Status | None = ""',),
    "during the drain, check() returns DRAINING whatever it was given": ("_answer(service, None)",),
    "there is one result for each name": ("strict=None", "strict=False", "gather(*checks), )"),
    "no allowed code is between them": ("(+1, -1)", "(-2, -1)", "(-1, +1)", "(-1, -2)"),
    "both policies use only the health": ("(health, None, ", "(health, user_agent, None)"),
    "of this request only the URL and the headers are used": ('    "get",', '    "XXGETXX",'),
    "only the order of the ranks counts": ("return 3 if number in _NO_FAMILY",),
    "an address of several kinds of sockets is used once": ("getaddrinfo(host, None, flags=",),
}
"""Why a change has no effect, and a part of the changed line of each such change."""


def mutmut(*arguments: str) -> str:
    """Run mutmut and return its output; if it fails, show the output and exit."""
    command = [f"{sys.prefix}/bin/mutmut", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}mutmut {arguments[0]} failed")
    return done.stdout


def main() -> int:
    """Print every survivor; fail if one has no explanation, or an explanation has no survivor."""
    # mutmut would keep the results of earlier runs, though the tests may have changed.
    shutil.rmtree("mutants", ignore_errors=True)
    mutmut("run")
    found = re.findall(r"^ +(\S+): (.+)$", mutmut("results", "--all", "true"), re.MULTILINE)
    if not found:
        sys.exit("mutmut changed nothing")
    explanations = {part: why for why, parts in EXPLAINED.items() for part in parts}
    unexplained, unused = 0, set(explanations)
    for name, result in found:
        if result not in CAUGHT:
            change = mutmut("show", name)
            added = "\n".join(re.findall(r"^\+(?!\+).*", change, re.MULTILINE))
            parts = {part for part in explanations if part in added}
            reasons = {explanations[part] for part in parts} or {"NOT EXPLAINED"}
            print(f"{name}: {result}", change, *reasons, sep="\n")
            unexplained += not parts
            unused -= parts
    counts = Counter((name.rpartition(".")[0], result) for name, result in found)
    for (module, result), count in sorted(counts.items()):
        print(f"{module}: {count} {result}")
    for part in unused:
        print(f"EXPLAINS NO SURVIVOR: {part}")
    print(f"{unexplained} survivors without an explanation, {len(unused)} explanations of nothing")
    return bool(unexplained or unused)


if __name__ == "__main__":
    sys.exit(main())
