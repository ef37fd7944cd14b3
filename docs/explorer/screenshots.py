"""Take the pictures of this folder from a running explorer.

cocomix explore RUN --compare OTHER_RUN
python docs/explorer/screenshots.py http://127.0.0.1:7860 "The old man looked at the sea, and then" 607 12 "he said"
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

HERE = Path(__file__).parent
TEXT = "The old man looked at the sea for a long time, and then he said that he would not go home again."
WIDE, PHONE = (1366, 900), (390, 844)


def open_view(browser: Browser, address: str, view: str, size: tuple[int, int] = WIDE, scheme: str = "light") -> Page:
    """A view on a screen of this size."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#cx-tokens .token")
    if view != "Text":
        page.get_by_role("tab", name=view).click()
    return page


def shoot(page: Page, name: str) -> None:
    """The page as it stands, when nothing moves any more; of a long one its beginning."""
    page.wait_for_timeout(1_500)
    width, height = page.evaluate("[innerWidth, Math.min(document.documentElement.scrollHeight, 1700)]")
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    page.screenshot(path=HERE / f"{name}.png", full_page=True, clip=clip)


def main(address: str, prompt: str, concept: str, by: str, hint: str) -> None:
    """One picture per view, the text view in the dark too, and the concept view on a phone."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = open_view(browser, address, "Text", scheme=scheme)
            page.locator("#cx-text textarea").fill(TEXT)
            page.locator("#cx-text textarea").press("Enter")
            expect(page.locator("#cx-tokens")).to_contain_text("home", timeout=60_000)
            page.locator("#cx-tokens .token").nth(5).click()
            expect(page.locator("#cx-place")).to_contain_text("Token 6", timeout=60_000)
            shoot(page, f"text_{scheme}")
        for size, name in ((WIDE, "concept"), (PHONE, "concept_phone")):
            page = open_view(browser, address, "Concept", size)
            page.wait_for_selector("#cx-predicted mark", timeout=60_000)
            page.locator("#cx-hits").get_by_role("radio").nth(1).check()
            expect(page.locator("#cx-effects")).to_contain_text("Adding", timeout=60_000)
            shoot(page, name)
        page = open_view(browser, address, "Steer")
        page.locator("#cx-prompt textarea").fill(prompt)
        page.get_by_role("button", name="Suggest concepts").click()
        page.wait_for_selector("#cx-suggested input", timeout=60_000)
        page.locator("#cx-turned textarea, #cx-turned input").fill(concept)
        page.locator("#cx-by input[type=number]").fill(by)
        page.locator("#cx-hint textarea, #cx-hint input").fill(hint)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#cx-steer-said")).to_contain_text("positions", timeout=120_000)
        shoot(page, "steer")
        page = open_view(browser, address, "Compare")
        page.wait_for_selector("#cx-curves svg", timeout=60_000)
        shoot(page, "compare")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:6])
