"""Calls of tools as models write them: one for each of mlx-lm's parsers."""

import importlib
from typing import Any

from engine.tools.parsing import Parser
from engine.tools.reader import CallForm

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
            },
        },
    },
    {"name": "clock", "parameters": {"properties": {"zone": {"type": "string"}}}},
]

CALLS = (("weather", {"city": "Ulm, a <b>", "days": 3}), ("clock", {"zone": "UTC"}))

MARKS = {
    "json_tools": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]",),
    "kimi_k2": (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        "<|tool_call_argument_begin|>",
    ),
    "qwen3_coder": ("<tool_call>", "</tool_call>"),
}
"""The marks of calls in the forms that a grammar knows, by the names of mlx-lm's parsers."""

ONE = {
    "function_gemma": "call:weather{city:<escape>Ulm, a <b><escape>,days:3}",
    "gemma4": 'call:weather{city:<|"|>Ulm, a <b><|"|>,days:3}',
    "glm47": (
        "weather\n<arg_key>city</arg_key>\n<arg_value>Ulm, a <b></arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
    ),
    "json_tools": '\n{"name": "weather", "arguments": {"city": "Ulm, a <b>", "days": 3}}\n',
    "kimi_k2": (
        "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Ulm, a <b>", "days": 3}<|tool_call_end|>'
    ),
    "kimi_k3": (
        '<|open|>call tool="weather" index="1"<|sep|><|open|>argument key="city" type="string"'
        '<|sep|>Ulm, a <b><|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3'
        "<|close|>argument<|sep|><|close|>call<|sep|>"
    ),
    "longcat": (
        "weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Ulm, a <b>"
        "</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3"
        "</longcat_arg_value>\n"
    ),
    "minicpm5": '"weather"><param name="city">Ulm, a <b></param><param name="days">3</param>',
    "minimax_m2": (
        '\n<invoke name="weather">\n<parameter name="city">Ulm, a <b></parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n'
    ),
    "mistral": '[{"name": "weather", "arguments": {"city": "Ulm, a <b>", "days": 3}}]',
    "muse_spark": (
        '\n<atem:invoke name="weather">\n<atem:parameter name="city">Ulm, a <b></atem:parameter>\n'
        '<atem:parameter name="days">3</atem:parameter>\n</atem:invoke>\n'
    ),
    "pythonic": '[weather(city="Ulm, a <b>", days=3)]',
    "qwen3_coder": (
        "\n<function=weather>\n<parameter=city>\nUlm, a <b>\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n"
    ),
}
ONE["laguna"] = ONE["glm47"]
"""What stands between the marks of a block that calls the first of `CALLS`."""

OTHER = {
    "function_gemma": "call:clock{zone:<escape>UTC<escape>}",
    "gemma4": 'call:clock{zone:<|"|>UTC<|"|>}',
    "glm47": "clock\n<arg_key>zone</arg_key>\n<arg_value>UTC</arg_value>\n",
    "json_tools": '\n{"name": "clock", "arguments": {"zone": "UTC"}}\n',
    "kimi_k2": (
        "<|tool_call_begin|>functions.clock:1<|tool_call_argument_begin|>"
        '{"zone": "UTC"}<|tool_call_end|>'
    ),
    "kimi_k3": (
        '<|open|>call tool="clock" index="2"<|sep|><|open|>argument key="zone" type="string"'
        "<|sep|>UTC<|close|>argument<|sep|><|close|>call<|sep|>"
    ),
    "longcat": (
        "clock\n<longcat_arg_key>zone</longcat_arg_key>\n"
        "<longcat_arg_value>UTC</longcat_arg_value>\n"
    ),
    "minicpm5": '"clock"><param name="zone">UTC</param>',
    "minimax_m2": ('\n<invoke name="clock">\n<parameter name="zone">UTC</parameter>\n</invoke>\n'),
    "mistral": '[{"name": "clock", "arguments": {"zone": "UTC"}}]',
    "muse_spark": (
        '\n<atem:invoke name="clock">\n<atem:parameter name="zone">UTC</atem:parameter>\n'
        "</atem:invoke>\n"
    ),
    "pythonic": '[clock(zone="UTC")]',
    "qwen3_coder": ("\n<function=clock>\n<parameter=zone>\nUTC\n</parameter>\n</function>\n"),
}
OTHER["laguna"] = OTHER["glm47"]
"""The same for the second."""

BOTH = {
    "gemma4": ONE["gemma4"] + OTHER["gemma4"],
    "kimi_k2": ONE["kimi_k2"] + OTHER["kimi_k2"],
    "kimi_k3": ONE["kimi_k3"] + OTHER["kimi_k3"],
    "minimax_m2": ONE["minimax_m2"] + OTHER["minimax_m2"],
    "mistral": ONE["mistral"][:-1] + ", " + OTHER["mistral"][1:],
    "muse_spark": ONE["muse_spark"] + OTHER["muse_spark"],
    "pythonic": ONE["pythonic"][:-1] + ", " + OTHER["pythonic"][1:],
}
"""Both in one block, where the form has that."""

HEADED = 'weather[ARGS]{"city": "Ulm, a <b>", "days": 3}[TOOL_CALLS]clock[ARGS]{"zone": "UTC"}'
"""Both as Mistral's later templates have them."""
NUMBERED = HEADED.replace("weather[", "weather[CALL_ID]a1b2c3d4e[").replace(
    "clock[", "clock[CALL_ID]f5g6h7i8j["
)
"""And with ids."""

FORMS = sorted(ONE)


def form_of(name: str) -> CallForm:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    parser = Parser(module.parse_tool_call, name)
    return CallForm(name, module.tool_call_start, module.tool_call_end, parser)


def written(name: str, *bodies: str) -> str:
    """Blocks as a model writes them."""
    form = form_of(name)
    between = "" if name == "mistral" else "\n"
    return between.join(form.start + body + form.end for body in bodies)
