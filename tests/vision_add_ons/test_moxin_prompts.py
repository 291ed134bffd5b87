"""Moxin's own chat templates, and what messages it gives to those of others."""

import jinja2
import jinja2.sandbox
import pytest
from support import moxin_checkpoint as checkpoint
from support.moxin_checkpoint import HF

from vision_add_ons.moxin import MoxinAddOn


@pytest.fixture(scope="module")
def parts():
    return checkpoint.random_parts(seed=7)


def environment(trim: bool) -> jinja2.Environment:
    """Templates must not depend on how blocks are trimmed: transformers trims, others do not."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    made.globals["raise_exception"] = raise_exception
    return made


@pytest.fixture(params=[True, False], ids=["trimmed", "untrimmed"])
def render(request, tmp_path):
    def render(messages, config=None, folder=tmp_path):
        template = MoxinAddOn.default_chat_template(config or {}, folder)
        rendered = environment(request.param).from_string(template)
        return rendered.render(
            messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
        )

    return render


INSTRUCT = {"_name_or_path": "moxin-org/Moxin-7B-VLM-Instruct"}


def turns(*texts, system=None):
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]


@pytest.mark.parametrize(
    ("messages", "in_out", "instruct"),
    [
        (turns("q"), "<s>In: q\nOut:", "<s>[INST] q [/INST]"),
        (
            turns("q", "a", "q2"),
            "<s>In: q\nOut: a</s>In: q2\nOut:",
            "<s>[INST] q [/INST] a</s>[INST] q2 [/INST]",
        ),
        (turns("q", "a"), "<s>In: q\nOut: a</s>", "<s>[INST] q [/INST] a</s>"),
        (turns(" q\n", " a "), "<s>In: q\nOut: a</s>", "<s>[INST] q [/INST] a</s>"),
        (turns("q", ""), "<s>In: q\nOut:  </s>", "<s>[INST] q [/INST]  </s>"),
        (
            turns("q", "a", "q2", system="Be brief."),
            "<s>In: Be brief.\n\nq\nOut: a</s>In: q2\nOut:",
            "<s>[INST] Be brief.\n\nq [/INST] a</s>[INST] q2 [/INST]",
        ),
        (turns("q", system=""), "<s>In: q\nOut:", "<s>[INST] q [/INST]"),
        (
            turns("{{ a }} \\n %}"),
            "<s>In: {{ a }} \\n %}\nOut:",
            "<s>[INST] {{ a }} \\n %} [/INST]",
        ),
    ],
)
def test_templates(render, messages, in_out, instruct):
    assert render(messages) == in_out
    assert render(messages, INSTRUCT) == instruct


@pytest.mark.parametrize("where", ["_name_or_path", "llm_backbone_id", "folder"])
def test_instruct_is_told_by_name(render, tmp_path, where):
    config = {} if where == "folder" else {where: "mistral-v0.1-7b-Instruct"}
    folder = tmp_path / ("Moxin-INSTRUCT" if where == "folder" else "moxin")
    assert render(turns("q"), config, folder) == "<s>[INST] q [/INST]"


def test_pictures_stand_before_their_turn(render):
    messages = turns("q", "a", "q2", system="S")
    messages[1]["images"] = ["<A>", "<B>"]
    messages[3]["images"] = ["<C>"]
    assert render(messages) == "<s><A><B>In: S\n\nq\nOut: a</s><C>In: q2\nOut:"
    assert render(messages, INSTRUCT) == (
        "<s><A><B>[INST] S\n\nq [/INST] a</s><C>[INST] q2 [/INST]"
    )


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "tool", "content": "x"}], "tool"),
        ([*turns("q"), {"role": "system", "content": "x"}], "first"),
    ],
)
def test_templates_refuse(render, messages, complaint):
    with pytest.raises(jinja2.TemplateError, match=complaint):
        render(messages)


@pytest.mark.parametrize(
    ("file", "text", "own"),
    [
        (None, "", True),
        ("tokenizer_config.json", "{}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', False),
        ("chat_template.jinja", "{{ messages }}", False),
        ("chat_template.json", '{"chat_template": "{{ messages }}"}', False),
        ("processor_config.json", '{"chat_template": "{{ messages }}"}', False),
        ("additional_chat_templates/default.jinja", "{{ messages }}", False),
    ],
)
def test_messages_suit_the_template(parts, tmp_path, file, text, own):
    folder = checkpoint.write(tmp_path, parts.named(HF), checkpoint.config())
    if file:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    texts = [{"type": "text", "text": text} for text in ("hi", "and", "<A>", "<B>")]
    image = {"type": "image"}
    given = {"role": "user", "content": [texts[0], image, texts[1], image]}
    message = MoxinAddOn(folder, checkpoint.config()).place_images(given, ["<A>", "<B>"])
    if own:
        assert message == {"role": "user", "content": texts[:2], "images": ["<A>", "<B>"]}
    else:
        assert message["content"] == [texts[0], texts[2], texts[1], texts[3]]
