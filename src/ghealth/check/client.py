"""The gRPC health check: one Check, or all changes of a Watch."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final

from ghealth.check.channel import channel_client
from ghealth.check.question import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    NOT_FOUND,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Client,
    InvalidQuestionError,
    NoConnectionError,
    Question,
    Reply,
)
from ghealth.check.report import ExitCode, Report, code_name
from ghealth.check.unverified import unverified_client
from ghealth.durations import show_seconds
from ghealth.health import DEADLINE, Status

Log = Callable[[str], None]

_ENOUGH: Final = 5.0
"""Seconds that are enough for ghealth's answer, whose probes take up to 3 s by default."""


def _client(question: Question) -> AbstractAsyncContextManager[Client]:
    if question.tls is None or question.tls.verify:
        return channel_client(question)
    return unverified_client(question, question.tls)


async def check(question: Question, log: Log = lambda _: None) -> Report:
    """Ask once.

    Args:
        question: The question.
        log: Receives the steps.
    """
    async with _client(question) as client:
        log(f"connecting to {question.target}")
        try:
            await client.connect()
            log("connected")
            async with aclosing(client.answers("Check")) as answers:
                answer = await anext(answers)
        except NoConnectionError as error:
            return _no_connection(question, error)
        except InvalidQuestionError as error:
            answer = Reply(INTERNAL, str(error))
        log("answered")
        return _report(question, answer)


async def watch(
    question: Question, *, pause: Callable[[], Awaitable[None]]
) -> AsyncGenerator[Report, None]:
    """Follow the answers of a Watch, and connect again when the connection ends.

    Args:
        question: The question; its `rpc_timeout` applies only to the reason.
        pause: Waits before each new connection.

    Yields:
        Each report that differs from the one before.
    """
    last_sent = None
    async with _client(question) as client:
        while True:
            async with aclosing(_watch_once(client, question)) as reports:
                async for report in reports:
                    if report != last_sent:
                        last_sent = report
                        yield report
            await pause()


async def _watch_once(client: Client, question: Question) -> AsyncGenerator[Report, None]:
    try:
        await client.connect()
        async with aclosing(client.answers("Watch")) as answers:
            async for answer in answers:
                yield await _with_reason(question, answer)
    except NoConnectionError as error:
        yield _no_connection(question, error)
    except InvalidQuestionError as error:
        yield _report(question, Reply(INTERNAL, str(error)))


async def _with_reason(question: Question, answer: Reply) -> Report:
    """Return the report of a Watch's answer: the one of a Check if that has the same status.

    A reason is in the trailers, which a Watch has only at its end.
    """
    report = _report(question, answer)
    if answer.status == Status.NOT_SERVING:
        checked = await check(question)
        if checked.keys["status"] == report.keys["status"]:
            return checked
    return report


def _report(question: Question, answer: Reply) -> Report:
    """Return the report of an answer."""
    status = None if answer.status is None else _status_name(answer.status)
    name = code_name(answer.code)
    reason = _one_line(answer.reason) or None
    if answer.code:
        # From other servers, and from proxies before them, UNAVAILABLE does not mean not serving.
        not_serving = answer.code == UNAVAILABLE and reason is not None
        exit_code = ExitCode.NOT_SERVING if not_serving else ExitCode.RPC_FAILED
    else:
        serving = answer.status == Status.SERVING
        exit_code = ExitCode.SERVING if serving else ExitCode.NOT_SERVING
    if exit_code is ExitCode.SERVING:
        text = "status: SERVING"
    elif exit_code is ExitCode.RPC_FAILED:
        text = f"health rpc failed: {name or answer.code}: {_explained(question, answer)}"
    elif reason:
        text = f"{status or name}: {_hinted(question, reason)}"
    else:
        text = f'service unhealthy (responded with "{status}")'
    return _made(question, exit_code, text, code=answer.code, status=status, reason=reason)


def _hinted(question: Question, reason: str) -> str:
    """Return a reason with a hint, if the timeout of this check caused it."""
    if reason != str(DEADLINE.reason):
        return reason
    timeout = question.rpc_timeout
    longer = show_seconds(max(_ENOUGH, 2 * timeout))
    return f"no answer before the deadline of {timeout:g} s; try --rpc-timeout {longer}"


def _explained(question: Question, answer: Reply) -> str:
    match answer.code:
        case code if code == UNIMPLEMENTED:
            return "this server does not implement grpc.health.v1.Health"
        case code if code == DEADLINE_EXCEEDED:
            return f"no answer within {question.rpc_timeout:g} s"
        case code if code == NOT_FOUND:
            return f'the server has no service "{question.service}"'
    return _one_line(answer.details)


def _one_line(text: str) -> str:
    """Return a server's text without control characters, which could change the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _no_connection(question: Question, error: NoConnectionError) -> Report:
    cause = _one_line(str(error)) or None
    text = f'failed to connect to "{question.target}" within {question.connect_timeout:g} s'
    return _made(
        question, ExitCode.NO_CONNECTION, f"{text}: {cause}" if cause else text, reason=cause
    )


def _status_name(number: int) -> str:
    return Status(number).name if number in set(Status) else str(number)


def _made(
    question: Question,
    exit_code: ExitCode,
    text: str,
    *,
    code: int | None = None,
    status: str | None = None,
    reason: str | None = None,
) -> Report:
    keys = {
        "exit_code": exit_code.value,
        "conclusion": exit_code.name.lower().replace("_", " "),
        "address": str(question.target),
        "service": question.service,
        "status": status,
        "code": code,
        "code_name": None if code is None else code_name(code),
        "reason": reason,
        "text": text,
    }
    return Report(exit_code, text, keys)
