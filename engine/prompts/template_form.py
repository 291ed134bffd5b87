"""In which form a chat template reads messages: found by rendering probes, not by its source.

Templates differ in what they take a message's `content` for: a text, a list of parts, or either;
a part's text lies under `text` or under `content`; some read the first part alone. A template that
is given another form often drops the words without an error. So each form is tried with words that
cannot be mistaken, and the first that keeps all of them serves every later message.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Any

Json = dict[str, Any]
Render = Callable[[list[Json]], str]
"""Applies a chat template to messages; raises whatever the template trips over."""


class Content(Enum):
    """How a message's content is given to a template."""

    TEXT = "a text"
    PARTS = "parts"
    KEYED_PARTS = "parts whose text lies under content too"
    ONE_PART = "a single part"

    def of(self, parts: Sequence[Mapping[str, Any]]) -> Any:
        """The content of a message that has these parts, as a template is given it.

        `parts` are `{"type": "text", "text": ...}`, or of other types, which stay as they are.
        `TEXT` and `ONE_PART` have room for texts alone, which become one.
        """
        if self is Content.PARTS:
            return [dict(part) for part in parts]
        if self is Content.KEYED_PARTS:
            return [_keyed(part) for part in parts]
        text = "".join(part["text"] for part in parts)
        if self is Content.TEXT:
            return text
        return [_keyed({**(parts[0] if parts else {"type": "text"}), "text": text})]


@dataclass(frozen=True)
class Calls:
    """How a template reads an answer that calls tools."""

    content: str | None = ""
    """What its content is where it says nothing."""
    written: bool = False
    """Whether the arguments are given as JSON in a text, and not as a dictionary."""

    def of(self, calls: Sequence[Mapping[str, Any]]) -> list[Json]:
        """`calls` are in OpenAI's form, each with its arguments as a dictionary."""
        made = [{**call, "function": dict(call["function"])} for call in calls]
        for call in made if self.written else ():
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
        return made

    def message(self, name: str = "f", argument: str = "x") -> Json:
        """An answer that calls one tool."""
        function = {"name": name, "arguments": {"a": argument}}
        calls = self.of([{"type": "function", "id": CALL, "function": function}])
        return {"role": "assistant", "content": self.content, "tool_calls": calls}


@dataclass(frozen=True)
class TemplateForm:
    """What a template keeps all words of, by role, and where it has places for images."""

    texts: Mapping[str, Content]
    """For messages of text alone."""
    images: Mapping[str, Content]
    """For messages with images; a role whose messages have no place for any is not there."""
    calls: "Calls"
    found: bool
    """Whether every word is kept so; else it was refused in every form, or lost in each."""


TEXT_FIRST = (Content.TEXT, Content.PARTS, Content.KEYED_PARTS, Content.ONE_PART)
PARTS_FIRST = (Content.PARTS, Content.KEYED_PARTS, Content.ONE_PART, Content.TEXT)
ROLES = ("system", "user", "assistant")
CALL = "a1b2c3d4e"
"""A tool call's id; some templates insist on nine characters."""
UNREAD = "Qxunreadjvkz"
"""In a part where no template looks: where it is rendered, the part was printed as it is."""


def find_form(
    render: Render, preferred: Sequence[Content], image_marks: Sequence[str]
) -> TemplateForm:
    """The first form, in the order `preferred`, in which a template keeps every word.

    `image_marks` are the texts that a template writes in place of an image, if it is to.
    Where no form keeps them all, the most preferred is taken: what is then lost from a message is
    refused when it is rendered.
    """
    kept = _texts(render, preferred)
    texts = kept or dict.fromkeys(ROLES, preferred[0])
    calls = _calls(render, texts)
    texts["tool"] = _tool_texts(render, preferred, texts, calls)
    forms = [content for content in preferred if content in (Content.PARTS, Content.KEYED_PARTS)]
    images = {}
    for role in (*ROLES, "tool") if image_marks else ():
        for content in forms:
            if _keeps_images(render, texts, calls, role, content, image_marks):
                images[role] = content
                break
    return TemplateForm(texts, images, calls, kept is not None)


def _texts(render: Render, preferred: Sequence[Content]) -> dict[str, Content] | None:
    # Some know no system message, and say so; some know a single question.
    for roles in (ROLES, ROLES[1:], ("user",)):
        ways = product(range(len(preferred)), repeat=len(roles))
        for ranks in sorted(ways, key=sum):
            form = dict(zip(roles, (preferred[rank] for rank in ranks), strict=True))
            if _keeps_words(render, form):
                return dict.fromkeys(ROLES, form["user"]) | form
    return None


def _calls(render: Render, texts: Mapping[str, Content]) -> Calls:
    """The first form in which a call's name and its arguments are rendered, if there is one."""
    for written, content in product((False, True), ("", None)):
        words = _words()
        asked = {"role": "user", "content": texts["user"].of(_probes([next(words)]))}
        own = [next(words), next(words)]
        calls = Calls(content, written)
        rendered = _rendered(render, [asked, calls.message(*own)])
        if all(word in rendered for word in own):
            return calls
    return Calls()


def _tool_texts(
    render: Render, preferred: Sequence[Content], texts: Mapping[str, Content], calls: Calls
) -> Content:
    """How a template reads what a tool answered; as a question, if it knows no tools."""
    for content in dict.fromkeys((texts["user"], *preferred)):
        words = _words()
        asked = {"role": "user", "content": texts["user"].of(_probes([next(words)]))}
        own = [next(words)]
        told = {"role": "tool", "content": content.of(_probes(own)), "tool_call_id": CALL}
        if _in_order(_rendered(render, [asked, calls.message(), told]), own):
            return content
    return texts["user"]


def _keeps_words(render: Render, form: Mapping[str, Content]) -> bool:
    """Whether two questions, an answer and perhaps a system message are rendered whole.

    Where `form` is for questions alone, whether one is.
    """
    words = _words()
    messages: list[Json] = []
    system: list[str] = []
    others: list[str] = []
    for role in ("system", "user", "assistant", "user") if len(form) > 1 else form:
        if role in form:
            own = [next(words), next(words)]
            (system if role == "system" else others).extend(own)
            messages.append({"role": role, "content": form[role].of(_probes(own))})
    rendered = _rendered(render, messages)
    # A template may move the system message, and nothing else.
    return all(_in_order(rendered, kept) for kept in (system, others))


def _keeps_images(
    render: Render,
    texts: Mapping[str, Content],
    calls: Calls,
    role: str,
    content: Content,
    image_marks: Sequence[str],
) -> bool:
    """Whether a message of this role, with two images among its words, is rendered whole."""
    words = _words()
    messages: list[Json] = []
    kept: list[str] = []
    for other in {
        "system": ("system", "user"),
        "user": ("user",),
        "assistant": ("user", "assistant", "user"),
        "tool": ("user", "call", "tool"),
    }[role]:
        if other == "call":
            messages.append(calls.message())
            continue
        own = [next(words), next(words)]
        kept += own
        parts = _probes(own)
        way = texts[other]
        if other == role:
            parts[1:1] = [{"type": "image"}, {"type": "image"}]
            way = content
        messages.append({"role": other, "content": way.of(parts)})
    if role == "tool":
        messages[-1]["tool_call_id"] = CALL
    rendered = _rendered(render, messages)
    return _in_order(rendered, kept) and sum(map(rendered.count, image_marks)) == 2


def _rendered(render: Render, messages: list[Json]) -> str:
    try:
        rendered = render(messages)
    except Exception:  # templates are programs of the checkpoint's; they raise what they like
        return ""
    return "" if UNREAD in rendered else rendered


def _in_order(rendered: str, words: Sequence[str]) -> bool:
    """Whether each word stands there once, one after the other."""
    places = [rendered.find(word) for word in words]
    return all(rendered.count(word) == 1 for word in words) and places == sorted(places)


def _probes(words: Sequence[str]) -> list[Json]:
    return [{"type": "text", "text": word, "unread": UNREAD} for word in words]


def _words() -> Iterator[str]:
    """Words that stand in no template."""
    return (f"Qx{i}jvkz" for i in range(1, 100))


def _keyed(part: Mapping[str, Any]) -> Json:
    return {**part, "content": part["text"]} if part["type"] == "text" else dict(part)
