"""What `make run` does: a gateway, ghealth beside it, and what a check says of it."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support.gateway import gateway, listens, wait_until

GHEALTH = str(Path(sys.prefix) / "bin" / "ghealth")
READINESS_PORT, AGENT_PORT, PORT = 15021, 15020, 25021


def main() -> int:
    """Run until Ctrl-C."""
    if listens(PORT):
        print(f"Something listens on {PORT} already: ghealth has no place.", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        if listens(READINESS_PORT):
            print(f"Something listens on {READINESS_PORT} already: ghealth asks that.")
        else:
            stack.enter_context(gateway(READINESS_PORT, AGENT_PORT))
            print(f"A real Envoy answers http://localhost:{READINESS_PORT}/healthz/ready.")
            print(f"  make it sick:  curl -X PUT localhost:{AGENT_PORT}/sick")
            print(f"  and well:      curl -X PUT localhost:{AGENT_PORT}/ready")
        # A session of its own, so that a Ctrl-C reaches this program alone, and ghealth through it.
        ghealth = subprocess.Popen([GHEALTH], start_new_session=True)
        stack.callback(_end, ghealth)
        wait_until(lambda: listens(PORT) or ghealth.poll() is not None)
        if ghealth.poll() is not None:
            return ghealth.returncode
        print(
            f"ghealth serves grpc.health.v1.Health on {PORT}; ghealth check --watch says:",
            flush=True,
        )
        watch = subprocess.Popen([GHEALTH, "check", "--watch"], start_new_session=True)
        stack.callback(_end, watch)
        try:
            return ghealth.wait()
        except KeyboardInterrupt:
            print()
        return 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    # SIGINT too: started in the background by a shell, this program would be deaf to it, and so
    # would be those that it ends by it.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
