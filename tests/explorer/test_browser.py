"""The four views, used by a person with Debian's Chromium."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cocomix.explorer.text_markup import token_detail
from tests.explorer.conftest import CHROMIUM
from tests.workshop import CONCEPTS

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=20_000)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]

EVIL = "the <script>alert(1)</script><img src=x onerror=alert(2)> ${7*7} {{7*7}}"
CONTRAST = """element => {
  const pixel = (colour) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  };
  const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  const style = getComputedStyle(element);
  const [a, b] = [light(pixel(style.color)), light(pixel(style.backgroundColor))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any, address: str) -> Iterator[Open]:
    """Opens the page in a tab of its own visitor; in the end no tab may have complained or asked anyone else."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def open_tab(path: str = "", view: str | None = None, **options: Any) -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1366, "height": 768}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "request", lambda sent: None if sent.url.startswith((address, "data:")) else complaints.append(sent.url)
        )
        page.on("response", lambda got: complaints.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        page.goto(path if path.startswith("http") else address + path)
        if not path:
            page.wait_for_selector(".cx-token")
        if view is not None:
            page.get_by_role("tab", name=view).click()
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []


def texts(page: Any) -> dict[str, str]:
    return {kind: page.locator(f'[data-text="{kind}"] p').inner_text() for kind in ("unsteered", "steered", "teacher")}


def generate(page: Any) -> dict[str, str]:
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#cx-steer-said")).to_contain_text("tokens, seed")
    return texts(page)


def steer_strongest(page: Any, subject: Any) -> None:
    """Set the concept that is strongest at the prompt's end to its largest value."""
    output = subject.model(input_ids=subject.encode("the list of"))
    page.locator("#cx-steer-prompt textarea").fill("the list of")
    page.locator("#cx-concept-0 input, #cx-concept-0 textarea").first.fill(str(int(output.concept_ids[0, -1, 0])))
    page.locator("#cx-value-0 input[type=number]").fill("20")
    page.locator("#cx-value-0 input[type=number]").press("Tab")


def test_text(tab: Open, subject: Any) -> None:
    page = tab()
    prompt = page.locator("#cx-text-prompt textarea")
    prompt.fill("list of the items and a string")
    prompt.press("Enter")
    tokens = page.locator(".cx-token")
    expected = subject.encode("list of the items and a string").shape[1]
    expect(tokens).to_have_count(expected)
    detail = page.locator("#cx-detail")
    tokens.nth(2).click()
    expect(detail.locator("h3")).to_contain_text("Token 3")
    expect(tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(tokens.nth(2)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(3)).to_be_focused()
    page.keyboard.press("Enter")
    expect(detail.locator("h3")).to_contain_text("Token 4")
    assert detail.locator(".cx-strongest li").count() == 6
    often = page.locator("#cx-legend .cx-concept").first
    concept = often.get_attribute("data-value")
    often.click()
    expect(page.locator("#cx-legend .cx-legend")).to_contain_text(f"logit of concept {concept}")
    detail.get_by_role("button", name=f"concept {concept}").first.click()
    expect(page.get_by_role("tab", name="Concept")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#cx-card h3")).to_contain_text(concept)


def test_a_token_chosen_while_another_is_opened_is_opened_next(tab: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tab()
    asked = threading.Event()

    def slow(*args: Any) -> str:
        asked.set()
        time.sleep(1)
        return token_detail(*args)

    monkeypatch.setattr("cocomix.explorer.text_page.token_detail", slow)
    page.locator(".cx-token").nth(2).click()
    assert asked.wait(20)
    page.locator(".cx-token").nth(3).click()
    expect(page.locator("#cx-detail h3")).to_contain_text("Token 4")


def test_what_is_typed_is_never_html(tab: Open) -> None:
    page = tab()
    prompt = page.locator("#cx-text-prompt textarea")
    prompt.fill(EVIL[:24])
    prompt.press("Enter")
    expect(page.locator("#cx-tokens")).to_contain_text("<")
    assert "".join(page.locator(".cx-token code").all_inner_texts()).replace("·", " ") == EVIL[:24]
    page.goto(page.url.split("?")[0] + "?view=steer&prompt=" + EVIL.replace(" ", "+").replace("{", "%7B"))
    expect(page.locator("#cx-steer-prompt textarea")).to_have_value(EVIL)
    page.locator("#cx-concept-0 input, #cx-concept-0 textarea").first.fill(EVIL)
    expect(page.locator(".cx-slot-name").first).to_contain_text("no concept is found")
    assert page.locator("main script, main img[src='x']").count() == 0


def test_concept(tab: Open, subject: Any) -> None:
    page = tab(view="Concept")
    best = subject.atlas.top(1)[0]
    expect(page.locator("#cx-hits .cx-concept").first).to_contain_text(str(best.id))
    search = page.get_by_label("Search")
    search.fill(str(best.id))
    search.press("Enter")
    page.locator("#cx-hits .cx-concept").first.click()
    card = page.locator("#cx-card")
    expect(card.locator("h3")).to_contain_text(f"{best.id} {best.name}")
    assert card.locator("mark").count() > 0
    expect(card.locator("svg.cx-histogram")).to_be_visible()
    page.get_by_role("button", name="Measure its effect").click()
    expect(page.locator("#cx-measured")).to_contain_text("Raises")
    card.locator(".cx-nearest .cx-concept").first.click()
    expect(card.locator("h3 b")).to_have_text(str(subject.atlas.card(best.id).nearest[0][0]))
    search.fill(str(CONCEPTS))
    search.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("out of range")
    page.get_by_role("button", name="Steer it").click()
    expect(page.locator("#cx-concept-0 input, #cx-concept-0 textarea").first).not_to_have_value("")


def test_steering_changes_the_text_and_a_link_restores_it(tab: Open, subject: Any) -> None:
    page = tab(view="Steer")
    steer_strongest(page, subject)
    shown = generate(page)
    assert all(text.startswith("the list of") for text in shown.values())
    assert shown["steered"] != shown["unsteered"]
    assert page.locator('[data-text="steered"] mark').inner_text()
    link = page.locator("#cx-link input, #cx-link textarea").first
    expect(link).to_have_value(page.url)
    fresh = tab(page.url)
    expect(fresh.locator("#cx-steer-said")).to_contain_text("restored")
    expect(fresh.locator("#cx-value-0 input[type=number]")).to_have_value("20")
    assert generate(fresh) == shown


def test_suggestions_are_added_and_removed(tab: Open) -> None:
    page = tab(view="Steer")
    page.locator("#cx-steer-prompt textarea").fill("list of the items and the value of a key")
    page.get_by_role("button", name="Suggest concepts").click()
    found = page.locator("#cx-suggested .cx-concept")
    expect(found.first).to_be_visible()
    found.nth(0).click()
    first = page.locator("#cx-concept-0 input, #cx-concept-0 textarea").first
    expect(first).to_have_value(found.nth(0).get_attribute("data-value"))
    found.nth(1).click()
    second = page.locator("#cx-concept-1 input, #cx-concept-1 textarea").first
    expect(second).to_have_value(found.nth(1).get_attribute("data-value"))
    page.get_by_role("button", name="Remove").first.click()
    expect(first).to_have_value(found.nth(1).get_attribute("data-value"))
    expect(second).to_be_hidden()


def test_two_visitors_do_not_see_each_others_edits(tab: Open, subject: Any) -> None:
    one, other = tab(view="Steer"), tab(view="Steer")
    steer_strongest(one, subject)
    other.locator("#cx-steer-prompt textarea").fill("the list of")
    one.get_by_role("button", name="Generate").click()
    plain = generate(other)
    expect(one.locator("#cx-steer-said")).to_contain_text("tokens, seed")
    steered = texts(one)
    assert plain["steered"] == plain["unsteered"] == steered["unsteered"] != steered["steered"]
    assert other.locator("#cx-concept-0 input, #cx-concept-0 textarea").first.input_value() == ""


class Slow:
    """The run's model, taking its time, and counting."""

    def __init__(self, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        forward = type(subject.model).forward

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            time.sleep(0.1)
            return forward(*args, **kwargs)

        monkeypatch.setattr(type(subject.model), "forward", slow)

    def rests(self, page: Any) -> bool:
        """Whether it comes to rest, long before all texts are done."""
        for _ in range(20):
            before = self.calls
            page.wait_for_timeout(500)
            if self.calls == before:
                return self.calls < 2 * 24
        return False


def start(page: Any) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".cx-progress")).to_contain_text("of 24 tokens")
    page.wait_for_timeout(400)


def test_stop(tab: Open, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tab(view="Steer")
    slow = Slow(subject, monkeypatch)
    start(page)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#cx-steer-said")).to_contain_text("Stopped")
    assert slow.rests(page)
    kept = texts(page)
    page.wait_for_timeout(600)
    assert texts(page) == kept
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_closing_the_tab_stops_the_work(tab: Open, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page, other = tab(view="Steer"), tab()
    slow = Slow(subject, monkeypatch)
    start(page)
    page.close()
    assert slow.rests(other)
    assert not subject.lock.locked()


def test_compare(tab: Open) -> None:
    page = tab(view="Compare")
    expect(page.locator("#cx-curves polyline")).to_have_count(2)
    page.get_by_label("training FLOPs").check()
    expect(page.locator("#cx-curves svg")).to_contain_text("training FLOPs")
    page.get_by_role("checkbox", name="plain").uncheck()
    expect(page.locator("#cx-curves polyline")).to_have_count(1)
    expect(page.locator("#cx-table")).to_contain_text("baseline")


def test_mistakes_are_answered_in_words(tab: Open) -> None:
    page = tab()
    prompt, alert = page.locator("#cx-text-prompt textarea"), page.get_by_role("alert")
    for typed, says in (("", "text is empty"), ("the " * 60, "48 tokens")):
        prompt.fill(typed)
        prompt.press("Enter")
        expect(alert).to_contain_text(says)
    page.get_by_role("tab", name="Steer").click()
    for concept, says in ((str(CONCEPTS), "out of range"), ("-1", "out of range"), ("zzzzqq", "o concept is found")):
        page.locator("#cx-concept-0 input, #cx-concept-0 textarea").first.fill(concept)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#cx-steer-said")).to_contain_text(re.compile(f"{says}.*{concept}|{concept}.*{says}"))
    page.locator("#cx-concept-0 input, #cx-concept-0 textarea").first.fill("")
    page.locator("#cx-steer-prompt textarea").fill(" ")
    page.locator("#cx-steer-prompt textarea").press("Enter")
    expect(page.locator("#cx-steer-said")).to_contain_text("text is empty")
    bad = tab("?view=steer&edits=9999:scale:nan")
    expect(bad.get_by_role("alert")).to_contain_text("this link cannot be used", ignore_case=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_readable(tab: Open, scheme: str) -> None:
    page = tab(color_scheme=scheme)
    contrasts = [token.evaluate(CONTRAST) for token in page.locator(".cx-token").all()]
    assert min(contrasts) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
