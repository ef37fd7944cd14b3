import io
import logging
import re
import sys
import threading
import time

import pytest
from rich.console import Console

from cocomix.runtime import console
from cocomix.runtime.console import progress, set_up_logging

logger = logging.getLogger("cocomix.some_room.some_module")


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error as a terminal without colours."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console, "terminal", lambda: Console(stderr=True, force_terminal=True, color_system=None))
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_a_library_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("hello")
    logger.warning("careful")
    with progress("work", 10, "tokens") as advance:
        advance(3)
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    set_up_logging()
    logger.info("a [bold]list[/bold] of %s and [/x]", [1, 2])
    logger.warning("careful")
    logger.debug("not shown")
    assert capsys.readouterr() == ("", "a [bold]list[/bold] of [1, 2] and [/x]\nwarning: careful\n")


def test_messages_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    set_up_logging()
    logger.info("a [bold]list[/bold] of [1, 2] and [/x]")
    logger.warning("file [red].txt")
    assert terminal.getvalue() == "a [bold]list[/bold] of [1, 2] and [/x]\nwarning: file [red].txt\n"


def test_quiet_still_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    set_up_logging()
    set_up_logging(quiet=True)
    logger.info("hello")
    with progress("work", 10, "tokens") as advance:
        advance(10)
    logger.warning("careful")
    assert terminal.getvalue() == "warning: careful\n"


def test_of_several_processes_the_first_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    set_up_logging()
    logger.warning("careful")
    assert capsys.readouterr() == ("", "")


class _Lines(logging.Handler):
    """Collects the messages of `progress`, and moves its clock by a minute at each."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.now, self.wanted, self.enough = 0.0, wanted, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) < self.wanted:
            self.lines.append(record.getMessage())
            self.now += 60
        if len(self.lines) == self.wanted:
            self.enough.set()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_FIRST_LINE_SECONDS", 0.1)
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.01)


def _lines(
    monkeypatch: pytest.MonkeyPatch, total: float | None, *, done: float = 0, advanced: float = 0, wanted: int = 2
) -> list[str]:
    logging.getLogger("cocomix").setLevel(logging.INFO)
    logging.getLogger("cocomix").addHandler(handler := _Lines(wanted))
    handler.now = 10.0
    times = iter([0.0])
    monkeypatch.setattr(console, "monotonic", lambda: next(times, handler.now))
    with progress("label", total, "tokens", done=done) as advance:
        advance(advanced)
        assert handler.enough.wait(30)
    return handler.lines


@pytest.mark.parametrize(
    ("total", "done", "advanced", "lines"),
    [
        (4000, 0, 1400, ["1,400 of 4,000 tokens (35%), 140 tokens/s, 19 s left", "20 tokens/s, 2 min left"]),
        (4000, 2000, 1400, ["3,400 of 4,000 tokens (85%), 140 tokens/s, 4 s left", "20 tokens/s, 30 s left"]),
        (4000, 0, 0, ["0 of 4,000 tokens (0%), 10 s so far", "0 of 4,000 tokens (0%), 70 s so far"]),
        (None, 0, 14, ["14 tokens, 1.4 tokens/s", "14 tokens, 12 tokens/min"]),
        (None, 0, 0, ["label: 10 s so far", "label: 70 s so far"]),
        (0, 0, 0, ["0 of 0 tokens", "70 s so far"]),
    ],
)
def test_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, total: float | None, done: float, advanced: float, lines: list[str]
) -> None:
    """Without a terminal, where nothing was shown at all."""
    found = _lines(monkeypatch, total, done=done, advanced=advanced)
    assert len(found) == 2
    for line, wanted in zip(found, lines, strict=True):
        assert line.startswith("label: ")
        assert wanted in line


@pytest.mark.parametrize(("load", "busy"), [(2.0, False), (9.2, True)])
def test_a_line_mentions_a_busy_machine(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("psutil.getloadavg", lambda: (load, 0.0, 0.0))
    assert all(line.endswith("the machine is busy: load 9 on 2 cores") == busy for line in _lines(monkeypatch, 100))


def test_short_work_logs_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    with progress("work", 10, "tokens") as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [10.0, None])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, total: float | None) -> None:
    terminal = a_terminal(monkeypatch)
    set_up_logging()
    with progress("reading [x]", total, "tokens") as advance:
        for _ in range(5):
            advance(2)
        logger.info("in between")
    text = terminal.getvalue()
    assert "reading [x]" in text
    assert re.search(r"[\d,]+ tokens/s", text)
    assert "in between\n" in text


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_progress_ends_on_an_error(monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool) -> None:
    if on_a_terminal:
        a_terminal(monkeypatch)
    set_up_logging()
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), progress("work", 10, "tokens"):
        raise KeyboardInterrupt
    assert on_a_terminal or set(threading.enumerate()) <= before
    with progress("again", 10, "tokens") as advance:
        advance(1)
