"""Chat templates that write one question, and nothing of what was before."""

import json
from typing import Any

import jinja2
import pytest

from engine.prompts.template_form import PARTS_FIRST, TEXT_FIRST, Content, find_form

ONE = "{{ messages[0].content }}:"
LAST = "{{ 'Q: ' + messages[-1]['content'] + '\nA:' }}"
PARTS = (
    "{% for p in messages[-1].content %}{{ '<i>' if p.type == 'image' else p.text }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "preferred", "text", "images"),
    [
        (ONE, PARTS_FIRST, Content.TEXT, None),
        (ONE, TEXT_FIRST, Content.TEXT, None),
        (LAST, PARTS_FIRST, Content.TEXT, None),
        (PARTS, TEXT_FIRST, Content.PARTS, Content.PARTS),
    ],
)
def test_the_form(template: str, preferred: Any, text: Content, images: Content | None) -> None:
    """Found for that one question: else a list of parts would be printed as Python writes it."""
    made = jinja2.Environment().from_string(template)

    def render(messages: list[dict[str, Any]]) -> str:
        return made.render(messages=json.loads(json.dumps(messages)))

    form = find_form(render, preferred, ["<i>"])
    assert form.found
    assert form.texts["user"] is text
    assert form.images.get("user") is images
