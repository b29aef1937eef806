"""Make the pictures of docs/viewer.md: python docs/screenshots.py (needs Chromium, and `pip install playwright`).

They show the two guests of examples/first-host, at moments that are found by searching, as a person would.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parent
EXAMPLE = DOCS.parent / "examples" / "first-host"
PARAVIRT = (sys.executable, "-c", "from toolstack.cli import main; main()")

SHOTS = {
    "ring": ("ring_push xvda req", 1, "1", "light"),
    "events": ("EVTCHNOP_send d1v0", 3, "2", "dark"),
    "xenstore": ("xenbus_state d1v0 Connected", 0, "6", "light"),
}
"""Picture → what to search for, how many matches further, the panel's key, the colours."""


def make_page(directory: Path) -> Path:
    """Run the example and return the page of its trace."""
    shutil.copytree(EXAMPLE, directory, dirs_exist_ok=True)
    with (directory / "guest1.img").open("wb") as image:
        image.truncate(16 << 20)
    options = ["run", "--quiet", "--trace", "host.trace", "--trace-state", "guest1.cfg", "guest2.cfg"]
    subprocess.run([*PARAVIRT, *options], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    convert = ["trace", "host.trace", "--format", "html", "-o", "host.html"]
    subprocess.run([*PARAVIRT, *convert], cwd=directory, check=True)
    return directory / "host.html"


def shoot(page: Page, query: str, further: int, panel: str, target: Path) -> None:
    """Go to a moment, and take a picture of it."""
    page.wait_for_function("window.viewer")
    page.keyboard.press("/")
    page.keyboard.type(query)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    for _ in range(further):
        page.keyboard.press("n")
    page.keyboard.press(panel)
    for _ in range(5):
        page.keyboard.press("+")
    page.screenshot(path=target)


def main() -> None:
    """Write docs/viewer/*.png."""
    (DOCS / "viewer").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        file = make_page(Path(name))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for shot, (query, further, panel, colours) in SHOTS.items():
            page = browser.new_page(viewport={"width": 1360, "height": 720}, color_scheme=colours)
            page.goto(file.as_uri())
            shoot(page, query, further, panel, DOCS / "viewer" / f"{shot}.png")
        browser.close()


if __name__ == "__main__":
    main()
