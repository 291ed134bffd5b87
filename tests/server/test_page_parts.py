"""The page in a real browser: texts and pictures of one message, in their order."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.browsing import COMPLETIONS, images_sent, limit_tokens, send, wait_for_answer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

expect = sync_api.expect


def write_in_parts(page: "Page", pictures: list[Path]) -> None:
    """A text, two pictures, a text, a picture; and something in the box."""
    add = page.get_by_role("button", name="Add text")
    text = page.get_by_label("Your message")
    text.fill("Are these")
    add.click()
    expect(text).to_be_focused()
    expect(text).to_have_value("")
    page.locator("#files").set_input_files(pictures[:2])
    text.fill("brighter than\nthis one")
    add.click()
    page.locator("#files").set_input_files(pictures[2])
    text.fill("or not?")


def shown(page: "Page") -> list[str]:
    """The texts and pictures of the first question, as they follow each other."""
    return page.evaluate(
        """[...document.querySelectorAll(".question")[0].querySelectorAll(".words, img, .lost")]
            .map((node) => node.alt ?? node.textContent)"""
    )


def kinds_sent(request: "Request") -> list[str]:
    content = request.post_data_json["messages"][0]["content"]
    return [part.get("text", "picture") for part in content]


PARTS = ["Are these", "red.png", "green.png", "brighter than\nthis one", "blue.png", "or not?"]
SENT = [part if not part.endswith(".png") else "picture" for part in PARTS]


def test_texts_and_pictures_stay_in_order(page: "Page", pictures: list[Path]) -> None:
    """Sent, shown, sent again, and kept over a reload."""
    limit_tokens(page, 4)
    write_in_parts(page, pictures)
    with page.expect_request(COMPLETIONS) as request:
        page.keyboard.press("Enter")
    assert kinds_sent(request.value) == SENT
    assert images_sent(request.value) == [file.read_bytes() for file in pictures]
    wait_for_answer(page)
    assert shown(page) == PARTS
    expect(page.get_by_role("list", name="Before the text")).to_be_hidden()
    page.reload()
    expect(page.get_by_role("log").get_by_role("img")).to_have_count(3)
    assert shown(page) == PARTS
    with page.expect_request(COMPLETIONS) as request:
        send(page, "And now?")
    assert kinds_sent(request.value) == SENT
    assert images_sent(request.value) == [file.read_bytes() for file in pictures]
    wait_for_answer(page, 2)


def test_parts_can_be_taken_back_and_edited(page: "Page", pictures: list[Path]) -> None:
    page.route(COMPLETIONS, lambda route: route.abort())
    text = page.get_by_label("Your message")
    write_in_parts(page, pictures)
    page.get_by_role("button", name="Put this text back").last.click()
    expect(text).to_have_value("brighter than\nthis one\nor not?")
    expect(text).to_be_focused()
    page.get_by_role("button", name="Add text").click()
    page.get_by_role("button", name="Remove red.png").click()
    page.keyboard.press("Tab")
    text.focus()
    page.keyboard.press("Enter")  # the box is empty; the parts are a message
    expect(page.locator(".error")).to_contain_text("The server cannot be reached.")
    parts = ["Are these", "green.png", "blue.png", "brighter than\nthis one\nor not?"]
    assert shown(page) == parts
    page.get_by_role("button", name="Edit the message").click()
    expect(text).to_have_value("brighter than\nthis one\nor not?")
    waiting = page.get_by_role("list", name="Before the text")
    expect(waiting.get_by_role("listitem")).to_have_count(3)
    expect(waiting.get_by_role("listitem").first).to_have_text("Are these")
    page.unroute(COMPLETIONS)
    limit_tokens(page, 4)
    text.focus()
    with page.expect_request(COMPLETIONS) as request:
        page.keyboard.press("Enter")
    assert kinds_sent(request.value) == [
        part if not part.endswith(".png") else "picture" for part in parts
    ]
    wait_for_answer(page)


def test_texts_that_come_together_are_lines(page: "Page", pictures: list[Path]) -> None:
    """With nothing between them, they are one text, and words do not run into each other."""
    limit_tokens(page, 4)
    page.get_by_label("Your message").fill("One,")
    page.get_by_role("button", name="Add text").click()
    page.locator("#files").set_input_files(pictures[0])
    page.get_by_role("button", name="Remove red.png").click()
    with page.expect_request(COMPLETIONS) as request:
        send(page, "two.")
    assert request.value.post_data_json["messages"][0]["content"] == "One,\ntwo."
    wait_for_answer(page)


def test_what_was_kept_before_there_were_parts(page: "Page") -> None:
    """A conversation that an earlier page left in the browser: pictures before their text."""
    picture = {"id": "1-a", "name": "gone.png", "size": 5}
    answer = {"state": "done", "text": "A wall.", "stats": "5 tokens"}
    kept: list[Any] = [
        {"text": "What is this?", "pictures": [picture], "answer": answer},
        {"text": "", "pictures": [picture], "answer": answer},
        {"text": "Hello.", "pictures": [], "answer": answer},
        {"odd": 5},
        None,
    ]
    page.evaluate("(kept) => localStorage.setItem('sightline.chat', kept)", json.dumps(kept))
    page.reload()
    expect(page.locator(".question")).to_have_count(3)
    expect(page.get_by_text("gone.png was not kept")).to_have_count(2)
    assert shown(page) == ["gone.png was not kept", "What is this?"]
    limit_tokens(page, 4)
    with page.expect_request(COMPLETIONS) as request:
        send(page, "And now?")
    messages = request.value.post_data_json["messages"]
    told = [message["content"] for message in messages if message["role"] == "user"]
    assert told == ["What is this?", "", "Hello.", "And now?"]
    wait_for_answer(page, 4)
    page.reload()
    expect(page.locator(".question")).to_have_count(4)
