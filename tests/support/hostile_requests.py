"""Requests that ask for what takes too long, or too much, and what each is answered with."""

import json
from typing import Any

Json = dict[str, Any]

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASKING: dict[str, Json] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    TEXT: {"prompt": "x", "max_tokens": 3},
    RESPONSES: {"input": "x", "max_output_tokens": 3},
}
"""What an ordinary request says, by its route."""


def schema(given: Json) -> Json:
    named = {"name": "x", "schema": given}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def text_format(given: Json) -> Json:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": given}}}


def tools(*parameters: Json, **more: Any) -> Json:
    each = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": given}}
        for i, given in enumerate(parameters)
    ]
    return {"tools": each, **more}


def called(arguments: str, *behind: Json) -> Json:
    """A conversation with a call, and what came of it."""
    function = {"name": "f", "arguments": arguments}
    call = {"id": "a1", "type": "function", "function": function}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [*ASKING[CHAT]["messages"], said, *behind]}


def result(content: Any) -> Json:
    return {"role": "tool", "tool_call_id": "a1", "content": content}


def nested(depth: int, keyword: str = "items") -> Json:
    return json.loads(f'{{"{keyword}":' * depth + "{}" + "}" * depth)


def chained(count: int) -> Json:
    each = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(count)}
    return {"$defs": {**each, f"d{count}": {}}, "$ref": "#/$defs/d0"}


def doubled(count: int, keyword: str) -> Json:
    """Each definition holds the next one twice."""
    each = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(count)}
    return {"$defs": {**each, f"d{count}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def either(count: int) -> Json:
    """An object that is one of two in many ways at once."""
    names = [(f"a{i}", f"b{i}") for i in range(count)]
    return {"allOf": [{"anyOf": [{"required": [one]} for one in pair]} for pair in names]}


def pattern(given: str, **more: Any) -> Json:
    return schema({"type": "string", "pattern": given, **more})


def names(count: int) -> Json:
    return {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(count)}}


def flat_result(output: Any) -> Json:
    return {"type": "function_call_output", "call_id": "a1", "output": output}


FLAT_TOOLS = [{"type": "function", "name": "f", "parameters": {}}]
FLAT_CALL = {"type": "function_call", "call_id": "a1", "name": "f", "arguments": "{}"}
USER: Json = {"role": "user", "content": "x"}
TEXT_PART = {"type": "text", "text": "x"}
IN_PARTS: Json = {"role": "user", "content": [TEXT_PART] * 30}
RARE = "\U00012000" * 2**22
"""As long a text as there may be, of four bytes a character, and of as many tokens for some."""
ANSWERED = None
CIRCLE = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
ROWS: list[tuple[str, str, Json, str | None]] = [
    # Schema bombs.
    (CHAT, "deep", schema(nested(300)), "invalid_value"),
    (CHAT, "chained", schema(chained(3000)), "nested deeper"),
    (CHAT, "circle", schema(CIRCLE), "nothing that this model can write"),
    (CHAT, "doubled anyOf", schema(doubled(60, "anyOf")), ANSWERED),
    (CHAT, "doubled allOf", schema(doubled(60, "allOf")), ANSWERED),
    (CHAT, "either", schema(either(40)), "schema: "),
    (CHAT, "enum", schema({"enum": [f"{i * 7919 % 99991:x}" for i in range(20_000)]}), ANSWERED),
    (CHAT, "many properties", schema(names(1500)), ANSWERED),
    (CHAT, "too many properties", schema(names(9000)), "properties: it has 9,000"),
    (CHAT, "multiples", schema({"type": "integer", "multipleOf": 1_000_003}), "multipleOf"),
    (CHAT, "large", schema({"description": "x" * 2**21}), "1,048,576"),
    (CHAT, "many values", schema({"enum": list(range(300_000))}), "1,048,576"),
    (CHAT, "odd reference", schema({"anyOf": [{}], "$ref": f"#/anyOf/{'1' * 5000}"}), "schema: "),
    (CHAT, "no schema", schema({"properties": [[[]]] * 1000}), "schema: "),
    # Patterns.
    (CHAT, "repeated", pattern("(((((a{1,100}){1,100}){1,100}){1,100}){1,100})b"), ANSWERED),
    (CHAT, "backtracking", pattern("^(a|a)*(a+)+$"), ANSWERED),
    (CHAT, "states", pattern("(a|b)*a(a|b){200}"), ANSWERED),
    (CHAT, "unicode", pattern(r"(\w{1,500}\p{L}{1,500}){1,50}"), ANSWERED),
    (CHAT, "brackets", pattern("(" * 50_000), "schema: "),
    (
        CHAT,
        "together",
        schema({"allOf": [{"pattern": f"x{i}.*y"} for i in range(24)]}),
        "24 patterns",
    ),
    # Tools.
    (CHAT, "1000 tools", tools(*[{}] * 1000), "at most 256"),
    (CHAT, "deep tool", tools(nested(200)), "deeper than 100 levels"),
    (CHAT, "tool of a text", tools({"description": '"\\' * 2**19}), "524,288"),
    (CHAT, "tool of an enum", tools({"enum": list(range(200_000))}), "524,288"),
    (CHAT, "chained tool", tools(chained(3000), tool_choice="required"), "nested deeper"),
    (CHAT, "tool's pattern", tools(names(9000), tool_choice="required"), "properties: it has"),
    # Histories.
    (CHAT, "large result", called("{}", result("x" * (2**22 + 1))), "4,194,304"),
    (CHAT, "parts", called("{}", result([TEXT_PART] * 20_000)), "16,384"),
    (CHAT, "broken call", called('{"a'), "arguments"),
    (CHAT, "deep call", called('{"a":' * 5000 + "1" + "}" * 5000), "deeper than 100 levels"),
    (CHAT, "large number", called(f'{{"a": {"1" * 50_000}}}'), "arguments"),
    (CHAT, "many results", called("{}", *[result("x")] * 3000), "context"),
    (CHAT, "no call", {"messages": [*ASKING[CHAT]["messages"], result("x")]}, "the id 'a1'"),
    (CHAT, "half a character", called('{"a": "\\ud800"}'), "half a character"),
    # At the bounds of what a body, a text and a conversation may have.
    (CHAT, "messages", {"messages": [USER] * 2**18}, "16,384"),
    (
        CHAT,
        "parts of messages",
        {"messages": [IN_PARTS] * 2**14},
        "16,384",
    ),
    (CHAT, "all messages", {"messages": [USER] * 2**14}, "context"),
    (CHAT, "rare characters", {"messages": [{**USER, "content": RARE}]}, "more than 8192 tokens"),
    (TEXT, "rare characters", {"prompt": RARE}, "more than 8192 tokens"),
    (RESPONSES, "many items", {"input": [USER] * 2**18}, "16,384"),
    (RESPONSES, "rare characters", {"input": RARE}, "more than 8192 tokens"),
    # Others.
    (CHAT, "variables", {"chat_template_kwargs": {"a": nested(900)}}, "deeper than 100 levels"),
    (
        CHAT,
        "deep variables",
        {"chat_template_kwargs": {"a": nested(101)}},
        "deeper than 100 levels",
    ),
    (CHAT, "names", {"chat_template_kwargs": dict.fromkeys("abc", [0] * 2**18)}, "1,048,576"),
    (CHAT, "biases", {"logit_bias": {str(i): 1 for i in range(100_000)}}, "1,024"),
    (TEXT, "biases", {"logit_bias": {str(i): 1 for i in range(100_000)}}, "1,024"),
    (CHAT, "answers", {"n": 9}, "less than or equal to 8"),
    (TEXT, "answers", {"prompt": ["x"] * 5, "n": 7}, "32 answers"),
    (TEXT, "prompts", {"prompt": ["x"] * 33}, "prompt"),
    (TEXT, "echo", {"prompt": [5] * 100_000, "echo": True}, "context"),
    (TEXT, "large prompts", {"prompt": ["x" * 9000] * 32, "echo": True}, "context"),
    # Responses.
    (RESPONSES, "deep", text_format(nested(300)), "invalid_value"),
    (RESPONSES, "chained", text_format(chained(3000)), "nested deeper"),
    (RESPONSES, "backtracking", text_format({"pattern": "^(a|a)*(a+)+$"}), ANSWERED),
    (RESPONSES, "1000 tools", {"tools": FLAT_TOOLS * 1000}, "at most 256"),
    (RESPONSES, "items", {"input": [USER] * 20_000}, "16,384"),
    (
        RESPONSES,
        "large result",
        {"input": [FLAT_CALL, flat_result("x" * (2**22 + 1))]},
        "4,194,304",
    ),
    (RESPONSES, "no call", {"input": [flat_result("x")]}, "the id 'a1'"),
    (
        RESPONSES,
        "deep call",
        {"input": [{**FLAT_CALL, "arguments": '{"a":' * 5000}]},
        "deeper than 100 levels",
    ),
    (
        RESPONSES,
        "somebody's",
        {"previous_response_id": "resp_" + "0" * 100_000},
        "previous_response_id",
    ),
    (RESPONSES, "large metadata", {"metadata": {"a": "x" * 2**20}}, "512 characters"),
]
"""By route: a name, what is said beside the ordinary, and what the refusal says; None if it may be
answered."""
