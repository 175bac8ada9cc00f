import io
import os

import pytest

from ghealth import output


def opened(path: str) -> io.TextIOWrapper:
    """Open a stream as the interpreter opens standard output: with a buffer."""
    return open(path, "w", encoding="ascii", errors="backslashreplace")  # noqa: PTH123


def closed_pipe() -> io.TextIOWrapper:
    """Make a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in the buffer is discarded, so that the end of the process is quiet."""
    with opened("/dev/full") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(output.OutputError, match=r"^No space left on device$") as raised:
            output.write("x")
        assert not isinstance(raised.value, output.OutputClosedError)


def test_a_closed_pipe_is_an_error_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader wanted no more."""
    with closed_pipe() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(output.OutputClosedError):
            output.write("x")


def test_a_closed_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has None for a standard output that was closed at the start."""
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(output.OutputError, match=r"^standard output is closed$"):
        output.write("x")


def test_a_mistake_that_cannot_be_written_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nowhere else to report it: the exit code remains."""
    for stream in (opened("/dev/full"), closed_pipe()):
        with stream:
            monkeypatch.setattr("sys.stderr", stream)
            output.report("one", "two")
    monkeypatch.setattr("sys.stderr", None)
    output.report("one")
    assert capsys.readouterr().out == ""
