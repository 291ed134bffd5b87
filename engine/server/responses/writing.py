"""An answer as the items of a response, and as the events that tell of them one by one."""

import secrets
from collections.abc import Mapping, Sequence

from engine.events import TextDelta, ToolCall, ToolCallDelta
from engine.server.responses.items import sealed
from engine.server.streaming import Json, Piece
from engine.server.tokens import TokenTexts

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class Writer:
    """Makes one answer's items, each whole before the next begins.

    A call is told of when it is whole: clients run what they were told of, and what begins as a
    call may turn out to be none. One that is enforced is told in pieces; of several that stand or
    fall together, the first.
    """

    def __init__(
        self,
        tokens: TokenTexts,
        *,
        logprobs: bool = False,
        summarized: bool = False,
        seals: bool = False,
        must_call: bool = False,
        namespaces: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """`summarized` tells thoughts as summaries, `seals` also as encrypted content; `must_call`
        says that calls are enforced. `namespaces` has the tools that are told of by two names."""
        self._tokens, self._logprobs = tokens, logprobs
        self._summarized, self._seals, self._must_call = summarized, seals, must_call
        self._namespaces = namespaces or {}
        self.items: list[Json] = []
        """Those that are whole."""
        self.broken = False
        """Whether something was told of a call that is none."""
        self._begun = 0
        self._item: Json | None = None
        """The one at work."""
        self._texts: list[str] = []
        self._entries: list[Json] = []
        """The log-probabilities of its tokens."""
        self._untold: list[TextDelta] = []
        """Tokens that made no text yet."""
        self._calling: int | None = None
        """The index of the call at work."""

    def tell(self, delta: Piece) -> list[Json]:
        """The events of what came, without their numbers."""
        if isinstance(delta, ToolCallDelta):
            return self._part_of_call(delta) if self._must_call else []
        if isinstance(delta, ToolCall):
            return self._whole_call(delta)
        if delta.reasoning:
            return self._more("reasoning", delta.reasoning)
        if self._logprobs and delta.token is not None:
            self._untold.append(delta)
        return self._more("message", delta.text) if delta.text else []

    def end(self, cut: bool) -> list[Json]:
        """The events of its end; it was `cut` if it was not the model's own."""
        events: list[Json] = []
        if self._untold and self._kind == "message":
            events = self._more("message", "")
        events += self._close("incomplete" if cut else "completed")
        if not cut and all(item["type"] == "reasoning" for item in self.items):
            # Clients look for a message; an answer that says nothing is one, too.
            events += [*self._open("message"), *self._close("completed")]
        return events

    @property
    def _kind(self) -> str | None:
        """The kind of the item at work."""
        return self._item["type"] if self._item else None

    def _more(self, kind: str, text: str) -> list[Json]:
        """More of a message, or of a thought."""
        events = [] if self._kind == kind else [*self._close(), *self._open(kind)]
        self._texts.append(text)
        if kind == "reasoning":
            return [*events, self._event(f"{self._text_name}.delta", delta=text)]
        entries = [_with_bytes(entry) for entry in self._tokens.told(self._untold)]
        self._entries += entries
        self._untold.clear()
        told = _without_bytes(entries)
        return [*events, self._event(f"{self._text_name}.delta", delta=text, logprobs=told)]

    def _part_of_call(self, delta: ToolCallDelta) -> list[Json]:
        events: list[Json] = []
        if self._kind != "function_call":
            self._calling = delta.index
            events = self._close()
            named = {"name": delta.name}
            if delta.name in self._namespaces:
                named = dict(zip(("name", "namespace"), self._namespaces[delta.name], strict=True))
            events += self._open("function_call", call_id=delta.id, **named)
        elif delta.index != self._calling:
            return []  # none of them is a call yet: this one is told when it is whole
        if not delta.arguments:
            return events
        self._texts.append(delta.arguments)
        return [*events, self._event("function_call_arguments.delta", delta=delta.arguments)]

    def _whole_call(self, call: ToolCall) -> list[Json]:
        events: list[Json] = []
        if self._kind != "function_call" or call.index != self._calling:
            events = self._close()
            events += self._part_of_call(
                ToolCallDelta(call.index, call.id, call.name, call.written)
            )
        return [*events, *self._close(whole=True)]

    def _open(self, kind: str, **more: str) -> list[Json]:
        """Begin an item."""
        identity = f"{_PREFIXES[kind]}_{secrets.token_hex(16)}"
        item: Json = {"id": identity, "type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item["summary"] = []
        else:
            item |= {"arguments": "", **more}
        if kind != "message":
            self._untold.clear()
        self._item, self._texts, self._entries = item, [], []
        added = {"type": "response.output_item.added", "output_index": self._begun}
        self._begun += 1
        events = [{**added, "item": dict(item)}]
        if kind != "function_call":
            events.append(self._event(f"{self._part_name}.added", part=self._part("")))
        return events

    def _close(self, status: str = "completed", whole: bool = False) -> list[Json]:
        """End the item at work, if there is one. A call that is not `whole` is none: it stays
        without an end, and out of the response."""
        item, self._item = self._item, None
        if item is None:
            return []
        kind, text = item["type"], "".join(self._texts)
        if kind == "function_call" and not whole:
            self.broken = True
            return []
        self._item = item | {"status": status}
        if kind == "function_call":
            self._item["arguments"] = text
            events = [self._event("function_call_arguments.done", arguments=text)]
        else:
            told = {"logprobs": _without_bytes(self._entries)} if kind == "message" else {}
            part = self._part(text)
            events = [
                self._event(f"{self._text_name}.done", text=text, **told),
                self._event(f"{self._part_name}.done", part=part),
            ]
            summary = kind == "reasoning" and self._summarized
            self._item["summary" if summary else "content"] = [part]
            if kind == "reasoning" and self._seals:
                self._item["encrypted_content"] = sealed(text)
        at = self._begun - 1
        self.items.append(self._item)
        events.append({"type": "response.output_item.done", "output_index": at, "item": self._item})
        self._item = None
        return events

    @property
    def _text_name(self) -> str:
        """What events call the text of the item at work."""
        if self._kind == "message":
            return "output_text"
        return "reasoning_summary_text" if self._summarized else "reasoning_text"

    @property
    def _part_name(self) -> str:
        summary = self._kind == "reasoning" and self._summarized
        return "reasoning_summary_part" if summary else "content_part"

    def _part(self, text: str) -> Json:
        """The part of the item at work that holds its text: each has one."""
        if self._kind == "message":
            entries = self._entries if text else []
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}
        return {"type": "summary_text" if self._summarized else "reasoning_text", "text": text}

    def _event(self, name: str, **fields: object) -> Json:
        """An event of the item at work."""
        assert self._item is not None
        told: Json = {"type": f"response.{name}", "item_id": self._item["id"]}
        told["output_index"] = self._begun - 1
        if self._kind == "reasoning" and self._summarized:
            told["summary_index"] = 0
        elif self._kind != "function_call":
            told["content_index"] = 0
        return told | fields


def _with_bytes(entry: Json) -> Json:
    """A log-probability of an item: bytes that are not known are none."""
    tops = [{**top, "bytes": top["bytes"] or []} for top in entry["top_logprobs"]]
    return {**entry, "bytes": entry["bytes"] or [], "top_logprobs": tops}


def _without_bytes(entries: Sequence[Json]) -> list[Json]:
    """Log-probabilities of an event, which has them without bytes."""
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "top_logprobs": [
                {"token": top["token"], "logprob": top["logprob"]} for top in entry["top_logprobs"]
            ],
        }
        for entry in entries
    ]
