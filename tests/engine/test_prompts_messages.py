"""Messages: checked when they are made, and read from every form that applications write."""

import base64
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine import Message, PromptError, load_picture
from engine.images import LoadedPicture
from engine.prompts.chat_template import ChatTemplate
from engine.prompts.messages import check_results, read_messages, read_parts
from vision_add_ons.errors import ImageError

RED = load_picture(Image.new("RGB", (2, 2), "red"))
BLUE = load_picture(Image.new("RGB", (3, 2), "blue"))
CALL = {"type": "function", "id": "a1", "function": {"name": "look", "arguments": {"at": ["sky"]}}}
NESTED: list[Any] = []
NESTED.append(NESTED)


class Hostile:
    """Raises what it likes, whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    def __repr__(self) -> str:
        raise ZeroDivisionError("repr")

    def __iter__(self) -> Any:
        raise ZeroDivisionError("iter")


class HostileMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise ZeroDivisionError(key)

    def __iter__(self) -> Any:
        raise ZeroDivisionError("iter")

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        raise ZeroDivisionError("repr")


def test_a_message_s_parts() -> None:
    message = Message("user", ["This", RED, "or", BLUE, "that"])
    assert message.parts == ("This", RED, "or", BLUE, "that")
    assert message.text == "Thisorthat"
    assert message.images == (RED, BLUE)
    assert Message("user", "Hi").parts == ("Hi",)
    assert Message("user", RED).parts == (RED,)
    assert (Message("user").parts, Message("user").text, Message("user").images) == ((), "", ())
    assert message == Message("user", message.parts)
    with pytest.raises(FrozenInstanceError):
        message.role = "system"  # type: ignore[misc]


def test_a_message_is_nobody_else_s() -> None:
    """Lists that it was made of may change, and it does not."""
    parts, tokens, arguments = ["Hi"], [5], {"at": ["sky"]}
    call = {"id": "a1", "function": {"name": "look", "arguments": arguments}}
    made = Message("assistant", parts, tokens, tool_calls=[call])  # type: ignore[arg-type]
    parts.append("Ho")
    tokens.append(6)
    arguments["at"].append("sea")
    assert (made.parts, made.tokens, made.tool_calls) == (("Hi",), (5,), (CALL,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "bishop"},
        {"role": None},
        {"role": Hostile()},
        {"parts": None},
        {"parts": 5},
        {"parts": b"bytes"},
        {"parts": [None]},
        {"parts": ["a", b"bytes"]},
        {"parts": [Image.new("RGB", (2, 2))]},
        {"parts": [{"type": "text", "text": "Hi"}]},
        {"parts": "half \ud800"},
        {"parts": ["whole", "half \udcff"]},
        {"parts": Hostile()},
        {"parts": [Hostile()]},
        {"tokens": 5},
        {"tokens": "abc"},
        {"tokens": [True]},
        {"tokens": [1.0]},
        {"tokens": [-1]},
        {"tokens": [2**31]},
        {"tokens": [Hostile()]},
        {"reasoning": 5},
        {"reasoning": "half \ud800"},
        {"name": ["a"]},
        {"name": "\udcff"},
        {"tool_call_id": 5},
        {"tool_call_id": Hostile()},
        {"tool_calls": 5},
        {"tool_calls": CALL},
        {"tool_calls": [5]},
        {"tool_calls": [{}]},
        {"tool_calls": [{"function": {"arguments": {}}}]},
        {"tool_calls": [{"name": 5}]},
        {"tool_calls": [{"name": "look", "arguments": 5}]},
        {"tool_calls": [{"name": "look", "arguments": "[1]"}]},
        {"tool_calls": [{"name": "look", "arguments": "{at"}]},
        {"tool_calls": [{"name": "look", "arguments": {"at": object()}}]},
        {"tool_calls": [{"name": "look", "arguments": {"at": NESTED}}]},
        {"tool_calls": [{"name": "look", "arguments": {"at": "\ud800"}}]},
        {"tool_calls": [{"name": "look", "arguments": '{"at": "\\ud800"}'}]},
        {"tool_calls": [{"name": "\ud800"}]},
        {"tool_calls": [{"name": "look", "id": object()}]},
        {"tool_calls": [{"name": "look", "arguments": "[" * 100_000}]},
        {"tool_calls": [HostileMapping()]},
        {"tool_calls": Hostile()},
    ],
)
def test_what_is_no_message(wrong: dict[str, Any]) -> None:
    with pytest.raises(PromptError) as caught:
        Message(**{"role": "assistant", **wrong})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"id": "a1", "name": "look", "arguments": {"at": ["sky"]}},
        {"id": "a1", "type": "function", "name": "look", "arguments": '{"at": ["sky"]}'},
        {"id": "a1", "function": {"name": "look", "arguments": '{"at": ["sky"]}'}},
    ],
)
def test_calls_have_one_form(call: dict[str, Any]) -> None:
    assert Message("assistant", tool_calls=(call,)).tool_calls == (CALL,)


@pytest.mark.parametrize("arguments", [{}, {"arguments": ""}, {"arguments": "{}"}])
def test_calls_without_arguments(arguments: dict[str, Any]) -> None:
    (call,) = Message("assistant", tool_calls=({"name": "look", **arguments},)).tool_calls
    assert call == {"type": "function", "function": {"name": "look", "arguments": {}}}


def png(picture: LoadedPicture) -> bytes:
    file = BytesIO()
    picture.pixels().save(file, "PNG")
    return file.getvalue()


def test_contents_of_every_form(tmp_path: Path) -> None:
    data = png(RED)
    (tmp_path / "red.png").write_bytes(data)
    encoded = base64.b64encode(data).decode()
    for source in (RED, RED.pixels(), data, tmp_path / "red.png", str(tmp_path / "red.png")):
        assert read_parts(["a", {"type": "image", "image": source}, "b"]) == ("a", RED, "b")
    for url in (f"data:image/png;base64,{encoded}", encoded, str(tmp_path / "red.png")):
        for source in (url, {"url": url}, {"url": url, "detail": "low"}):
            part = {"type": "image_url", "image_url": source}
            assert read_parts([part, {"type": "text", "text": "b"}]) == (RED, "b")
    assert read_parts("a") == ("a",)
    assert read_parts("") == ("",)
    assert read_parts(RED) == (RED,)
    assert read_parts(("a", RED)) == ("a", RED)
    assert read_parts([]) == ()


def test_a_dictionary_s_fields() -> None:
    told = {
        "role": "assistant",
        "content": [RED, "Teal."],
        "tokens": [5, 6],
        "reasoning": "It looks so.",
        "tool_calls": [CALL],
        "tool_call_id": "a1",
        "name": "Ann",
        "created": 5,  # an app's own
    }
    made = Message("assistant", (RED, "Teal."), (5, 6), "It looks so.", (CALL,), "a1", "Ann")
    assert read_messages([told]) == [made]
    told["reasoning_content"] = told.pop("reasoning")
    assert read_messages([told]) == [made]
    assert read_messages([{**told, "reasoning": "Mine."}])[0].reasoning == "Mine."
    assert read_messages([made])[0] is made
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert read_messages([called]) == [Message("assistant", (), tool_calls=(CALL,))]


def test_images_apart_go_before_the_first_text() -> None:
    def parts(content: Any, images: Any = (), more: Any = ()) -> Any:
        return read_messages([{"role": "user", "content": content, "images": images}], more)[
            0
        ].parts

    assert parts("a", [RED, BLUE]) == (RED, BLUE, "a")
    assert parts(["a", BLUE, "b"], [RED]) == (RED, "a", BLUE, "b")
    assert parts([BLUE, "a"], [RED]) == (BLUE, RED, "a")
    assert parts([BLUE], [RED]) == (BLUE, RED)
    assert parts([], [RED]) == (RED,)
    assert parts("a", [RED], [BLUE]) == (RED, BLUE, "a")
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    read = read_messages([*talk, Message("assistant", "d")], [RED])
    assert [m.parts for m in read] == [("a",), ("b",), (RED, "c"), ("d",)]
    assert talk[2].parts == ("c",)
    with pytest.raises(PromptError, match="need a user message"):
        read_messages([Message("system", "a")], [RED])


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [5],
        ["a"],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": 5, "content": "a"}],
        [{"role": "bishop", "content": "a"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": b"a"}],
        [{"role": "user", "content": {"type": "text", "text": "a"}}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"text": "a"}]}],
        [{"role": "user", "content": [{"type": "video", "video": "a"}]}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}],
        [{"role": "user", "content": [Image.new("RGB", (2, 2))]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": ["\ud800"]}],
        [{"role": "user", "content": Hostile()}],
        [{"role": "user", "content": [HostileMapping()]}],
        [HostileMapping()],
        [Hostile()],
        5,
        None,
    ],
)
def test_what_are_no_messages(wrong: Any) -> None:
    with pytest.raises(PromptError) as caught:
        read_messages(wrong)
    assert "\n" not in str(caught.value)


def test_messages_that_cannot_be_read() -> None:
    for wrong in (Hostile(), HostileMapping()):
        with pytest.raises(PromptError):
            read_messages(wrong)  # type: ignore[arg-type]


def test_images_that_are_none() -> None:
    for images in (5, [5], [Hostile()], [b"no image"]):
        with pytest.raises(ImageError):
            read_messages([{"role": "user", "content": "a", "images": images}])
    with pytest.raises(ImageError):
        read_messages([{"role": "user", "content": [{"type": "image", "image": b"none"}]}])


def test_results_without_their_calls() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    unnamed = {**call, "tool_calls": [{"name": "look", "arguments": {}}]}
    result = {"role": "tool", "tool_call_id": "a1", "content": "Clouds."}
    for taken in ([call, result, result], [unnamed, result], [{**result, "tool_call_id": None}]):
        check_results(read_messages(taken))
    for orphans in ([result], [result, call], [call, {**result, "tool_call_id": "b2"}]):
        with pytest.raises(PromptError, match=r"no call of a tool has the id '(a1|b2)'"):
            check_results(read_messages(orphans))


def test_what_a_template_reads_beside_texts() -> None:
    """Reasoning, calls and their answers, and names."""
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        chat_template="{% for m in messages %}{{ m.role }}"
        "{% if m.name is defined %}({{ m.name }}){% endif %}"
        "{% if m.tool_call_id is defined %}[{{ m.tool_call_id }}]{% endif %}: "
        "{% if m.reasoning_content is defined %}<{{ m.reasoning_content }}>{% endif %}"
        "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.id }}="
        "{{ call.function.name }}{{ call.function.arguments | tojson }}"
        "{{ call.function.arguments.items() | list | length }}{% endfor %};{% endfor %}",
    )
    messages = [
        {"role": "user", "name": "Ann", "content": "Well?"},
        {"role": "assistant", "content": None, "reasoning": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a1", "name": "look", "content": "Clouds."},
        {"role": "assistant", "content": "Rain.", "reasoning_content": ""},
    ]
    template = ChatTemplate(tokenizer, None, sees=False)
    assert template.render(read_messages(messages)) == (
        'user(Ann): Well?;assistant: <Let me see.>a1=look{"at": ["sky"]}1;'
        "tool(look)[a1]: Clouds.;assistant: Rain.;"
    )
