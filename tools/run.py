"""`make run`: a gateway, ghealth beside it, and the output of both."""

import os
import select
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TextIO

from tests.support.gateway import READY, SICK, SILENT, Agent, Gateway, listens, wait_until

GHEALTH: Final = str(Path(sys.prefix) / "bin" / "ghealth")
READINESS_PORT, AGENT_PORT, PORT, ADMIN_PORT = 15021, 15020, 25021, 25022
COLOURS: Final = {"run": 36, "ghealth": 35, "check": 33, "alb": 34}
STATES: Final = {"s": ("not ready (503)", SICK), "r": ("ready", READY), "h": ("hang", SILENT)}


class Screen:
    """Prints whole lines with the name of the program that they come from.

    Args:
        stream: Where to print.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._has_colour = stream.isatty() and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()

    def print(self, program: str, line: str) -> None:
        """Print one line."""
        name = f"{program:>7}"
        if self._has_colour:
            name = f"\033[{COLOURS[program]}m{name}\033[0m"
        with self._lock:
            print(f"{name} | {line}", file=self._stream, flush=True)

    def follow(self, program: str, *command: str, **variables: str) -> "subprocess.Popen[str]":
        """Start a program and print its lines."""
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | variables,
            # So that Ctrl-C reaches only this program, which ends the others in order.
            start_new_session=True,
        )
        output = process.stdout
        if output is None:
            raise RuntimeError

        def read() -> None:
            for line in output:
                self.print(program, line.rstrip())

        threading.Thread(target=read, daemon=True).start()
        return process


@contextmanager
def single_keys() -> Iterator[None]:
    """Make the terminal, if there is one, deliver each key when it is pressed."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def main() -> int:
    """Run until Ctrl-C."""
    screen = Screen(sys.stdout)
    if listens(PORT):
        print(f"Port {PORT} is in use: ghealth cannot listen on it.", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        agent = None
        if listens(READINESS_PORT):
            screen.print("run", f"Port {READINESS_PORT} is in use: ghealth probes what is there.")
        else:
            agent = stack.enter_context(Agent(AGENT_PORT))
            gateway = stack.enter_context(Gateway(agent, READINESS_PORT))
            screen.print("run", f"A real Envoy answers {gateway.url}")
        ghealth = screen.follow("ghealth", GHEALTH, GHEALTH_LOG_FORMAT="text")
        stack.callback(_end, ghealth)
        wait_until(lambda: listens(PORT) or ghealth.poll() is not None)
        if ghealth.poll() is not None:
            return ghealth.returncode
        screen.print("run", f"Status page: http://localhost:{ADMIN_PORT}/")
        screen.print("run", 'Lines of "check" are the output of: ghealth check --watch')
        stack.callback(_end, screen.follow("check", GHEALTH, "check", "--watch"))
        stack.enter_context(single_keys())
        _explain(screen, agent)
        try:
            _obey(screen, agent, ghealth)
        except KeyboardInterrupt:
            print()
    return 0


def _explain(screen: Screen, agent: Agent | None) -> None:
    if agent is None:
        screen.print("run", "Ctrl-C ends it.")
    elif sys.stdin.isatty():
        states = ", ".join(f"{key}: {words}" for key, (words, _) in STATES.items())
        screen.print("run", f"Press {states}, a: check as an ALB, q: quit")
    else:
        screen.print("run", f"Make the gateway fail:  curl -X PUT localhost:{AGENT_PORT}/{SICK}")
        screen.print("run", f"and ready again:        curl -X PUT localhost:{AGENT_PORT}/{READY}")


def _obey(screen: Screen, agent: Agent | None, ghealth: "subprocess.Popen[str]") -> None:
    """Run the commands of the keys until ghealth ends."""
    keyboard = [sys.stdin] if sys.stdin.isatty() else []
    while ghealth.poll() is None:
        ready, _, _ = select.select(keyboard, [], [], 0.5)
        if not ready:
            continue
        key = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
        if not key:  # the terminal is gone
            keyboard = []
            continue
        if key == "q":
            return
        if key == "a":
            screen.follow("alb", GHEALTH, "check", "--as", "alb").wait()
        elif agent is None or key not in STATES:
            _explain(screen, agent)
        else:
            words, agent.state = STATES[key]
            screen.print("run", f"Gateway: {words}")


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    # SIGINT too: a shell starts background processes with it ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    sys.exit(main())
