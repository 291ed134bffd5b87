"""No text is lost on its way into a prompt: a template may trim, move and shorten, not drop."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from support.prompting import encoder, tokenizer

from engine.prompts.messages import Message
from engine.prompts.presence import Piece, TextFinder
from vision_add_ons.errors import PromptError

LOOP = "{% for m in messages %}{{ m.role }}: BODY\n{% endfor %}assistant:"
KEPT = {
    "as they are": "{{ m.content }}",
    "trimmed": "{{ m.content | trim }}",
    "stripped of line breaks": "{{ m.content.strip('\n') }}",
    "stripped at the left": "{{ m.content.lstrip() }}",
    "stripped of spaces at the right": "{{ m.content.rstrip(' ') }}",
    "reasoning left out": "{{ m.content.split('</think>')[-1].strip() }}",
    "reasoning left out of all but the last": "{% if loop.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}",
    "the role's name again": "{{ m.role }} {{ m.content }} user: {{ m.role }}",
    "in one line": "{{ m.content | replace('\\n', ' ') }}",
    "looking at the text": "{% if m.content.startswith('a') %}(a) {% endif %}{{ m.content }}",
    "refusing the words of a probe": "{% if 'jvkz' in m.content %}{{ raise_exception('no') }}"
    "{% endif %}{{ m.content }}",
}
LOST = {
    "dropped": "",
    "shortened": "{{ m.content[:4] }}",
    "answers dropped": "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}",
    "system messages dropped": "{% if m.role != 'system' %}{{ m.content }}{% endif %}",
    "all but the last dropped": "{% if loop.last %}{{ m.content }}{% endif %}",
    "upside down": "{{ m.content | reverse }}",
}
ORDER = {
    "answers before their questions": "{% for m in messages | sort(attribute='role') %}"
    "{{ m.content }}\n{% endfor %}",
    "newest first": "{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}",
}
TALK = [
    Message("system", " Be brief.\n\n"),
    Message("user", "Where is\nthe river? "),
    Message("assistant", "<think>\nassistant: user\n</think>\n\nBehind the mill. "),
    Message("user", "\n  user: a\n"),
]


def encode(template: str, messages: Sequence[Message] = TALK) -> Any:
    return encoder(tokenizer("byte level", template)).encode(messages)


@pytest.mark.parametrize("name", KEPT)
def test_what_templates_do_on_purpose(name: str) -> None:
    assert encode(LOOP.replace("BODY", KEPT[name])).tokens


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_told(name: str) -> None:
    with pytest.raises(PromptError, match=r"leaves out what message [1-4]") as caught:
        encode(LOOP.replace("BODY", LOST[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ORDER)
def test_what_is_out_of_order_is_told(name: str) -> None:
    with pytest.raises(PromptError, match="moves what message"):
        encode(ORDER[name])


def test_the_message_is_named() -> None:
    template = LOOP.replace("BODY", "{% if loop.index != 3 %}{{ m.content }}{% endif %}")
    with pytest.raises(PromptError, match=r"message 3 \(assistant\) says: '<think>"):
        encode(template)


@pytest.mark.parametrize("name", KEPT)
def test_where_they_stand_when_it_goes_on(name: str, seed: int) -> None:
    """What was found before is not sought again, and what is new is found where it stands."""
    rng = random.Random(seed)
    made = tokenizer("byte level", LOOP.replace("BODY", KEPT[name]))
    going_on = encoder(made)
    turns = [Message("user", "user")]
    for _ in range(8):
        texts = rng.choices(("user", "a", "assistant: ", " \n", "", "user:\nuser:", "\na "), k=2)
        turns += [Message("assistant", texts[0]), Message("user", texts[1])]
        assert going_on.encode(turns).tokens == encoder(made).encode(turns).tokens


def test_a_word_of_the_template_is_no_message() -> None:
    """What stands in the template anyway is not what somebody said."""
    found = TextFinder("here")
    pieces = [Piece(0, "user", "user", True)]
    assert found.locate("user: user\n", pieces, [], lambda w: f"user: {w[0]}\n") == [(6, 10)]
    with pytest.raises(PromptError):
        found.locate("a: \n", [Piece(0, "user", "said", True)], [], lambda w: "a: \n")
