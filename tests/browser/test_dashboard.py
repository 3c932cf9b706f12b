"""The page in a real browser: what it shows, that it stays text, and what keys and buttons do."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.browser import scenes
from tests.browser.chromium import PROGRAM, BrowserError, Page
from tests.browser.conftest import Open
from tests.gateway.serving import Served, closed, serving
from tests.support import Bench
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
]

Picture = Callable[[Page, str], None]
PHONE: dict[str, Any] = {"width": 375, "height": 812, "mobile": True, "scale": 2}


@pytest.fixture
def served(bench: Bench) -> Iterator[Served]:
    with serving(bench.dsn) as found:
        yield found


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    """Takes a picture, and checks that it is one; kept where ``PGVEC_TEST_SCREENSHOTS`` says."""

    def take(page: Page, name: str) -> None:
        folder = Path(os.environ.get("PGVEC_TEST_SCREENSHOTS") or tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        file = page.screenshot(folder / f"{name}.png").read_bytes()
        tall = int(page.run("document.documentElement.scrollHeight"))
        for part in range(tall // 1500 + 1 if tall > 2500 else 0):
            page.screenshot(folder / f"{name}-{part + 1}.png", part * 1500, min(1500, tall - part * 1500))
        assert file.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", file[16:24])
        assert (width > 300, height > 300) == (True, True)

    return take


def live(page: Page) -> None:
    page.wait(
        "document.querySelector('#link').dataset.state === 'open'"
        " && document.querySelector('#total-done').innerText !== '–'"
    )


def assert_sound(page: Page) -> None:
    """Nothing complains, nothing comes from elsewhere, and nothing sticks out to the side."""
    assert page.complaints == []
    origin = page.run("location.origin")
    assert [url for url in page.requests if not url.startswith(origin)] == []
    wide = page.run(
        "document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]"
        ".filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 100))"
    )
    assert wide == [], "the page is wider than the screen"


VIEWS: dict[str, dict[str, Any]] = {
    "wide": {},
    "dark": {"dark": True},
    "phone": PHONE,
    "phone-dark": {**PHONE, "dark": True},
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scene", ["empty", "idle", "busy", "failures"])
def test_it_looks_right(bench: Bench, served: Served, open_page: Open, picture: Picture, scene: str, view: str) -> None:
    if scene == "idle":
        scenes.idle(bench)
    elif scene != "empty":
        scenes.busy(bench)
    if scene == "failures":
        scenes.failures(bench)
        scenes.failures(bench, "letters")
    page = open_page(f"{served.url}/dashboard", **VIEWS[view])
    page.wait(
        "document.querySelector('#link').dataset.state === 'open'"
        " && document.querySelector('#total-rate').innerText !== '–'"
    )
    assert_sound(page)
    picture(page, f"{scene}-{view}")


def test_what_it_shows_is_what_the_database_says(bench: Bench, served: Served, open_page: Open) -> None:
    scenes.busy(bench)
    scenes.failures(bench)
    page = open_page(f"{served.url}/dashboard")
    live(page)
    names = page.texts("#vectorizer-rows .open")
    assert names == ["articles", "letters", "notes", "products", "reviews", "tickets", "wiki_pages"]
    assert page.texts("#vectorizer-rows .badge") == [bench.progress(name).state for name in names]
    assert page.text("#vectorizer-rows .counts") == "48.8 % 48,758 of 100,000 rows"
    assert page.run("document.querySelector('#vectorizer-rows .bar').getAttribute('aria-valuenow')") == "48"
    assert "/s" in page.text("#vectorizer-rows .c-rate")
    assert " to " in page.text("#vectorizer-rows .c-left")
    assert [text for text in page.texts("#vectorizer-rows .reason") if "401" in text]
    # Those in trouble first.
    assert page.texts("#worker-rows th")[:2] == ["old-laptop:990", "mac-studio.local:812"]
    assert page.texts(".class-line code") == ["TooLongError", "22021", "NotFiniteError"]
    assert page.texts(".class-line strong") == ["37", "4", "1"]
    assert page.run("document.querySelectorAll('#chart .column').length") == 15
    assert "rows/s" in page.text("#chart") or page.run(
        "document.querySelector('#chart').textContent.includes('rows/s')"
    )
    assert "at most" in page.text("#chart-says")
    assert_sound(page)


def test_it_goes_on_live_and_nothing_jumps(bench: Bench, served: Served, open_page: Open) -> None:
    scenes.busy(bench)
    page = open_page(f"{served.url}/dashboard")
    live(page)
    page.run(
        "window.shifts = 0; new PerformanceObserver((list) =>"
        " list.getEntries().forEach((one) => { window.shifts += one.value; })).observe({type: 'layout-shift'});"
        " document.querySelector('#vectorizer-rows .act').focus(); 0"
    )
    for done in (60_000, 61_234):
        bench.sql("UPDATE pgvec.counters SET rows_right = %s WHERE rows_right IN (48800, 60000)", done)
        page.wait(f"document.querySelector('#vectorizer-rows .counts').innerText.includes('{done:,}')")
    assert page.run("window.shifts") < 0.01
    assert page.run("document.activeElement.className") == "act"
    assert_sound(page)


def test_pause_and_resume_with_the_keyboard(bench: Bench, served: Served, open_page: Open) -> None:
    scenes.source(bench, "docs", 10)
    bench.enqueue("docs", "body")
    page = open_page(f"{served.url}/dashboard")
    live(page)
    for _ in range(40):
        page.key("Tab")
        if page.run("document.activeElement.className") == "act":
            break
    assert page.run("document.activeElement.getAttribute('aria-label')") == "Pause docs"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.key("Enter")
    wait_until(lambda: bench.progress("docs").state == "paused", what="the pause")
    page.wait("document.querySelector('#said').innerText === 'docs is paused.'")
    page.wait("document.querySelector('.act').innerText === 'Resume'")
    assert page.run("document.activeElement.className") == "act"
    page.key("Space")
    wait_until(lambda: bench.progress("docs").state == "active", what="the resumption")
    assert_sound(page)


def test_every_control_can_be_reached_and_has_a_name(bench: Bench, served: Served, open_page: Open) -> None:
    scenes.busy(bench)
    scenes.failures(bench)
    page = open_page(f"{served.url}/dashboard")
    live(page)
    nameless = page.run(
        "[...document.querySelectorAll('button, input, select, a, summary')].filter((one) => one.checkVisibility()"
        " && !(one.getAttribute('aria-label') || one.innerText || one.labels?.length)).map((one) => one.outerHTML)"
    )
    assert nameless == []
    reached = set()
    for _ in range(120):
        page.key("Tab")
        reached.add(page.run("document.activeElement.getAttribute('aria-label') || document.activeElement.id"
                             " || document.activeElement.innerText"))  # fmt: skip
    assert {"Pause articles", "Resume notes", "throughput-of", "query", "Retry TooLongError of articles"} <= reached
    landmarks = page.run(
        "['header', 'nav', 'main', '[role=search]'].map((one) => document.querySelectorAll(one).length > 0)"
    )
    assert all(landmarks)
    headings = page.run(
        "[...document.querySelectorAll('h1, h2, h3')]"
        ".filter((one) => one.checkVisibility()).map((one) => +one.tagName[1])"
    )
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_documents_are_looked_at_and_tried_again_after_a_question(
    bench: Bench, served: Served, open_page: Open
) -> None:
    scenes.busy(bench)
    scenes.failures(bench)
    page = open_page(f"{served.url}/dashboard")
    live(page)
    page.click("[aria-label='Documents of TooLongError']")
    page.wait("document.querySelectorAll('.documents tbody tr').length === 20")
    page.click(".documents > button")
    page.wait("document.querySelectorAll('.documents tbody tr').length === 37")
    page.click("[aria-label='Retry TooLongError of articles']")
    page.wait("document.querySelector('#ask').open")
    assert page.text("#ask-text") == "37 documents of TooLongError of articles will be queued again."
    page.key("Escape")
    page.wait("!document.querySelector('#ask').open")
    assert bench.progress("articles").rows_failed == 42
    page.click("[aria-label='Retry TooLongError of articles']")
    page.wait("document.querySelector('#ask').open")
    page.click("#ask-yes")
    page.wait("document.querySelector('#said').innerText.includes('37 documents are queued again')")
    assert bench.progress("articles").rows_failed == 5
    page.wait("document.querySelectorAll('.class-line code').length === 2")
    assert_sound(page)


def test_what_is_hostile_stays_text(bench: Bench, served: Served, open_page: Open, picture: Picture) -> None:
    scenes.hostile(bench)
    page = open_page(f"{served.url}/dashboard")
    live(page)
    page.click("#vectorizer-rows .open")
    page.click(".classes [aria-expanded]")
    page.wait("document.querySelectorAll('.documents tbody tr').length === 1")
    assert page.run("document.querySelectorAll('#content img, #content script, #content [onerror]').length") == 0
    assert page.run("document.title").endswith("pgvec-queue")
    shown = page.text("#vectorizer-rows .open")
    assert shown == scenes.HOSTILE + "\\u202eevil"
    for selector in ("#worker-rows th", "#event-rows", "#failure-groups", ".facts"):
        assert scenes.HOSTILE in page.text(selector)
    page.click("#vectorizer-rows .act")
    wait_until(lambda: bench.value("SELECT blocked_reason FROM pgvec.vectorizers") is None, what="the resumption")
    assert_sound(page)
    picture(page, "hostile-wide")


# Search, against a stand-in for the endpoint with the same contract


def answers(hits: list[dict[str, Any]], asked: list[Any], status: int = 200) -> Callable[[FastAPI], None]:
    def change(app: FastAPI) -> None:
        @app.middleware("http")
        async def stand_in(request: Request, call_next: Any) -> Response:
            if request.url.path != "/api/v1/search":
                found: Response = await call_next(request)
                return found
            asked.append(await request.json())
            if status != 200:
                return JSONResponse({"title": "Unprocessable Content", "detail": "the query is blank"}, status)
            return JSONResponse({"hits": hits, "best_score": None if hits else 0.412, "vectorizer": "docs"})

    return change


def hit(text: str, score: float, **more: Any) -> dict[str, Any]:
    empty = {"metadata": None, "fused": None, "context_before": None, "context_after": None}
    return {"text": text, "score": score, "key": ["17"], "chunk_index": 0, **empty, **more}


def asked_for(page: Page, question: str) -> None:
    page.wait("document.querySelector('#search-in').options.length > 0")
    page.run("document.querySelector('#query').value = ''; document.querySelector('#query').focus(); 0")
    page.type(question)
    page.key("Enter")
    page.wait("!['', 'Searching …'].includes(document.querySelector('#search-says').innerText.trim())")


def test_answers_have_the_words_of_the_question_marked(bench: Bench, open_page: Open, picture: Picture) -> None:
    scenes.busy(bench)
    hits = [
        hit("To return a broken lamp, write to the shop.\nA Lamp that only flickers is not broken.", 0.8312),
        hit(scenes.HOSTILE + " lamp", 0.5, context_before="before " + scenes.HOSTILE),
        hit("壊れたランプを返品する方法", 0.4, key=["a", "b"]),
    ]
    asked: list[Any] = []
    with serving(bench.dsn, change=answers(hits, asked)) as served:
        page = open_page(f"{served.url}/dashboard")
        asked_for(page, "How do I return a broken lamp? 返品")
        assert page.texts("#answers mark") == ["return", "broken", "lamp", "Lamp", "broken", "lamp", "返品"]
        assert page.texts(".answer-head strong") == ["0.831", "0.500", "0.400"]
        assert page.run("document.querySelectorAll('#answers img, #answers script').length") == 0
        assert page.texts(".answer-text")[0] == hits[0]["text"]
        assert "3 answers in" in page.text("#search-says")
        (sent,) = asked
        assert sent == {
            "vectorizer": "articles",
            "query": "How do I return a broken lamp? 返品",
            "limit": 10,
            "hybrid": False,
        }
        assert_sound(page)
        picture(page, "search-wide")


def test_a_search_without_answers_or_refused_is_told(bench: Bench, open_page: Open) -> None:
    scenes.source(bench, "docs", 10)
    bench.enqueue("docs", "body")
    for status, told in ((200, "Nothing was found; the best there is has 0.412."), (422, "the query is blank")):
        with serving(bench.dsn, change=answers([], [], status)) as served:
            page = open_page(f"{served.url}/dashboard")
            asked_for(page, "lamp")
            assert told in page.text("#search-says")


# Tokens


def guarded(app: FastAPI) -> None:
    """Asks for a token; another one is not enough."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        given = request.headers.get("authorization")
        if request.url.path.startswith("/api/") and given != "Bearer good":
            detail = "the token is not valid" if given else "a token is needed"
            return JSONResponse({"title": "Unauthorized", "detail": detail}, 401)
        # It is nobody's but this test's.
        request.scope["headers"] = [one for one in request.scope["headers"] if one[0] != b"authorization"]
        found: Response = await call_next(request)
        return found


def test_a_token_is_asked_for_and_kept_in_the_tab_only(bench: Bench, open_page: Open, picture: Picture) -> None:
    scenes.idle(bench)
    with serving(bench.dsn, change=guarded) as served:
        page = open_page(f"{served.url}/dashboard")
        page.wait("!document.querySelector('#sign-in').hidden")
        assert page.run("document.activeElement.id") == "token"
        picture(page, "sign-in-wide")
        page.type("bad")
        page.key("Enter")
        page.wait("document.querySelector('#sign-in-why').innerText.includes('does not take this token')")
        assert page.run("sessionStorage.length") == 0
        page.type("good")
        page.key("Enter")
        live(page)
        kept = page.run("[Object.keys(sessionStorage), localStorage.length, document.cookie]")
        assert kept == [["pgvec-token"], 0, ""]
        assert page.run("document.querySelector('#sign-in').hidden")
        assert not [url for url in page.requests if "good" in url]
        page.go(f"{served.url}/dashboard")
        live(page)
        page.click("#forget")
        page.wait("!document.querySelector('#sign-in').hidden")
        assert page.run("sessionStorage.length") == 0


# When something is away


def test_a_lost_database_is_said_and_the_last_state_stays(
    bench: Bench, served: Served, open_page: Open, picture: Picture
) -> None:
    scenes.busy(bench)
    page = open_page(f"{served.url}/dashboard")
    live(page)
    with closed(bench):
        page.wait("document.querySelector('#link').dataset.state === 'outage'", 40)
        assert "the database cannot be reached" in page.text("#outage")
        assert page.texts("#vectorizer-rows .open")[0] == "articles"
        picture(page, "outage-wide")
    page.wait("document.querySelector('#link').dataset.state === 'open'", 60)
    page.wait("document.querySelector('#outage').hidden")


def test_a_lost_gateway_is_said_and_it_comes_back(bench: Bench, open_page: Open) -> None:
    scenes.idle(bench)
    with serving(bench.dsn) as first:
        port = int(first.url.rpartition(":")[2])
        page = open_page(f"{first.url}/dashboard")
        live(page)
    page.wait("document.querySelector('#link').dataset.state === 'lost'")
    assert "The connection to the gateway is lost" in page.text("#outage")
    with serving(bench.dsn, port=port):
        page.wait("document.querySelector('#link').dataset.state === 'open'", 60)
        page.wait("document.querySelector('#outage').hidden")


# For everybody


@pytest.mark.parametrize("view", ["narrow", "zoomed", "large text"])
def test_nothing_is_cut_off(bench: Bench, served: Served, open_page: Open, picture: Picture, view: str) -> None:
    scenes.busy(bench)
    scenes.failures(bench)
    sizes: dict[str, dict[str, Any]] = {
        "narrow": {"width": 320, "height": 640},
        "zoomed": {"width": 640, "height": 400, "scale": 2},
        "large text": {},
    }
    page = open_page(f"{served.url}/dashboard", **sizes[view])
    if view == "large text":
        page.call("Page.setFontSizes", fontSizes={"standard": 32})
        page.wait("getComputedStyle(document.documentElement).fontSize === '32px'")
    live(page)
    assert_sound(page)
    cut = page.run(
        "[...document.querySelectorAll('button, td, dd, dt, .badge, .reason, .message')].filter((one) =>"
        " one.checkVisibility() && getComputedStyle(one).display !== 'inline' && one.scrollWidth > one.clientWidth + 1)"
        ".map((one) => one.outerHTML.slice(0, 120))"
    )
    assert cut == []
    picture(page, view.replace(" ", "-"))


def test_only_what_is_allowed_to_run_runs(served: Served, open_page: Open) -> None:
    page = open_page(f"{served.url}/dashboard")
    for script in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.createElement('script').textContent = 'window.ran = true'",
        "document.body.setAttribute('onclick', 'window.ran = true')",
        "document.createElement('script').src = '/dashboard/main.js'",
    ):
        with pytest.raises(BrowserError, match="Trusted"):
            page.run(script)
    assert page.complaints
    page.complaints.clear()
    page.run("document.body.setAttribute('style', 'color: red'); 0")
    page.wait("getComputedStyle(document.body).color !== 'rgb(255, 0, 0)'")
    wait_until(lambda: page.complaints, what="the complaint")
