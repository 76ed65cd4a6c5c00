"""Takes pictures of the page after a short chat, for the README.

    python -m tests.screenshots OUT_DIR --url http://127.0.0.1:7860 --readme

Writes desktop-light.png, desktop-dark.png, phone.png, and one of every other tab (npcs.png,
knowledge.png, scenes.png, model.png, api.png); with --readme those that the README shows are laid into
engine/ui/assets/ too, in few colours, the tabs at three quarters of their size. Needs a running app,
Playwright and Chromium; each picture is of a player of its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from engine.ui.words import EN

TABS = ("npcs", "knowledge", "scenes", "model", "api")
ASSETS = Path(__file__).resolve().parent.parent / "engine" / "ui" / "assets"
COLOURS = 256
LONGEST_MS = 180_000
NPC = "Silvia"
PRESET = "in_progress · give_item"
DESKTOP = {"viewport": {"width": 1440, "height": 960}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}


def chat(page: Any, url: str) -> None:
    """Greet an NPC, then say what its first gift asks for."""
    page.set_default_timeout(LONGEST_MS)
    page.goto(url)
    page.wait_for_selector("#pc-status .pc-good")
    page.click("#pc-npc input")
    page.locator("#pc-npc [role=option]", has_text=NPC).first.click()
    page.wait_for_function(f"document.querySelector('#pc-card h2').innerText.includes('{NPC}')")
    page.fill("#pc-say textarea", "Hello. I did not mean to startle you.")
    send(page)
    page.click("#pc-preset input")
    page.locator("#pc-preset [role=option]", has_text=PRESET).first.click()
    page.wait_for_selector("#pc-will-send li")
    send(page)
    page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
    page.wait_for_timeout(800)


def send(page: Any) -> None:
    """Send what stands in the box and wait for the whole line."""
    page.click("#pc-send")
    page.wait_for_selector("#pc-inspector .pc-writing")
    page.wait_for_selector("#pc-inspector .pc-flags")
    page.wait_for_selector("#pc-inspector:not(:has(.pc-writing))")
    page.wait_for_selector("#pc-send")


def take(browser: Any, url: str, out: Path, name: str, **options: Any) -> None:
    """Take one picture; the phone's shows the whole page, one named after a tab that tab."""
    context = browser.new_context(**options)
    page = context.new_page()
    chat(page, url)
    if name in TABS:
        page.get_by_role("tab", name=EN[f"tab_{name}"]).click()
        page.wait_for_timeout(1500)
        if name == "npcs":
            page.click("#pc-ed-rules button.label-wrap")
            page.locator("#pc-ru-stage").scroll_into_view_if_needed()
            page.wait_for_timeout(800)
        if name == "scenes":
            page.click("#pc-sc-run")
            page.wait_for_selector("#pc-sc-told tbody tr")
            page.wait_for_timeout(500)
    page.screenshot(path=out / f"{name}.png", full_page=name == "phone")
    context.close()


def lay_in_readme(taken: Path, name: str, width: int) -> None:
    """Write a picture for the README: `width` pixels, a palette in place of full colour."""
    with Image.open(taken) as whole:
        size = (width, round(whole.height * width / whole.width))
        small = whole.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small.quantize(COLOURS).save(ASSETS / f"{name}.png", optimize=True)


def main() -> int:
    """Read the command line and take the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--readme", action="store_true", help="lay them into the README as well")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=path, args=flags)
        take(browser, given.url, given.out, "desktop-light", color_scheme="light", **DESKTOP)
        take(browser, given.url, given.out, "desktop-dark", color_scheme="dark", **DESKTOP)
        take(browser, given.url, given.out, "phone", color_scheme="light", **PHONE)
        for tab in TABS:
            take(browser, given.url, given.out, tab, color_scheme="light", **DESKTOP)
        browser.close()
    if given.readme:
        lay_in_readme(given.out / "desktop-light.png", "chat", 1440)
        for tab in TABS:
            lay_in_readme(given.out / f"{tab}.png", tab, 1080)
    return 0


if __name__ == "__main__":
    sys.exit(main())
