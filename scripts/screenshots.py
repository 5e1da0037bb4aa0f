"""Pictures of the dashboard's pages for docs/images, in both themes and at two widths.

python scripts/screenshots.py URL TOKEN      of a server that has a finished job; needs chromium and playwright
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
QUESTION = "8128 S. DR MARTIN LUTHER KING JR Drive"


def pages(page: Page, url: str) -> dict[str, str]:
    """Paths by the name of the picture."""
    page.goto(url)
    job = page.locator("td a").first.get_attribute("href") or "/"
    page.goto(f"{url}/data")
    file = page.locator("td a").last.get_attribute("href") or "/data"
    return {"home": "/", "job": job, "data": file, "playground": "/playground"}


def ask(page: Page) -> None:
    page.fill("[name=user]", QUESTION)
    page.fill("[name=tokens]", "80")
    page.click("text=Ask all three")
    for pane in ("base", "prompted", "tuned"):
        page.wait_for_selector(f"#pane-{pane} .keep >> visible=true", timeout=120_000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("token")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme, width in (("light", 1100), ("dark", 420)):
            context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 800})
            page = context.new_page()
            page.goto(f"{given.url}/?token={given.token}")
            for name, path in pages(page, given.url).items():
                page.goto(given.url + path)
                page.wait_for_timeout(1000)
                if name == "playground":
                    ask(page)
                page.screenshot(path=IMAGES / f"{name}-{theme}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
