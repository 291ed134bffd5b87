"""The page in a real browser: Markdown, failures, the key, the keyboard, colours."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from support.browsing import (
    COMPLETIONS,
    LONG,
    MARKDOWN,
    answer_with,
    hand_over,
    images_sent,
    limit_tokens,
    piece,
    send,
    server_sent,
    wait_for_answer,
    wait_for_text,
)
from support.serving import Flow

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

expect = sync_api.expect


def test_a_failed_request_can_be_tried_again(page: "Page", pictures: list[Path]) -> None:
    limit_tokens(page, 8)
    failures = [
        {"status": 400, "json": {"error": {"message": "the prompt is too long"}}},
        {"status": 413, "json": {"error": {"message": "the body has more than 9 bytes"}}},
        {
            "content_type": "text/event-stream",
            "body": server_sent(piece("It was"), {"error": {"message": "The memory is full."}}),
        },
        {"content_type": "text/event-stream", "body": server_sent(piece("It was"))},
        {"status": 502, "body": "<html>"},
    ]

    def fail(route: "Route") -> None:
        if failures:
            route.fulfill(**failures.pop(0))  # type: ignore[arg-type]
        else:
            route.fallback()

    page.route(COMPLETIONS, fail)
    page.locator("#files").set_input_files(pictures[0])
    send(page, "What is this?")
    again = page.get_by_role("button", name="Try again")
    for message in (
        "The prompt is too long.",
        "The conversation is too large to send with its pictures. "
        "Start a new chat, or show smaller ones.",
        "The memory is full.",
        "The connection ended before the answer did.",
        "The server answered with status 502.",
    ):
        expect(page.locator(".error")).to_have_text(message)
        expect(page.locator("#announcer")).to_contain_text(message)
        expect(page.get_by_text("What is this?")).to_be_visible()
        expect(page.get_by_role("log").get_by_role("img")).to_have_count(1)
        with page.expect_request(COMPLETIONS) as request:
            again.click()
    assert images_sent(request.value) == [pictures[0].read_bytes()]
    assert wait_for_answer(page)
    expect(page.locator(".error")).to_have_count(0)


def test_a_failed_message_can_be_edited_or_left_behind(page: "Page", pictures: list[Path]) -> None:
    page.route(COMPLETIONS, lambda route: route.abort())
    page.locator("#files").set_input_files(pictures[0])
    send(page, "What is this?")
    expect(page.locator(".error")).to_contain_text("The server cannot be reached.")
    page.get_by_role("button", name="Edit the message").click()
    expect(page.get_by_label("Your message")).to_have_value("What is this?")
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.get_by_role("button", name="Remove red.png")).to_be_visible()
    expect(page.get_by_role("log")).to_be_empty()

    page.keyboard.press("Enter")
    expect(page.locator(".error")).to_contain_text("The server cannot be reached.")
    page.unroute(COMPLETIONS)
    limit_tokens(page, 4)
    with page.expect_request(COMPLETIONS) as request:
        send(page, "Hello.")
    assert request.value.post_data_json["messages"] == [{"role": "user", "content": "Hello."}]
    expect(page.get_by_text("left out of what follows")).to_be_visible()
    wait_for_answer(page, 2)


def test_everything_by_keyboard(page: "Page", pictures: list[Path], flow: Flow) -> None:
    flow.hold(20)
    keys = page.keyboard
    text = page.get_by_label("Your message")
    expect(text).to_be_focused()
    keys.type("Tell me a")
    keys.press("Shift+Enter")
    keys.type("long story.")
    expect(text).to_have_value("Tell me a\nlong story.")
    expect(page.get_by_role("log")).to_be_empty()
    keys.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    wait_for_text(page, 10)
    keys.press("Escape")
    wait_for_answer(page)
    expect(text).to_be_focused()

    page.locator("#files").set_input_files(pictures[:2])
    for name in ("green", "red"):
        keys.press("Shift+Tab")
        expect(page.get_by_role("button", name=f"Remove {name}.png")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keys.press("Space")
    expect(page.get_by_role("button", name="Remove green.png")).to_be_focused()
    keys.press("Space")
    expect(text).to_be_focused()

    reached = []
    for _ in range(12):
        keys.press("Shift+Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "SUMMARY":
            break
    assert {"newChat", "theme", "SUMMARY"} <= set(reached)
    keys.press("Enter")
    keys.press("Tab")
    keys.type("Answer in one word.")
    keys.press("Escape")
    expect(page.get_by_label("System prompt")).to_be_hidden()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    with page.expect_request(COMPLETIONS) as request:
        send(page, "Hello.")
    system = {"role": "system", "content": "Answer in one word."}
    assert request.value.post_data_json["messages"][0] == system
    keys.press("Escape")
    wait_for_answer(page, 2)


def test_every_control_has_a_name(page: "Page") -> None:
    page.get_by_text("Options", exact=True).click()
    for line in page.locator("body").aria_snapshot().splitlines():
        assert not re.match(r"\s*- (button|textbox|spinbutton|combobox|img|log|list)\W*$", line), (
            line
        )


def test_the_key_is_asked_for_and_not_kept(open_page: "Callable[..., Page]") -> None:
    page = open_page()
    keys: list[str | None] = []

    def guard(route: "Route") -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer sesame":
            route.fallback()
        else:
            route.fulfill(status=401, json={"error": {"message": "An API key is needed."}})

    page.route("**/v1/**", guard)
    page.reload()
    field = page.get_by_role("textbox", name="API key")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("An API key is needed.")
    limit_tokens(page, 4)
    send(page, "Hello.")
    for key in ("wrong", "sesame"):
        expect(field).to_be_focused()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(page.get_by_text("The server did not accept that key.")).to_be_visible()
    assert wait_for_answer(page)
    assert "Bearer wrong" in keys
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_reading_earlier_text_is_not_disturbed(page: "Page", flow: Flow) -> None:
    answer_with(page, "\n\n".join(f"Paragraph {i}." for i in range(60)))
    send(page, "Go.")
    wait_for_answer(page)
    bottom = "() => innerHeight + scrollY >= document.documentElement.scrollHeight - 2"
    page.wait_for_function(bottom)
    page.unroute(COMPLETIONS)
    flow.hold(20)
    send(page, LONG)
    wait_for_text(page, 10)
    page.mouse.move(400, 300)
    target = page.evaluate("scrollY") - 900
    page.mouse.wheel(0, -900)
    page.wait_for_function("(target) => scrollY === target", arg=target)
    latest = page.get_by_role("button", name="Latest")
    expect(latest).to_be_visible()
    before = page.evaluate("scrollY")
    flow.hold(200)
    wait_for_text(page, 190)
    assert page.evaluate("scrollY") == before
    latest.click()
    page.wait_for_function(bottom)
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("Escape")
    wait_for_answer(page, 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours(open_page: "Callable[..., Page]", scheme: str) -> None:
    """Text stands out from what it stands on by WCAG's AA in the theme that the system asks for."""
    page = open_page(color_scheme=scheme)
    names = ("ground", "raised", "sunken", "text", "quiet", "accent", "on-accent", "bad",
             "bad-ground", "edge")  # fmt: skip
    shades = page.evaluate(
        """(names) => Object.fromEntries(names.map((name) => {
            const probe = document.querySelector("#announcer");
            const sheet = new CSSStyleSheet();
            sheet.replaceSync(`#announcer { color: var(--${name}) }`);
            document.adoptedStyleSheets = [sheet];
            return [name, getComputedStyle(probe).color.match(/\\d+/g).map(Number)];
        }))""",
        names,
    )

    def luminance(name: str) -> float:
        parts = [c / 255 for c in shades[name]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert (luminance("ground") < 0.5) == (scheme == "dark")
    for ground in ("ground", "raised", "sunken"):
        for ink in ("text", "quiet", "accent", "bad"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    assert contrast("on-accent", "accent") >= 4.5
    assert contrast("bad", "bad-ground") >= 4.5
    assert min(contrast("edge", "ground"), contrast("edge", "raised")) >= 3


def test_the_theme_is_chosen_and_kept(open_page: "Callable[..., Page]") -> None:
    page = open_page(color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Theme: automatic").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert page.evaluate(ground) == light
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(ground) == dark
    page.get_by_role("button", name="Theme: dark").click()
    expect(page.get_by_role("button", name="Theme: automatic")).to_be_visible()


def test_a_narrow_screen_needs_no_sideways_scrolling(page: "Page", pictures: list[Path]) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    wide = "| " + " | ".join(f"a wide column {i}" for i in range(9)) + " |"
    table = f"{wide}\n{'|-' * 9}|\n{wide}"
    answer_with(page, f"```\n{'x' * 300}\n```\n\n{table}\n\n{'y' * 300} {MARKDOWN}")
    picture = io.BytesIO()
    Image.new("RGB", (2000, 300)).save(picture, "PNG")
    hand_over(page, "paste", "wide.png", "image/png", picture.getvalue())
    page.locator("#files").set_input_files(pictures * 3)
    send(page, "z" * 300)
    wait_for_answer(page)
    page.locator("#files").set_input_files(pictures * 3)
    page.locator("#options > summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for control in page.locator("button:visible, .panel").all():
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_a_thought_is_folded(page: "Page") -> None:
    """And goes back with the next question."""
    thought = piece("")
    thought["choices"][0]["delta"] = {"reasoning_content": "Hm <b>so</b>"}
    body = server_sent(thought, piece("Yes")) + "data: [DONE]\n\n"
    page.route(
        COMPLETIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )
    send(page, "Well?")
    words = page.locator(".thought .words")
    expect(words).to_have_text("Hm <b>so</b>")
    expect(words).not_to_be_visible()
    page.get_by_text("Thought", exact=True).click()
    expect(words).to_be_visible()
    expect(page.locator(".body").last).to_have_text("Yes")
    with page.expect_request(COMPLETIONS) as request:
        send(page, "And?")
    sent = request.value.post_data_json["messages"]
    assert sent[1] == {"role": "assistant", "content": "Yes", "reasoning_content": "Hm <b>so</b>"}
