"""Runs mutmut, and fails if a change of the code survives the tests without an explanation here.

mutmut (its settings are in pyproject.toml) makes one small change at a time in the files that
implement the promise. If no test fails, the change must be one without an effect.
"""

import subprocess
import sys
from pathlib import Path

MUTMUT = str(Path(sys.prefix) / "bin" / "mutmut")
TIMEOUT = 1800

EXPLAINED = {
    '+    last_sent: Status | None = ""': "unequal to every status, as None is",
    "+    late = ProbeResult(ready=None,": "as false as False",
    "+        result = ProbeResult(ready=None,": "the same",
    "return ProbeResult(ready=None,": "the same",
    '+    first_error = ""': "as false as None",
    "ipaddress.ip_address(None)": "the look-up of an address returns the address",
    "_look_up, host, None)": "the port of a result is not used",
    "socket.getaddrinfo(host, None,": "the same",
    "socket.getaddrinfo(host, port, )": "an address that occurs twice counts once",
    "raise socket.gaierror(": "only its type is used, for the reason",
    "+    if seconds >= self._probe_timeout:": "no measurement equals the limit exactly",
    'decode("ASCII")': "another name of the same codec",
    "(health, None, status_callers)": "both policies behind it use only the health",
    "(health, user_agent, None)": "the same",
}


def mutmut(*arguments: str) -> str:
    """Run mutmut and return its output."""
    done = subprocess.run(
        [MUTMUT, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    return done.stdout


def main() -> int:
    """Print every survivor, and fail if one has no explanation."""
    print(mutmut("run").replace("\r", "\n").strip().splitlines()[-1])
    names = [
        line.split(":")[0].strip() for line in mutmut("results").splitlines() if "survived" in line
    ]
    unexplained = 0
    for name in names:
        diff = mutmut("show", name).splitlines()
        changed = "\n".join(line for line in diff if line.startswith("+") and line[1:2] != "+")
        why = next((why for part, why in EXPLAINED.items() if part in changed), None)
        unexplained += why is None
        print(f"{name}\n{changed}\n    {why or 'NOT EXPLAINED'}")
    print(f"{len(names)} survivors, {unexplained} of them unexplained")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
