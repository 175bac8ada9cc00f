"""`make run`: a real Envoy, ghealth beside it, and keys that make the gateway fail."""

import os
import select
import signal
import subprocess
import sys
import termios
import tty
from contextlib import ExitStack, suppress
from typing import Final

from tests.support.gateway import READY, SICK, SILENT, gateway, listens

READINESS_PORT, AGENT_PORT, PORT, ADMIN_PORT = 15021, 15020, 25021, 25022
STATES: Final = {"s": ("not ready (503)", SICK), "r": ("ready", READY), "h": ("hang", SILENT)}
KEYS: Final = ", ".join(f"{key}: {words}" for key, (words, _) in STATES.items())


def pressed() -> str:
    """Return the key that is pressed within half a second, if any; q if the terminal is gone."""
    if not select.select([sys.stdin], [], [], 0.5)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q"


def main() -> int:
    """Run until Ctrl-C."""
    for port in (READINESS_PORT, AGENT_PORT, PORT):
        if listens(port):
            print(f"Port {port} is in use.", file=sys.stderr)
            return 2
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        envoy, agent = stack.enter_context(gateway(READINESS_PORT, AGENT_PORT))
        print(f"A real Envoy answers {envoy.url}", flush=True)
        # In its own session, so that Ctrl-C reaches only this program, which ends it first.
        ghealth = subprocess.Popen([f"{sys.prefix}/bin/ghealth"], start_new_session=True)
        stack.callback(ghealth.wait)
        stack.callback(ghealth.send_signal, signal.SIGINT)
        print(f"Status page: http://localhost:{ADMIN_PORT}/")
        if not sys.stdin.isatty():
            print(f"Make the gateway fail: curl -X PUT localhost:{AGENT_PORT}/{SICK}", flush=True)
            return ghealth.wait()
        print(f"Press {KEYS}, q: quit")
        before = termios.tcgetattr(sys.stdin)
        stack.callback(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, before)
        tty.setcbreak(sys.stdin)
        while ghealth.poll() is None and (key := pressed()) != "q":
            if key in STATES:
                words, agent.state = STATES[key]
                print(f"Gateway: {words}")
        return ghealth.poll() or 0
    return 0


if __name__ == "__main__":
    # SIGINT too: a shell starts background processes with it ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    sys.exit(main())
