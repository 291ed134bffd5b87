"""What tests do in the page as a user would."""

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

expect = sync_api.expect
expect.set_options(timeout=120_000)

COMPLETIONS = "**/v1/chat/completions"
STATS = re.compile(
    r"^\d+ tokens \(\d+ cached\) · first token \d+\.\d\d s( · \d+\.\d tokens/s)?"
    r"( · \d pictures? encoded)?( · \d pictures? reused)?( · cut off at the token limit)?$"
)
LONG = "Write a long story about a ship that sails around the world."

MARKDOWN = """# Title

Some **bold**, *italic*, ***both***, ~~gone~~, `a * b`, snake_case_name, 2 * 3 * 4.
See [a page](https://a.example/x_(y)) or https://b.example/z. Done\\*

3. three
4. four
   - deep

     more

> quoted

| a | b |
|---|--:|
| 1 | x \\| y |

```python
print("<b>")
```

~~~a `b`
tildes
~~~

---
```
unclosed"""


def limit_tokens(page: "Page", count: int) -> None:
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Tokens at most").fill(str(count))
    page.keyboard.press("Escape")


def send(page: "Page", text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def wait_for_answer(page: "Page", count: int = 1) -> str:
    """The text of the last answer, when as many as this are complete."""
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(count, timeout=120_000)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=120_000)
    return page.locator(".answer .body").last.inner_text()


def wait_for_text(page: "Page", length: int) -> None:
    """Wait until the last answer has so many characters."""
    some = re.compile(f".{{{length},}}", re.DOTALL)
    expect(page.locator(".answer .body").last).to_have_text(some, timeout=120_000)


def server_sent(*chunks: Any) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def answer_with(page: "Page", text: str) -> None:
    """Have the next questions answered with this text."""
    body = server_sent(piece(text)) + "data: [DONE]\n\n"
    page.route(
        COMPLETIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )


def images_sent(request: "Request") -> list[bytes]:
    """The pictures in all messages of a request."""
    urls = [
        part["image_url"]["url"]
        for message in request.post_data_json["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def hand_over(page: "Page", event: str, name: str, kind: str, content: bytes) -> None:
    """Paste or drop a file. (A script may not put one into the system's clipboard.)"""
    page.evaluate(
        """([event, name, type, content]) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, { type }));
            const options = { bubbles: true, cancelable: true };
            const target = document.activeElement;
            target.dispatchEvent(event === "paste"
                ? new ClipboardEvent(event, { ...options, clipboardData: data })
                : new DragEvent(event, { ...options, dataTransfer: data }));
        }""",
        [event, name, kind, base64.b64encode(content).decode()],
    )
