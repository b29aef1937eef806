"""The page in a browser: Chromium, without a window and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypervisor.abi import tracepoints as tp
from hypervisor.trace import TraceWriter, read_trace
from tests.viewer.test_viewer_words import page_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Page:
    """The viewer, and what it complained of."""

    def __init__(self, browser: Any, file: Path, event: int = 0) -> None:
        self.context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda text: self.complaints.append(text.text) if text.type == "error" else None)
        self.tab.on(
            "request", lambda request: self.complaints.append(request.url) if "file:" not in request.url else None
        )
        self.tab.goto(f"{file.as_uri()}#event={event}")
        self.tab.wait_for_function("window.viewer")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    @property
    def now(self) -> int:
        number: int = self.tab.evaluate("viewer.now")
        return number

    def state(self) -> Any:
        return self.tab.evaluate("viewer.tables.maps.map((map) => [...map].sort())")

    def text(self, place: str) -> str:
        text: str = self.tab.inner_text(place)
        return text


@pytest.fixture(scope="module")
def file(state_trace: Path) -> Path:
    page_of(state_trace)
    return state_trace.with_suffix(".html")


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Page]:
    page = Page(browser, file)
    yield page
    page.context.close()
    assert page.complaints == []


def find(page: Page, query: str) -> int:
    page.press("/")
    page.tab.keyboard.type(query)
    page.press("Enter", "Escape")
    return page.now


def test_steps_forward_and_back(page: Page) -> None:
    page.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    assert page.now == 2
    page.tab.click("#step")
    page.tab.click("#back")
    page.tab.click("#back")
    assert page.now == 1
    page.press("PageDown")
    assert page.now == 101
    page.press("End")
    last = page.now
    assert last == page.tab.evaluate("viewer.count") - 1
    page.press("ArrowRight")
    assert page.now == last
    page.press("Home", "ArrowLeft")
    assert page.now == 0


def test_back_is_the_way_forward_undone(page: Page) -> None:
    before = {}
    for event in (0, 700, 1500, 2500):
        page.tab.evaluate(f"viewer.go({event})")
        before[event] = page.state()
    page.press("End")
    assert page.state() != before[2500]
    for event in (2500, 1500, 700, 0):
        page.tab.evaluate(f"viewer.go({event})")
        assert page.state() == before[event]


def test_shift_stays_with_the_vcpu(page: Page) -> None:
    find(page, "d1v0 upcall")
    page.press("Shift+ArrowRight")
    who = page.tab.evaluate("viewer.data.whos[viewer.data.events.who[viewer.now]]")
    assert who == "d1v0"


def test_search_goes_around(page: Page) -> None:
    first = find(page, "ring_push xvda req")
    found = int(page.text("#matches").split()[0])
    assert found >= 2
    places = [first]
    for _ in range(found - 1):
        page.press("n")
        places.append(page.now)
    assert places == sorted(set(places))
    page.press("n")
    assert page.now == first
    page.press("N")
    assert page.now == places[-1]
    find(page, "this is nowhere")
    assert page.text("#matches") == "0 found"


def test_a_ring_at_a_push(page: Page) -> None:
    find(page, "ring_push xvda req")
    page.press("1")
    text = page.text("#panel")
    assert "vbd/1/51712:req" in text
    assert "req_prod" in text
    assert "rsp_event" in text
    assert "READ id=" in text or "WRITE id=" in text
    assert page.tab.locator(".slots .request.touched").count() >= 1
    assert "io/ring.h" in page.text("#narration")


def test_the_other_panels(page: Page) -> None:
    find(page, "gnttab_map ref=8")
    # A record tells of a single operation; the state is that after the whole hypercall.
    find(page, "GNTTABOP_map_grant_ref")
    wanted = {
        "2": ("VIRQ_TIMER", "evtchn_upcall_pending"),
        "3": ("permit_access", "mapped by"),
        "4": ("Frames, by owner and type", "l4 table"),
        "5": ("/local/domain/0/backend/vbd/1/51712", "InitWait"),
        "6": ("backend", "feature-flush-cache"),
    }
    for key, words in wanted.items():
        page.press(key)
        for word in words:
            assert word in page.text("#panel"), (key, word)


def test_a_click_on_the_timeline_and_in_the_list(page: Page) -> None:
    box = page.tab.locator("#canvas").bounding_box()
    page.tab.mouse.click(box["x"] + box["width"] / 4, box["y"] + 48)
    clicked = page.now
    assert clicked > 100
    page.tab.locator(".event").nth(12).click()
    assert page.now not in (0, clicked)
    span = page.tab.evaluate("viewer.timeline.to - viewer.timeline.from")
    page.press("+", "+")
    assert page.tab.evaluate("viewer.timeline.to - viewer.timeline.from") < span / 2
    page.press("0")
    assert page.tab.evaluate("viewer.timeline.to - viewer.timeline.from") >= span


def test_help_opens_and_closes(page: Page) -> None:
    page.press("?")
    assert page.tab.locator("#help").evaluate("(dialog) => dialog.open")
    page.press("Escape")
    assert not page.tab.locator("#help").evaluate("(dialog) => dialog.open")


def test_it_is_named_for_those_who_do_not_see_it(page: Page) -> None:
    assert page.tab.locator("[role=tab][aria-selected=true]").count() == 1
    assert page.tab.locator("[role=option][aria-selected=true]").count() == 1
    nameless = page.tab.evaluate(
        "[...document.querySelectorAll('button, input, [role=listbox], [role=img]')]"
        ".filter((one) => !one.textContent.trim() && !one.ariaLabel).map((one) => one.outerHTML)"
    )
    assert nameless == []


def test_markup_in_a_trace_is_text(browser: Any, tmp_path: Path) -> None:
    with TraceWriter((tmp_path / "bad.trace").open("wb"), seed=1) as writer:
        for text in ("</script><script>window.bad = 1</script>", "<img src=x onerror='window.bad = 1'>"):
            writer.emit(1, 0, tp.GUEST_NOTE, text)
            writer.emit(0, 0, tp.STATE_NODE, f"/{text}", text, "n0")
    page_of(tmp_path / "bad.trace")
    page = Page(browser, tmp_path / "bad.html", event=1)
    page.press("6")
    assert "onerror" in page.text("#panel")
    assert "onerror" in page.text("#narration")
    assert page.tab.evaluate("window.bad === undefined")
    page.context.close()
    assert page.complaints == []


def test_a_hundred_thousand_events(browser: Any, state_trace: Path, tmp_path: Path) -> None:
    """The same host over and over: the page stays usable."""
    long = tmp_path / "long.trace"
    header, stream = read_trace(state_trace)
    records, events, now = list(stream), 0, 0
    with TraceWriter(long.open("wb"), seed=0, about=header["about"]) as writer:
        writer.now = lambda: now
        for life in range(40):
            for record in records:
                now = record[0] + life * 2_000_000
                writer.emit(*record[1:])
                events += record[3] not in tp.STATES
    assert events > 100_000
    page_of(long)
    page = Page(browser, long.with_suffix(".html"))
    page.press("End")
    assert page.now == events - 1
    assert find(page, "ring_push xvda req") < events
    page.press("n", "N", "PageUp", "ArrowLeft", "-", "0")
    # No step may make a person wait: an animation frame comes round in between.
    slowest = page.tab.evaluate(
        "(() => { let most = 0; for (let i = 0; i < 40; i++) { const t = performance.now();"
        " viewer.go((i * 9973) % viewer.count); most = Math.max(most, performance.now() - t); } return most; })()"
    )
    assert slowest < 5000
    page.context.close()
    assert page.complaints == []
