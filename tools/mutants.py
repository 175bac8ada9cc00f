"""Breaks the code in every small way and sees the tests fail; explains the ways that they do not.

mutmut (its settings are in pyproject.toml) changes one thing at a time in the files that hold the
promise. A change that no test notices is a survivor: it must be one that changes nothing.
"""

import subprocess
import sys
from pathlib import Path

MUTMUT = str(Path(sys.prefix) / "bin" / "mutmut")
PATIENCE = 1800

EXPLAINED = {
    '+    told: Status | None = ""': "no status at all: unequal to every one, as None is",
    "+    late = ProbeResult(ready=None,": "as false as False",
    "+        result = ProbeResult(ready=None,": "the same",
    "return ProbeResult(ready=None,": "the same",
    '+    first_error = ""': "as false as None",
    "ipaddress.ip_address(None)": "an address is looked up as a name is, and found as itself",
    "_look_up, host, None)": "the port of what is found is not used",
    "socket.getaddrinfo(host, None,": "the same",
    "socket.getaddrinfo(host, port, )": "an address that is found twice counts once",
    "raise socket.gaierror(": "its kind alone is looked at, and told by a reason of ours",
    "+    if seconds >= self._probe_timeout:": "nobody meets the limit to the bit",
    'decode("ASCII")': "another name of the same codec",
    "(health, None, status_callers)": "the two policies behind look at the health alone",
    "(health, user_agent, None)": "the same",
}


def told(*arguments: str) -> str:
    """Run mutmut and tell what it said."""
    done = subprocess.run(
        [MUTMUT, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.stdout


def main() -> int:
    """Tell every survivor, and fail if one has no explanation."""
    print(told("run").replace("\r", "\n").strip().splitlines()[-1])
    names = [
        line.split(":")[0].strip() for line in told("results").splitlines() if "survived" in line
    ]
    unexplained = 0
    for name in names:
        diff = told("show", name).splitlines()
        changed = "\n".join(line for line in diff if line.startswith("+") and line[1:2] != "+")
        why = next((why for part, why in EXPLAINED.items() if part in changed), None)
        unexplained += why is None
        print(f"{name}\n{changed}\n    {why or 'NOT EXPLAINED'}")
    print(f"{len(names)} survivors, {unexplained} of them unexplained")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
