"""Pages: everything escaped, nothing fetched, and one table for page, terminal and file."""

import re
from html.parser import HTMLParser

from rich.console import Console

from cocomix.evaluation.pages import Figure, Section, Table, render_page

HOSTILE = "<script>alert('x')</script>\"&$1$[red]*_|"


class Checker(HTMLParser):
    """Collects tags, texts and addresses, and sees that every element is closed."""

    VOID = {"meta", "img", "source", "br"}  # noqa: RUF012

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.open, self.texts = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_every_part_is_text() -> None:
    table = Table([HOSTILE, "n, unit"], [[HOSTILE, HOSTILE]], caption=HOSTILE, meanings={HOSTILE: HOSTILE})
    section: Section = {
        "heading": HOSTILE,
        "text": [HOSTILE],
        "tables": [table],
        "figures": [Figure(b"png", b"dark", alt=HOSTILE)],
        "tokens": [(HOSTILE, 0.5, HOSTILE), ("a", 7.0, ""), ("b", -1.0, "")],
        "legend": HOSTILE,
        "texts": [(HOSTILE, HOSTILE)],
        "code": HOSTILE,
        "notes": [HOSTILE],
    }
    html = render_page(HOSTILE, [HOSTILE], [section, {"heading": "empty"}])
    checker = Checker(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "script" not in checker.tags
    assert checker.texts.count(HOSTILE) == 17
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert len(checker.addresses) == 2
    assert not re.search(r"https?:|url\(|@import|style=\"(?!--s)", html)
    assert re.findall(r"--s:([\d.]+)", html) == ["0.50", "1.00", "0.00"]


def test_commands_between_backticks_are_code() -> None:
    html = render_page("x", ["give `cocomix eval <RUN>`"], [])
    assert "give <code>cocomix eval &lt;RUN&gt;</code>" in html


def test_the_page_begins_with_what_was_found() -> None:
    html = render_page("Title", ["first", "second"], [{"heading": "Protocol"}])
    order = [html.index(f">{text}<") for text in ("first", "second", "Protocol")]
    assert order == sorted(order)
    assert "Made by cocomix" in html


def test_a_narrow_terminal_does_not_break_the_names_of_runs() -> None:
    name = "softmax_distilled_bigram"
    console = Console(width=60, color_system=None)
    with console.capture() as shown:
        console.print(Table(("run", *("a long heading of numbers",) * 6), [(name, *("+0.123",) * 6)]).rich())
    assert name in shown.get()


def test_one_table_for_page_terminal_and_file() -> None:
    table = Table(
        ("run", "loss, nats per token, lower is better"),
        [("mine_ntp", "4.013"), ("[a]|b", "3.9")],
        caption="Two `runs`",
        meanings={"loss": "Mean over seeds."},
        marked=1,
    )
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        console.print(table.rich())
    assert "mine_ntp" in shown.get()
    assert "[a]|b" in shown.get()
    assert "nats per token, lower is better" in shown.get()
    assert "Mean over seeds." in shown.get()
    assert "\\" not in shown.get()
    markdown = table.markdown()
    assert r"| mine\_ntp | 4.013 |" in markdown
    assert r"\[a\]\|b" in markdown
    assert "- loss: Mean over seeds." in markdown
    html = render_page("x", [], [{"heading": "h", "tables": [table]}])
    assert '<tr class="marked">\n<th scope="row">[a]|b</th>' in html
    assert "loss<small>nats per token, lower is better</small>" in html
