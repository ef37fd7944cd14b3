"""Take the pictures of this folder from a running explorer.

cocomix explore RUN --compare OTHER_RUN
python docs/explorer/screenshots.py http://127.0.0.1:7860 "The following" 697:add:20
"""

import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, expect, sync_playwright

HERE = Path(__file__).parent
TEXT = "The old man looked at the sea for a long time, and then he said that he would not go home again."


def open_page(browser: Browser, address: str, scheme: str, shows: str = ".cx-token") -> Page:
    """The page on a laptop's screen."""
    page = browser.new_context(viewport={"width": 1366, "height": 820}, color_scheme=scheme).new_page()
    page.goto(address)
    page.wait_for_selector(shows)
    return page


def main(address: str, prompt: str, edits: str) -> None:
    """One picture per view, and the text view in the dark."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = open_page(browser, address, scheme)
            page.locator("#cx-text-prompt textarea").fill(TEXT)
            page.locator("#cx-text-prompt textarea").press("Enter")
            expect(page.locator("#cx-tokens")).to_contain_text("home")
            page.locator(".cx-token").nth(5).click()
            expect(page.locator("#cx-detail h3")).to_contain_text("Token 6")
            page.wait_for_timeout(400)
            page.screenshot(path=HERE / f"text_{scheme}.png")
        page = open_page(browser, address, "light")
        page.get_by_role("tab", name="Concept").click()
        page.locator("#cx-hits .cx-concept").nth(6).click()
        page.wait_for_selector("#cx-card h3")
        page.wait_for_timeout(400)
        page.screenshot(path=HERE / "concept.png")
        link = urlencode({"view": "steer", "prompt": prompt, "edits": edits})
        page = open_page(browser, f"{address}/?{link}", "light", "#cx-run")
        expect(page.locator("#cx-steer-said")).to_contain_text("restored")
        page.get_by_role("button", name="Suggest concepts").click()
        page.wait_for_selector("#cx-suggested .cx-concept")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#cx-steer-said")).to_contain_text("tokens, seed", timeout=120_000)
        page.set_viewport_size({"width": 1366, "height": 1000})
        page.wait_for_timeout(400)
        page.screenshot(path=HERE / "steer.png")
        page.set_viewport_size({"width": 1366, "height": 820})
        page.get_by_role("tab", name="Compare").click()
        page.wait_for_selector("#cx-curves svg")
        page.wait_for_timeout(400)
        page.screenshot(path=HERE / "compare.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
