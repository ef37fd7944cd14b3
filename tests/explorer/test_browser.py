"""The four views, used by a person with Debian's Chromium."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cocomix.explorer.text_view import read_text
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
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  const paint = (colours) => {  // one over the other, as rendered
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  };
  const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  const behind = ["white"];
  for (let part = element; part; part = part.parentElement) behind.splice(1, 0, getComputedStyle(part).backgroundColor);
  const [a, b] = [light(paint(behind)), light(paint([...behind, getComputedStyle(element).color]))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
PARTS = "button, input, textarea, table, label, p".replace(", ", ", main ")
CUT_OFF = f"""() => [...document.querySelectorAll("main {PARTS}")]
  .filter((part) => part.offsetParent && !part.closest("table table, td, th"))
  .filter((part) => {{
    const box = part.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 1 || box.left < -1);
  }})
  .map((part) => part.outerHTML.slice(0, 120))"""
TURNED = "#cx-turned textarea, #cx-turned input"
ENDED = re.compile("acts|changes nothing|nothing is turned", re.IGNORECASE)

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

    def open_tab(
        path: str = "", view: str | None = None, before: Callable[[Any], None] = lambda page: None, **options: Any
    ) -> Any:
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
        before(page)
        page.goto(path if path.startswith("http") else address + path)
        page.wait_for_selector("#cx-tokens .token, [role=alert]", state="attached")
        if view is not None:
            page.get_by_role("tab", name=view).click()
        return page

    open_tab.complaints = complaints  # type: ignore[attr-defined]
    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []


def texts(page: Any) -> dict[str, str]:
    found = {name: page.locator(f"#cx-{name} .textfield").inner_text() for name in ("untouched", "steered", "hinted")}
    return {name: " ".join(text.split()) for name, text in found.items()}


def generate(page: Any) -> dict[str, str]:
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#cx-steer-said")).to_contain_text(ENDED)
    return texts(page)


def turn(page: Any, concept: Any, by: str = "30") -> None:
    page.locator("#cx-prompt textarea").fill("the list of")
    page.locator(TURNED).fill(str(concept))
    page.locator("#cx-by input[type=number]").fill(by)
    page.locator("#cx-by input[type=number]").press("Tab")


def test_text(tab: Open, subject: Any) -> None:
    page = tab()
    text = page.locator("#cx-text textarea")
    text.fill("list of the items and a string")
    text.press("Enter")
    tokens = page.locator("#cx-tokens .token")
    expect(tokens).to_have_count(subject.encode("list of the items and a string").shape[1])
    tokens.nth(2).click()
    expect(page.locator("#cx-place")).to_contain_text("Token 3")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#cx-place")).to_contain_text("Token 4")
    strongest = page.locator("#cx-strongest").get_by_role("radio").nth(1)
    concept = strongest.get_attribute("value")
    strongest.check()
    expect(page.locator("#cx-found")).to_contain_text(f"Concept {concept}")
    page.wait_for_url(f"**concept={concept}&token=4")


def test_bars_of_equal_probabilities_are_equally_wide(tab: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """They once stood in columns of different widths, each scaled by its own."""
    equal = [{"the": 0.25, "a much longer token": 0.25, "x": 0.05}] * 48

    def even(*args: Any) -> Any:
        return read_text(*args)._replace(following=equal, without=equal)

    monkeypatch.setattr("cocomix.explorer.text_view.read_text", even)
    page = tab()
    page.get_by_role("button", name="Read").click()
    bars = page.locator("#cx-after meter, #cx-without meter")
    expect(bars).to_have_count(6)
    widths = [bar.bounding_box()["width"] for bar in bars.all()]
    assert widths[0] == pytest.approx(widths[1], abs=1)
    assert widths[:3] == pytest.approx(widths[3:], abs=1)
    assert widths[2] == pytest.approx(widths[0] / 5, abs=1)


def test_what_is_typed_is_never_html(tab: Open) -> None:
    page = tab()
    text = page.locator("#cx-text textarea")
    text.fill(EVIL[:24])
    text.press("Enter")
    expect(page.locator("#cx-tokens")).to_contain_text("<")
    assert "".join(page.locator("#cx-tokens .token .text").all_text_contents()) == EVIL[:24]
    page.get_by_role("tab", name="Steer").click()
    page.locator(TURNED).fill(EVIL)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#cx-steer-said")).to_contain_text("<script>")
    assert page.locator("main script, main img[src='x']").count() == 0


def test_concept(tab: Open, subject: Any) -> None:
    page = tab(view="Concept")
    card, listed = page.locator("#cx-card h3"), page.locator("#cx-hits").get_by_role("radio")
    first, second = (int(listed.nth(place).get_attribute("value")) for place in range(2))
    expect(card).to_contain_text(f"{first} {subject.atlas.name(first)}")
    expect(page.locator("#cx-predicted mark").first).to_be_visible()
    listed.nth(1).check()
    expect(card).to_contain_text(f"{second} {subject.atlas.name(second)}")
    page.locator("#cx-nearest").get_by_role("radio").first.check()
    near = subject.atlas.card(second).nearest[0][0]
    expect(card).to_contain_text(f"{near} {subject.atlas.name(near)}")
    page.wait_for_url(f"**concept={near}")
    page.get_by_role("button", name="Steer it").click()
    expect(page.locator(TURNED)).to_have_value(str(near))
    page.get_by_role("tab", name="Concept").click()
    page.get_by_role("button", name="Colour the text by it").click()
    expect(page.locator("#cx-found")).to_contain_text(f"Concept {near}")


@pytest.mark.parametrize("view", ["Text", "Concept", "Compare"])
def test_a_link_restores_what_was_shown(tab: Open, view: str) -> None:
    page = tab(view=view)
    listed = page.locator("#cx-hits").get_by_role("radio").nth(2)
    third = listed.get_attribute("value") if view == "Concept" else None
    {
        "Text": lambda: page.locator("#cx-tokens .token").nth(3).click(),
        "Concept": lambda: listed.check(),
        "Compare": lambda: page.get_by_label("training FLOPs").check(),
    }[view]()
    page.wait_for_url(re.compile({"Text": "token=4", "Concept": rf"concept={third}$", "Compare": "axis=flops"}[view]))
    fresh = tab(page.url)
    expect(fresh.get_by_role("tab", name=view)).to_have_attribute("aria-selected", "true")
    shown = {"Text": "#cx-place", "Concept": "#cx-card", "Compare": "#cx-curves"}[view]
    expect(fresh.locator(shown)).to_have_text(page.locator(shown).inner_text(), use_inner_text=True)
    assert fresh.url == page.url


def test_a_link_to_a_text_wins_over_the_selection_of_the_first_tab(tab: Open) -> None:
    """Gradio selects the first tab as the page loads, and that event carries the default text and token."""
    held: list[Any] = []

    def hold_the_first(route: Any) -> None:
        held.append(route) if not held else route.continue_()

    link = tab().url.replace("token=1", "token=4")
    fresh = tab(link, before=lambda page: page.route("**/queue/join*", hold_the_first))
    expect(fresh.locator("#cx-place")).to_contain_text("Token 4")
    with fresh.expect_response("**/queue/join*"):
        held[0].continue_()
    fresh.get_by_role("button", name="Read").wait_for()
    fresh.wait_for_timeout(1_500)  # an answer that must not come has no sign to wait for
    expect(fresh.locator("#cx-place")).to_contain_text("Token 4")
    assert fresh.url == link


def test_steering_changes_the_text_and_a_link_restores_it(tab: Open, subject: Any) -> None:
    page = tab(view="Steer")
    output = subject.model(input_ids=subject.encode("the list of"))
    turn(page, int(output.concept_ids[0, -1, 0]))
    page.locator("#cx-hint textarea, #cx-hint input").fill("a")
    shown = generate(page)
    assert all("list of" in text for text in shown.values())
    assert shown["steered"] != shown["untouched"]
    expect(page.locator("#cx-link textarea, #cx-link input")).to_have_value(page.url)
    fresh = tab(page.url)
    expect(fresh.locator("#cx-told")).to_contain_text("restored")
    expect(fresh.locator("#cx-by input[type=number]")).to_have_value("30")
    assert generate(fresh) == shown


def test_a_link_to_another_run_is_refused(tab: Open, subject: Any) -> None:
    for query, says in (
        ("run=0123456789ab&view=steer&prompt=secret", subject.fingerprint),
        ("view=text&text=secret", subject.fingerprint),
        (f"run={subject.fingerprint}&view=steer&by=nan", "nan"),
    ):
        page = tab(f"?{query}")
        expect(page.get_by_role("alert")).to_contain_text(says)
        assert "secret" not in page.content().replace(page.url, "")


def test_suggestions_are_added_to_the_logit(tab: Open) -> None:
    page = tab(view="Steer")
    page.locator("#cx-prompt textarea").fill("list of the items and the value of a key")
    page.get_by_role("button", name="Suggest concepts").click()
    found = page.locator("#cx-suggested").get_by_role("radio").first
    concept, amount = found.get_attribute("value").split("+")
    found.check()
    expect(page.locator(TURNED)).to_have_value(concept)
    expect(page.get_by_role("radio", name="add")).to_be_checked()
    assert float(page.locator("#cx-by input[type=number]").input_value()) == float(amount)


def test_two_visitors_do_not_see_each_others_edits(tab: Open) -> None:
    one, other = tab(view="Steer"), tab(view="Steer")
    turn(one, 3)
    other.locator("#cx-prompt textarea").fill("the list of")
    one.get_by_role("button", name="Generate").click()
    plain = generate(other)
    expect(one.locator("#cx-steer-said")).to_contain_text(ENDED)
    assert texts(one)["untouched"] == plain["untouched"] != texts(one)["steered"]
    expect(other.locator(TURNED)).to_have_value("")


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
    turn(page, 3)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#cx-steer-said")).to_contain_text("of 24 tokens")
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
    lines = page.locator("#cx-curves svg g.mark-line path")
    expect(lines.first).to_be_visible()
    page.get_by_label("training FLOPs").check()
    expect(page.locator("#cx-curves svg")).to_contain_text("training FLOPs")
    expect(page.locator("#cx-table")).to_contain_text("baseline")


def test_mistakes_are_answered_in_words(tab: Open) -> None:
    page = tab()
    text, alert = page.locator("#cx-text textarea"), page.get_by_role("alert")
    for typed, says in (("", "empty"), ("the " * 60, "48 tokens")):
        text.fill(typed)
        text.press("Enter")
        expect(alert).to_contain_text(says)
    page.get_by_role("tab", name="Steer").click()
    for concept in (str(CONCEPTS), "-1", "zzzzqq"):
        page.locator(TURNED).fill(concept)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#cx-steer-said")).to_contain_text(concept)


def test_a_page_of_another_site_cannot_frame_it(chromium: Any, address: str) -> None:
    page = chromium.new_context().new_page()
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text))
    page.set_content(f'<iframe src="{address}" width="600" height="400"></iframe>')
    page.wait_for_timeout(3_000)
    assert page.frames[1].locator("#cx-header").count() == 0
    assert any("frame" in said.lower() for said in refused)


def test_a_script_slipped_into_the_page_does_not_run(tab: Open) -> None:
    page = tab()
    page.evaluate(
        """() => {
          window.broken = [];
          document.addEventListener("securitypolicyviolation", (event) => window.broken.push(event.violatedDirective));
          document.body.insertAdjacentHTML("beforeend", "<i id=x onclick='window.hacked = 1'>x</i>");
          document.getElementById("x").click();
          const script = document.createElement("script");
          script.textContent = "window.hacked = 2";
          document.body.append(script);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("window.broken.length") >= 2
    tab.complaints.clear()  # type: ignore[attr-defined]


def test_by_keyboard_alone(tab: Open) -> None:
    page = tab()

    def tab_to(what: str, key: str = "Tab") -> None:
        for _ in range(60):
            page.keyboard.press(key)
            if page.evaluate("(what) => document.activeElement.matches(what)", what):
                return
        raise AssertionError(what)

    tab_to("#cx-text textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("the list of items")
    page.keyboard.press("Enter")
    expect(page.locator("#cx-tokens")).to_contain_text("list")
    tab_to("#cx-tokens .token")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#cx-place")).to_contain_text("Token 2")
    tab_to("[data-tab-id=steer]", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Steer")).to_have_attribute("aria-selected", "true")
    tab_to(TURNED)
    page.keyboard.type("3")
    tab_to("button.primary")
    page.keyboard.press("Enter")
    expect(page.locator("#cx-steer-said")).to_contain_text(ENDED)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1366])
@pytest.mark.parametrize("view", ["Text", "Concept", "Steer", "Compare"])
def test_nothing_is_cut_off_or_unreadable(tab: Open, view: str, width: int, scheme: str) -> None:
    page = tab(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.get_by_role("tab", name=view).click()
    page.wait_for_timeout(1_500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT_OFF) == []
    if view == "Text":
        contrasts = [token.evaluate(CONTRAST) for token in page.locator("#cx-tokens .token .text").all()]
        assert min(contrasts) >= 4.5
