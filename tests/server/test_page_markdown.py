"""The page shows an answer's Markdown, and nothing that hides in it runs."""

from typing import TYPE_CHECKING

import pytest
from support.browsing import (
    MARKDOWN,
    answer_with,
    send,
    wait_for_answer,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


expect = sync_api.expect


HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">

[one](javascript:window.hacked=1) [two](JaVaScRiPt:alert) [three](data:text/html,x) [four](/health)

![five](https://elsewhere.example/x.png) ![six](javascript:x)
[![seven](https://a.example/x.png)](https://b.example/)

<style>body { display: none }</style> <javascript:alert(1)> [eight](https://c.example/"onmouseover="x)
"""


def test_hostile_markdown_is_only_text(page: "Page") -> None:
    answer_with(page, HOSTILE)
    send(page, "Go.")
    wait_for_answer(page)
    body = page.locator(".answer .body")
    expect(body).to_contain_text('<script>window.hacked = 1</script><img src=x onerror="')
    expect(body).to_contain_text("[one](javascript:window.hacked=1) [two](JaVaScRiPt:alert)")
    assert body.locator("script, style, img, iframe, [onmouseover], [style]").count() == 0
    links = body.locator("a").evaluate_all("links => links.map((a) => [a.href, a.rel, a.target])")
    assert [address for address, *_ in links] == [
        "https://elsewhere.example/x.png",
        "https://b.example/",
        "https://c.example/%22onmouseover=%22x",
    ]
    assert {tuple(rest) for _, *rest in links} == {("noopener noreferrer", "_blank")}
    assert page.evaluate("window.hacked") is None


def test_markdown(page: "Page") -> None:
    answer_with(page, MARKDOWN)
    send(page, "Go.")
    wait_for_answer(page)
    body = page.locator(".answer .body")
    # What is left of each element when its attributes are not looked at.
    html = body.evaluate(
        """(body) => {
            const copy = body.cloneNode(true);
            copy.querySelectorAll("button").forEach((n) => n.remove());
            copy.querySelectorAll("*").forEach((n) => [...n.attributes].forEach(({ name }) => {
                if (!["href", "start", "class"].includes(name)) n.removeAttribute(name);
            }));
            return copy.innerHTML;
        }"""
    )
    for part in (
        "<h3>Title</h3>",
        "<strong>bold</strong>, <em>italic</em>, <em><strong>both</strong></em>, <del>gone</del>, "
        "<code>a * b</code>, snake_case_name, 2 * 3 * 4.<br>",
        '<a href="https://a.example/x_(y)">a page</a> or <a href="https://b.example/z">'
        "https://b.example/z</a>. Done*",
        '<ol start="3"><li>three</li><li>four<ul><li><p>deep</p><p>more</p></li></ul></li></ol>',
        "<blockquote><p>quoted</p></blockquote>",
        "<thead><tr><th>a</th>",
        '<td>1</td><td class="right">x | y</td>',
        "<span>python</span>",
        '<code>print("&lt;b&gt;")</code>',
        "<span>a</span>",
        "<code>tildes</code>",
        "<hr>",
        "<code>unclosed</code>",
    ):
        assert part in html
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the code").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("<b>")'


def test_odd_markdown_takes_no_time(page: "Page") -> None:
    """In time that grows with the text's length: by its square it would be a thousandfold."""
    wide = " " * 100_000
    texts = [
        f"a|\n{wide}x|",
        f"a|\n-{wide}x|",
        f"```{wide}`",
        f"```{'a' * 100_000}`",
        f"~~~{wide}`a",
        f"[a]({wide}x",
        f"[a](b{wide}x",
    ]
    units = [
        "*a ",
        "**a",
        "[a](",
        "[",
        "> ",
        "`a``",
        "- ",
        "_a*b",
        "<a",
        "|-",
        "(http://a",
        "- a\n ",
    ]
    # In the time that the page's thread has computed, however busy the machine is.
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def computed() -> float:
        metrics = devtools.send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    seconds = []
    for text in [*texts, *(unit * (20_000 // len(unit)) for unit in units)]:
        before = computed()
        page.evaluate(
            """async (text) => {
                const { renderMarkdown } = await import("/page/markdown.js");
                renderMarkdown(document.createElement("div"), text);
            }""",
            text,
        )
        seconds.append(computed() - before)
    assert min(seconds) > 0
    assert max(seconds) < 5
