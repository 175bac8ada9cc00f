"""`make run`: a gateway, ghealth beside it, and the output of both."""

import os
import select
import signal
import subprocess
import sys
import termios
import threading
import tty
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from tests.support.gateway import READY, SICK, SILENT, Agent, gateway, listens, wait_until

READINESS_PORT, AGENT_PORT, PORT, ADMIN_PORT = 15021, 15020, 25021, 25022
COLOURS: Final = {"run": 36, "ghealth": 35, "check": 33, "alb": 34}
STATES: Final = {"s": ("not ready (503)", SICK), "r": ("ready", READY), "h": ("hang", SILENT)}

Process = subprocess.Popen[str]


def show(program: str, line: str) -> None:
    """Print a line after the name of the program that it comes from."""
    name = f"{program:>7}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        name = f"\033[{COLOURS[program]}m{name}\033[0m"
    # One text, so that the lines of two threads do not mix.
    print(f"{name} | {line}\n", end="", flush=True)


def start(program: str, *arguments: str) -> Process:
    """Start a command of ghealth, and show its lines."""
    process = subprocess.Popen(
        [Path(sys.prefix) / "bin" / "ghealth", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"GHEALTH_LOG_FORMAT": "text"},
        # So that Ctrl-C reaches only this program, which ends the others in order.
        start_new_session=True,
    )

    def read() -> None:
        for line in process.stdout or ():
            show(program, line.rstrip())

    threading.Thread(target=read, daemon=True).start()
    return process


def end(process: Process) -> None:
    """End a process, unless it has ended."""
    process.send_signal(signal.SIGINT)
    process.wait()


def obey(agent: Agent | None, ghealth: Process) -> None:
    """Run the commands of the keys until ghealth ends."""
    states = {key: words for key, (words, _) in STATES.items() if agent}
    keys = states | {"a": "check as an ALB", "q": "quit"}
    shown = ", ".join(f"{key}: {words}" for key, words in keys.items())
    show("run", f"Press {shown}")
    while ghealth.poll() is None:
        if not select.select([sys.stdin], [], [], 0.5)[0]:
            continue
        match os.read(sys.stdin.fileno(), 1).decode(errors="replace"):
            case "" | "q":
                return
            case "a":
                start("alb", "check", "--as", "alb").wait()
            case key if agent and key in states:
                words, agent.state = STATES[key]
                show("run", f"Gateway: {words}")
            case _:
                show("run", f"Press {shown}")


def main() -> int:
    """Run until Ctrl-C."""
    if listens(PORT):
        print(f"Port {PORT} is in use: ghealth cannot listen on it.", file=sys.stderr)
        return 2
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        agent = None
        if listens(READINESS_PORT):
            show("run", f"Port {READINESS_PORT} is in use: ghealth probes what is there.")
        else:
            envoy, agent = stack.enter_context(gateway(READINESS_PORT, AGENT_PORT))
            show("run", f"A real Envoy answers {envoy.url}")
            show("run", f"Without keys: curl -X PUT localhost:{AGENT_PORT}/{SICK}, and /{READY}")
        ghealth = start("ghealth")
        stack.callback(end, ghealth)
        wait_until(lambda: listens(PORT) or ghealth.poll() is not None)
        if ghealth.poll() is not None:
            return ghealth.returncode
        show("run", f"Status page: http://localhost:{ADMIN_PORT}/")
        show("run", 'Lines of "check" are the output of: ghealth check --watch')
        stack.callback(end, start("check", "check", "--watch"))
        if sys.stdin.isatty():
            before = termios.tcgetattr(sys.stdin)
            stack.callback(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, before)
            tty.setcbreak(sys.stdin)
            obey(agent, ghealth)
        else:
            ghealth.wait()
    return 0


if __name__ == "__main__":
    # SIGINT too: a shell starts background processes with it ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    sys.exit(main())
