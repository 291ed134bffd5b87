"""The page in a real browser, Debian's Chromium: answers, pictures, and what a reload keeps."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.browsing import (
    COMPLETIONS,
    LONG,
    STATS,
    hand_over,
    images_sent,
    limit_tokens,
    send,
    wait_for_answer,
    wait_for_text,
)
from support.serving import Flow

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = sync_api.expect


def test_loading_fetches_only_the_page_under_a_strict_policy(
    browser: "Browser", server_url: str
) -> None:
    page = browser.new_page()
    page.add_init_script(
        "window.violations = [];"
        "addEventListener('securitypolicyviolation', (e) => violations.push(e.blockedURI))"
    )
    response = page.goto(server_url)
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.get_by_text("Ask something, or show a picture.")).to_be_visible()
    assert page.evaluate("violations") == []
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), "
                  "{ textContent: 'window.inline = true' }))")  # fmt: skip
    assert page.evaluate("[violations, window.inline]") == [["inline"], None]
    page.close()


def test_an_answer_streams_and_tells_what_it_took(page: "Page", flow: Flow) -> None:
    limit_tokens(page, 24)
    flow.hold(6)
    send(page, "Count from one to twenty in words.")
    for shown, next_hold in ((4, 12), (10, 18), (16, 30)):
        wait_for_text(page, shown)
        expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
        flow.hold(next_hold)
    text = wait_for_answer(page)
    assert len(text) == 24
    assert STATS.match(page.locator(".stats").inner_text())
    # A screen reader hears the answer once, when it is whole.
    expect(page.locator("#announcer")).to_contain_text(text.split("\n")[0])
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "polite")

    send(page, "And on to thirty.")
    wait_for_answer(page, 2)
    cached = re.search(r"\((\d+) cached\)", page.locator(".stats").last.inner_text())
    assert cached is not None
    assert int(cached[1]) > 20


def test_the_prompt_being_read_is_shown(page: "Page", flow: Flow) -> None:
    limit_tokens(page, 4)
    flow.hold(0)
    send(page, "The ship sailed on. " * 10)  # more than one step of the prefill
    expect(page.locator(".status")).to_have_text(re.compile(r"^Reading \d+ of \d+ tokens$"))
    flow.release()
    wait_for_answer(page)


def test_stopping_keeps_what_was_written(page: "Page", flow: Flow) -> None:
    flow.hold(50)
    send(page, LONG)
    wait_for_text(page, 40)
    page.get_by_role("button", name="Stop").click()
    text = wait_for_answer(page)
    assert len(text) >= 40
    expect(page.locator(".stats")).to_contain_text("stopped")

    flow.release()
    limit_tokens(page, 4)
    with page.expect_request(COMPLETIONS) as request:
        send(page, "Go on.")
    messages = request.value.post_data_json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert len(messages[1]["content"]) >= 40
    wait_for_answer(page, 2)


def test_pictures_by_file_paste_and_drop(page: "Page", pictures: list[Path]) -> None:
    limit_tokens(page, 8)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add pictures").click()
    chooser.value.set_files(pictures[0])
    hand_over(page, "paste", "green.png", "image/png", pictures[1].read_bytes())
    hand_over(page, "dragover", "blue.png", "image/png", pictures[2].read_bytes())
    expect(page.get_by_text("Drop pictures here")).to_be_visible()
    hand_over(page, "drop", "blue.png", "image/png", pictures[2].read_bytes())
    expect(page.get_by_text("Drop pictures here")).to_be_hidden()
    waiting = page.get_by_role("list", name="Before the text")
    for name in ("red", "green", "blue"):
        expect(waiting.get_by_role("img", name=f"{name}.png")).to_be_visible()
    page.get_by_role("button", name="Remove green.png").click()
    expect(page.get_by_role("button", name="Remove blue.png")).to_be_focused()

    with page.expect_request(COMPLETIONS) as request:
        send(page, "What colours are these?")
    assert images_sent(request.value) == [pictures[i].read_bytes() for i in (0, 2)]
    assert wait_for_answer(page)
    expect(waiting).to_be_hidden()
    expect(page.get_by_role("log").get_by_role("img")).to_have_count(2)
    expect(page.locator(".stats")).to_contain_text("2 pictures encoded")


def test_what_is_no_picture_or_too_large_is_refused(page: "Page") -> None:
    hand_over(page, "drop", "notes.txt", "text/plain", b"words")
    expect(page.get_by_text("notes.txt is not a picture.")).to_be_visible()
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            const bytes = new Uint8Array(20.5 * 2 ** 20);
            dataTransfer.items.add(new File([bytes], "big.png", { type: "image/png" }));
            text.dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer }));
        }"""
    )
    expect(page.get_by_text("big.png is too large: 20.5 MB of at most 20 MB.")).to_be_visible()
    expect(page.get_by_role("list", name="Before the text")).to_be_hidden()


def test_pasted_text_stays_text(page: "Page") -> None:
    page.evaluate(
        """() => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File(["x"], "cells.png", { type: "image/png" }));
            clipboardData.setData("text/plain", "1 2");
            clipboardData.setData("text/html", "<table>…</table>");
            const options = { bubbles: true, cancelable: true, clipboardData };
            window.left = text.dispatchEvent(new ClipboardEvent("paste", options));
        }"""
    )
    assert page.evaluate("left")
    expect(page.get_by_role("list", name="Before the text")).to_be_hidden()


def test_a_reload_restores_the_conversation(page: "Page", pictures: list[Path]) -> None:
    limit_tokens(page, 8)
    page.locator("#files").set_input_files(pictures[:2])
    send(page, "What are these?")
    text = wait_for_answer(page)
    page.reload()
    expect(page.get_by_role("log").get_by_role("img")).to_have_count(2)
    expect(page.get_by_text("What are these?")).to_be_visible()
    assert wait_for_answer(page) == text
    assert STATS.match(page.locator(".stats").inner_text())
    expect(page.get_by_label("Tokens at most")).to_have_value("8")

    with page.expect_request(COMPLETIONS) as request:
        send(page, "And their shape?")
    assert images_sent(request.value) == [file.read_bytes() for file in pictures[:2]]
    wait_for_answer(page, 2)

    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("log")).to_be_empty()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("log").get_by_role("img")).to_have_count(2)
    page.get_by_role("button", name="New chat").click()
    page.reload()
    expect(page.get_by_text("Ask something, or show a picture.")).to_be_visible()
    expect(page.get_by_role("log")).to_be_empty()


def test_a_reload_in_the_middle_of_an_answer_keeps_its_start(page: "Page", flow: Flow) -> None:
    flow.hold(50)
    send(page, LONG)
    wait_for_text(page, 40)
    page.reload()
    assert len(wait_for_answer(page)) >= 40
    expect(page.locator(".stats")).to_have_text("stopped")


def test_pictures_that_were_not_kept_are_named(page: "Page", pictures: list[Path]) -> None:
    limit_tokens(page, 4)
    page.locator("#files").set_input_files(pictures[0])
    send(page, "What is this?")
    wait_for_answer(page)
    page.goto("about:blank")
    page.go_back()
    page.evaluate(
        """() => new Promise((resolve) => {
            indexedDB.open("sightline").onsuccess = ({ target: { result } }) => {
                const change = result.transaction("pictures", "readwrite");
                change.objectStore("pictures").clear();
                change.oncomplete = resolve;
            };
        })"""
    )
    page.reload()
    expect(page.get_by_text("red.png was not kept")).to_be_visible()
    with page.expect_request(COMPLETIONS) as request:
        send(page, "And now?")
    assert request.value.post_data_json["messages"][0]["content"] == "What is this?"
    wait_for_answer(page, 2)
