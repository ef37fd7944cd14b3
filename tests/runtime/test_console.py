import io

import pytest
from rich.console import Console

from cocomix.runtime.console import ConsoleReporter, Reporter, SilentReporter


def console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100, color_system=None), stream


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter: Reporter = SilentReporter()
    reporter.say("hello")
    reporter.warn("careful")
    with reporter.progress("work", 10, "tokens") as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_the_console_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_text_is_not_read_as_markup() -> None:
    target, stream = console()
    reporter = ConsoleReporter(target)
    reporter.say("a [bold]list[/bold] of [1, 2] and [/x]")
    reporter.warn("file [red].txt")
    assert stream.getvalue() == "a [bold]list[/bold] of [1, 2] and [/x]\nwarning: file [red].txt\n"


def test_quiet_still_warns() -> None:
    target, stream = console(terminal=True)
    reporter = ConsoleReporter(target, quiet=True)
    reporter.say("hello")
    with reporter.progress("work", 10, "tokens") as advance:
        advance(10)
    reporter.warn("careful")
    assert stream.getvalue() == "warning: careful\n"


def test_no_bar_where_nobody_looks() -> None:
    target, stream = console(terminal=False)
    with ConsoleReporter(target).progress("work", 10, "tokens") as advance:
        advance(10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("total", [10.0, None])
def test_a_bar_on_a_terminal_shows_the_speed(total: float | None) -> None:
    target, stream = console(terminal=True)
    reporter = ConsoleReporter(target)
    with reporter.progress("reading [x]", total, "tokens") as advance:
        for _ in range(5):
            advance(2)
        reporter.say("in between")
    text = stream.getvalue()
    assert "reading [x]" in text
    assert "tokens/s" in text
    assert "in between" in text


def test_the_bar_is_taken_down_on_an_error() -> None:
    target, _ = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), ConsoleReporter(target).progress("work", 10, "tokens"):
        raise KeyboardInterrupt
    with ConsoleReporter(target).progress("again", 10, "tokens") as advance:
        advance(1)
