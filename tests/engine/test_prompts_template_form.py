"""Chat templates in the forms that published checkpoints use, none of which loses a word."""

from collections.abc import Callable
from typing import Any

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.prompts.template_form import (
    PARTS_FIRST,
    TEXT_FIRST,
    Content,
    TemplateForm,
    find_form,
)

LOOP = "{% for m in messages %}{{ m.role }}: BODY\n{% endfor %}"
PARTS = (
    "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}"
)
STRING = "{{ m['content'] }}"

TEMPLATES = {
    "parts only": "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p.text }}"
    "{% endfor %}",
    "the first part": "{{ m['content'][0]['text'] }}",
    "text under the key content": "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ p['content'] if p['type'] == 'text' else '<image>' }}"
    "{% endfor %}{% endif %}",
    "parts with text under content": "{% for p in m['content'] %}"
    "{{ p['content'] if p['type'] == 'text' else '<image>' }}{% endfor %}",
    "strings only": "{{ m['content'].strip() }}",
    "strings joined": "{{ '' + m['content'] + '' }}",
    "users in parts": "{% if m['role'] == 'user' %}" + PARTS + "{% else %}"
    "{{ m['content'] | trim }}{% endif %}",
    "a system text, others in parts": "{% if m['role'] == 'system' %}{{ m['content'] | trim }}"
    "{% else %}" + PARTS + "{% endif %}",
    "a system message in one part": "{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }}"
    "{% else %}" + PARTS + "{% endif %}",
    "either, the parts trimmed": "{% if m['content'] is string %}{{ m['content'] | trim }}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>"
    "{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}",
    "images first, then texts": "{% for p in m['content'] if p['type'] == 'image' %}<image>\n"
    "{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}",
    "parts mapped": "{{ m['content'] | map(attribute='text', default='<image>') | join }}",
    "parts told by their keys": "{% for p in m['content'] %}"
    "{% if 'image' in p or p.type == 'image' %}<image>{% elif 'text' in p %}"
    "{{ p.text }}{% endif %}{% endfor %}",
    "through a macro": "{% macro said(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for p in content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}"
    "{% endmacro %}{{ said(m.content) }}",
    "prints what is no string": "{{ m['content'] if m['content'] is string else m['content'] }}",
}
TEMPLATES = {name: LOOP.replace("BODY", body) for name, body in TEMPLATES.items()} | {
    "system merged into the first question": "{% set first = '' %}{% set rest = messages %}"
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% endif %}{% for m in rest %}{{ m.role }}: "
    "{% if loop.first %}{{ first }}{% endif %}{{ m['content'] }}\n{% endfor %}",
    "system moved to the last question": "{% set ns = namespace(system='') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content + '\n' %}"
    "{% else %}{{ m.role }}: {{ (ns.system if loop.last else '') + m.content }}\n{% endif %}"
    "{% endfor %}",
    "turns that must alternate": "{% for m in messages if m.role != 'system' %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{{ (messages[0].content + '\n' if loop.first and messages[0].role == 'system' "
    "else '') + m.content }}\n{% endfor %}",
    "the reasoning of earlier answers left out": "{% for m in messages %}{{ m.role }}: "
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}\n{% endfor %}",
}
CONVERSATION = [
    ("system", "Be brief."),
    ("user", "Where is the river?"),
    ("assistant", "Behind the mill."),
    ("user", "How long is it?"),
]


def renderer(template: str) -> Callable[[list[dict[str, Any]]], str]:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(template)
    return lambda messages: compiled.render(messages=messages, add_generation_prompt=True)


def told(form: TemplateForm, role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": form.texts[role].of([{"type": "text", "text": text}])}


@pytest.mark.parametrize("preferred", [TEXT_FIRST, PARTS_FIRST], ids=["texts", "parts"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_word_is_lost(name: str, preferred: tuple[Content, ...]) -> None:
    render = renderer(TEMPLATES[name])
    form = find_form(render, preferred, ["<image>"])
    assert form.found
    rendered = render([told(form, role, text) for role, text in CONVERSATION])
    for _, text in CONVERSATION:
        assert rendered.count(text) == 1
    assert "{" not in rendered


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("users in parts", {"user"}),
        ("a system text, others in parts", {"user", "assistant", "tool"}),
        ("either, the parts trimmed", {"system", "user", "assistant", "tool"}),
        ("images first, then texts", {"system", "user", "assistant", "tool"}),
        ("parts with text under content", {"system", "user", "assistant", "tool"}),
        ("parts only", set()),
        ("strings only", set()),
        ("prints what is no string", set()),
    ],
)
def test_who_may_show_images(name: str, roles: set[str]) -> None:
    assert find_form(renderer(TEMPLATES[name]), PARTS_FIRST, ["<image>"]).images.keys() == roles


def test_one_that_refuses_everything() -> None:
    form = find_form(renderer("{{ raise_exception('never') }}"), TEXT_FIRST, [])
    assert not form.found
    assert form.texts["user"] is Content.TEXT


def test_one_that_drops_everything() -> None:
    assert not find_form(renderer("{{ messages | length }}"), PARTS_FIRST, ["<image>"]).found


def test_what_a_tool_answers() -> None:
    """Its form may be another than a question's."""
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% elif m.tool_calls %}"
        "{{ m.tool_calls[0].function.name }}{% else %}{{ m.content.strip() }}{% endif %}\n"
        "{% endfor %}"
    )
    form = find_form(renderer(template), TEXT_FIRST, [])
    assert form.texts == {
        "system": Content.TEXT,
        "user": Content.TEXT,
        "assistant": Content.TEXT,
        "tool": Content.PARTS,
    }
