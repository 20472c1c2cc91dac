"""The page at /: what it loads, what its script asks, and what Chromium makes of it, where there is one."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from tests.serving.conftest import Server


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    page = server("/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page.body)
    assert "page.js" in loaded and "page.css" in loaded
    for one in loaded:
        assert one.startswith("data:") or server("/" + one).status == 200, one
    script, style = server("/page.js"), server("/page.css")
    assert script.headers["content-type"].startswith("text/javascript")
    assert style.headers["content-type"].startswith("text/css")
    assert not re.search(r"https?:|//[a-z]|innerHTML|eval\(", page.body + script.body + style.body)


def test_what_the_script_asks_is_answered_as_it_reads_it(server: Server) -> None:
    script = server("/page.js").body
    assert 'fetch("recommend"' in script and "{ user, delta: form.elements.delta.checked }" in script
    answer = server("/recommend", {"user": "5", "delta": True}).body
    for part in set(re.findall(r"\banswer\.(\w+)", script)):
        assert part in answer
    for part in set(re.findall(r"\bitem\.(\w+)", script)):
        assert part in answer["items"][0]
    assert "detail" in server("/recommend", {"user": "ann", "delta": True}).body


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (found := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_in_chromium_it_shows_a_user_and_the_switch_changes_the_order(
    browser: Any, server: Server, settings: dict[str, Any]
) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(server.url)
    page.fill("#user", "5")
    page.click("button")
    page.wait_for_selector("#items li")
    for delta in (True, False):
        page.wait_for_selector('#status[data-state="answer"]')
        answer = server("/recommend", {"user": "5", "delta": delta}).body
        titles = page.locator("#items li").all_text_contents()
        assert [one.rsplit(" 0.", 1)[0] for one in titles] == [one["title"] for one in answer["items"]]
        assert page.locator("#history li").all_text_contents() == answer["history"][::-1]
        said = "with weights of their own" if delta else "the language model alone"
        assert said in page.locator("#status").text_content()
        page.click("#delta")
        page.wait_for_selector('#status[data-state="answer"]')
    frame = pd.read_csv(settings["data"])
    liked = frame[(frame["user_id"] == 5) & (frame["rating"] == 5)]["title"].tolist()
    assert page.locator("#history li").first.text_content() == liked[-1]
    page.fill("#user", "777")
    page.click("button")
    page.wait_for_selector("#status:has-text('777 is unknown')")
    assert not problems
    page.fill("#user", "<img src=x onerror=alert(1)>")
    page.click("button")
    page.wait_for_selector('#status[data-state="problem"]')
    assert "expected a whole number" in page.locator("#status").text_content()
    assert page.locator("#items li").count() == 0 and page.locator("img").count() == 0
    page.close()


def test_in_chromium_a_newer_answer_is_not_overwritten_by_an_older_one(browser: Any, server: Server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    held: list[Any] = []
    page.route("**/recommend", lambda route: held.append(route))
    page.fill("#user", "5")
    page.click("button")
    page.fill("#user", "6")
    page.click("button")
    while len(held) < 2:
        page.wait_for_timeout(10)
    held[1].continue_()
    page.wait_for_selector("#status:has-text('User 6')")
    with page.expect_response("**/recommend"):
        held[0].continue_()
    page.wait_for_timeout(50)
    assert page.locator("#status").text_content().startswith("User 6")
    page.close()
