"""Texts and tokenizers that an attacker, or bad luck, would choose: nothing lost, soon done."""

from typing import Any

import pytest
from support.prompting import encoder, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engine.prompts.messages import Message
from vision_add_ons.errors import PromptError

LOOP = "{% for m in messages %}{{ m.role }}: BODY\n{% endfor %}assistant:"
PLAIN = LOOP.replace("BODY", "{{ m.content }}")
CALL: Any = {"function": {"name": "look_up", "arguments": {"town": "Ulm"}}}


def read(template: str, *messages: Message) -> str:
    made = tokenizer("byte level", template)
    return str(made.decode(encoder(made).encode(messages).tokens))


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (
            "{{ m.content if m.role != 'system' }}",
            [Message("system", "river"), Message("user", "what is a river?")],
        ),
        (
            "{{ m.content if loop.index != 1 }}",
            [Message("user", "use"), Message("assistant", ""), Message("user", "hello")],
        ),
        (
            "{{ m.content if m.role != 'assistant' }}",
            [Message("user", "say"), Message("assistant", "user"), Message("user", "say user")],
        ),
        ("{{ m.content.split('</think>')[-1] }}", [Message("user", "What does </think> mean?")]),
    ],
)
def test_letters_that_stand_elsewhere_are_no_text(template: str, messages: Any) -> None:
    with pytest.raises(PromptError, match="leaves out what message"):
        read(LOOP.replace("BODY", template), *messages)


@pytest.mark.parametrize("text", ['{"temp": 20}', 'said "a"\nand \\ b', "x\ty"])
def test_what_a_tool_says_as_json(text: str) -> None:
    template = LOOP.replace(
        "BODY",
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% elif m.role == 'tool' %}"
        "{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}",
    )
    told = [
        Message("user", "a"),
        Message("assistant", (), tool_calls=[CALL]),
        Message("tool", text),
    ]
    assert "look_up" in read(template, *told)


@pytest.mark.parametrize("text", ["Be brief. /no_think", "/no_think Be brief.", "/think"])
def test_switches_are_the_template_s_to_take_out(text: str) -> None:
    template = LOOP.replace(
        "BODY", "{{ m.content.replace('/no_think', '').replace('/think', '').rstrip() }}"
    )
    assert "no_think" not in read(template, Message("system", text), Message("user", "a"))


def test_the_answer_behind_the_reasoning() -> None:
    body = "{{ m.content.split('<answer>')[-1].split('</answer>')[0].strip() }}"
    said = Message("assistant", "<think>b</think>\n<answer>\nHello\n</answer>")
    assert (
        "b"
        not in read(LOOP.replace("BODY", body), Message("user", "a"), said).split("Hello")[0][-3:]
    )


def test_reasoning_that_is_kept_once_and_left_out_once() -> None:
    """The template writes it of the latest answer alone, and an empty one where there is none."""
    body = (
        "{% set said = m.content.split('</think>') %}{% if m.role == 'assistant' and loop.last %}"
        "<think>\n{{ said[0].split('<think>')[-1].strip() if said | length > 1 }}\n</think>\n\n"
        "{% endif %}{{ said[-1].strip() }}"
    )
    thought = Message("assistant", "<think>\nI wonder.\n</think>\n\nYes.")
    told = [Message("user", "Hi"), thought, Message("user", "And?"), thought]
    assert read(LOOP.replace("BODY", body), *told).count("Yes.") == 2


def test_calls_are_not_lost() -> None:
    said = [Message("user", "a"), Message("assistant", (), tool_calls=[CALL])]
    with pytest.raises(PromptError, match=r"message 2 \(assistant\) calls: 'look_up'"):
        read(PLAIN, *said)
    picky = LOOP.replace(
        "BODY",
        "{% if m.content is none or m.content is not defined %}{{ m.tool_calls[0].function.name + "
        "'(' + m.tool_calls[0].function.arguments + ')' }}{% else %}{{ m.content }}{% endif %}",
    )
    assert 'look_up({"town": "Ulm"})' in read(picky, *said)


def test_errors_do_not_tell_what_stands_for_image_tokens() -> None:
    from engine.prompts.chat_template import ChatTemplate

    template = ChatTemplate(tokenizer("byte level", PLAIN), None, sees=False)
    assert template.private not in template.shown(f"{template.private}-t0\ue001 hi")


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([Message("user", "a " * 30_000 + "b\n\nc")], id="words"),
        pytest.param([Message("user", (*[" "] * 2_000, "a/no_think"))], id="blank parts"),
        pytest.param([Message("user", " \n" * 100_000)], id="blanks"),
        pytest.param([Message("user", "a")] * 4_000, id="messages"),
        pytest.param([Message("user", ("",) * 20_000)], id="empty parts"),
    ],
)
@pytest.mark.parametrize("kept", ["{{ m.content }}", "{{ m.content | replace('\n\n', '\n') }}"])
def test_time_goes_by_the_length(kept: str, messages: list[Message]) -> None:
    """Else this would take minutes."""
    assert read(LOOP.replace("BODY", kept), *messages)


def unknown(scheme: str) -> PreTrainedTokenizerFast:
    """What it does not know is a token that is also an added one."""
    letters = ["<unk>", "▁", *map(chr, range(97, 123)), "<s>", "</s>"]
    known = {text: i for i, text in enumerate(letters)}
    made = Tokenizer(models.BPE(known, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ("<unk>", "<s>", "</s>")
    made.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=PLAIN
    )


def trimming() -> PreTrainedTokenizerFast:
    """It leaves the blanks out of what it says of where tokens begin, and has blanks added."""
    made = tokenizer("byte level", PLAIN)
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    made.add_tokens([AddedToken("    ", normalized=False)])
    return made


@pytest.mark.parametrize(
    "made",
    [unknown("always"), unknown("first"), unknown("never"), trimming()],
    ids=["always", "first", "never", "trimming"],
)
@pytest.mark.parametrize("middle", ["日", "    ", "<unk>", " 日    x"])
def test_ids_go_on_as_from_nothing(made: PreTrainedTokenizerFast, middle: str) -> None:
    going_on = encoder(made)
    for end in ("which goes on", "which goes elsewhere", "and so on"):
        said = [Message("user", f"river {middle} and then a long tail of many words, {end}")]
        assert going_on.encode(said).tokens == encoder(made).encode(said).tokens


def test_empty_answers_have_no_ids_of_their_own() -> None:
    made = tokenizer("byte level", "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}")
    going_on = encoder(made)
    for last in ("and a longer question", "but another one"):
        said = [Message("user", "hi"), Message("assistant", "", (3,)), Message("user", last)]
        assert going_on.encode(said).tokens == encoder(made).encode(said).tokens
