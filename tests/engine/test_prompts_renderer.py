"""Prompts rendered the short way against transformers' own."""

import json
from itertools import product
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from support import gemma4_templates, published_qwen_templates, published_templates
from support.prompting import tokenizer
from transformers import PreTrainedTokenizerFast

from engine.prompts.chat_template import Renderer

TEMPLATES = {
    **{
        name: text
        for module in (gemma4_templates, published_templates, published_qwen_templates)
        for name, text in vars(module).items()
        if name.isupper() and name[0] != "_"
    },
    "switches": "{{ enable_thinking is defined }} {{ bos_token }}{{ eos_token }}"
    " {{ messages | tojson }} {{ add_generation_prompt }} {{ tools is defined }}"
    " {{ documents is defined }}",
    "keys": "{% for m in messages %}{% for key in m %}{{ key }},{% endfor %}{% endfor %}",
}
CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "f", "arguments": {"a": "x"}}}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": content}]
    for content in ("What?", "", [{"type": "text", "text": " a "}], [{"type": "image"}])
]
TALKS += [
    [
        {"role": "system", "content": system},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "Hm.", "name": "it"},
        {"role": "user", "content": user},
    ]
    for system, user in product(("Be brief.", [{"type": "text", "text": "Be brief."}]), ("", "So?"))
]
TALKS += [
    [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": content, "tool_calls": [CALL]},
        {"role": "tool", "content": "x", "tool_call_id": CALL["id"]},
    ]
    for content in ("", None, "I look.")
]


def _rendered(render: Any, talk: list[dict[str, Any]]) -> Any:
    try:
        return render(talk)
    except Exception as error:  # what the template says
        return str(error)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thinks", [False, True])
def test_both_ways_make_the_same(name: str, thinks: bool) -> None:
    inner = tokenizer("byte level", TEMPLATES[name])
    if thinks:
        inner.add_tokens(["<think>", "</think>"])
    wrapped = TokenizerWrapper(inner)
    assert wrapped.has_thinking == thinks
    ours = Renderer(wrapped)
    assert ours._plain is inner
    for talk in TALKS:
        before = json.dumps(talk)
        expected = _rendered(
            lambda m: inner.apply_chat_template(m, tokenize=False, add_generation_prompt=True),
            talk,
        )
        assert _rendered(ours, talk) == expected, talk
        assert json.dumps(talk) == before


TOOL = {"type": "function", "function": {"name": "f", "description": "Fs.", "parameters": {}}}


@pytest.mark.parametrize("name", ["switches", "GEMMA4_WITHOUT_THOUGHT", "QWEN3_THINKING"])
def test_what_it_is_told_beside_the_messages(name: str) -> None:
    inner = tokenizer("byte level", TEMPLATES[name])
    ours = Renderer(TokenizerWrapper(inner))
    told: list[dict[str, Any]] = [{"enable_thinking": on} for on in (True, False)]
    for variables in (*told, {"tools": [TOOL]}, {"documents": [{"title": "a"}], "other": None}):
        for talk in TALKS:

            def theirs(m: Any, variables: dict[str, Any] = variables) -> Any:
                return inner.apply_chat_template(
                    m, tokenize=False, add_generation_prompt=True, **variables
                )

            def given(m: Any, variables: dict[str, Any] = variables) -> str:
                return ours(m, variables)

            assert _rendered(given, talk) == _rendered(theirs, talk), talk


def test_a_renderer_of_its_own_is_asked() -> None:
    """mlx-lm has some in Python, and some tokenizers bring one."""

    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            return "its own"

    made = tokenizer("byte level", "the text's")
    talk = [{"role": "user", "content": "What?"}]
    own = Own(tokenizer_object=made.backend_tokenizer, chat_template="the text's")
    assert Renderer(TokenizerWrapper(own))(talk) == "its own"
    assert Renderer(own)(talk) == "its own"
    python = TokenizerWrapper(made, chat_template=lambda messages, **_: "in Python")
    assert Renderer(python)(talk) == "in Python"
    assert Renderer(made)(talk) == "the text's"
    assert Renderer(TokenizerWrapper(made))(talk) == "the text's"
