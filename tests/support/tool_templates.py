"""Chat templates that know tools, in the forms in which families publish them, written anew by
hand: how they tell of tools, of calls and of results."""

from typing import NamedTuple

_CHAT_ML = """\
{%- for m in messages %}
  {%- if m.role == 'tool' %}
    {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' }}
    {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
    {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' }}
  {%- elif m.role != 'system' or not loop.first %}
    {{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
    {%- for tool_call in m.tool_calls or [] %}
      {%- set tool_call = tool_call.function or tool_call %}
      {{- '\\n' if m.content or not loop.first }}CALL
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt }}
"""
_SYSTEM = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
  {{- '<|im_start|>system\\n' + (system + '\\n\\n' if system else '') }}TOOLS
  {{- '<|im_end|>\\n' }}
{%- elif system %}
  {{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
"""
QWEN3 = _SYSTEM.replace(
    "TOOLS",
    """
  {{- '# Tools\\n\\n<tools>' }}
  {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{%- endfor %}
  {{- '\\n</tools>' }}""",
) + _CHAT_ML.replace(
    "CALL",
    """
      {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
      {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
      {{- '}\\n</tool_call>' }}""",
)
QWEN3_CODER = _SYSTEM.replace(
    "TOOLS",
    """
  {%- for tool in tools %}
    {%- set tool = tool.function or tool %}
    {{- '<function>\\n<name>' ~ tool.name ~ '</name>\\n<description>' ~ tool.description }}
    {%- for name, about in tool.parameters.properties | items %}
      {{- '\\n<parameter>' ~ name ~ ': ' ~ about.type ~ '</parameter>' }}
    {%- endfor %}
    {{- '\\n</function>' }}
  {%- endfor %}""",
) + _CHAT_ML.replace(
    "CALL",
    """
      {{- '<tool_call>\\n<function=' + tool_call.name + '>\\n' }}
      {%- for name, value in tool_call.arguments | items %}
        {{- '<parameter=' + name + '>\\n' }}
        {{- value if value is string else value | tojson }}{{ '\\n</parameter>\\n' }}
      {%- endfor %}
      {{- '</function>\\n</tool_call>' }}""",
)
LFM2 = _SYSTEM.replace(
    "TOOLS",
    """
  {{- 'List of tools: <|tool_list_start|>[' }}
  {%- for tool in tools %}{{ tool | tojson }}{{ ', ' if not loop.last }}{%- endfor %}
  {{- ']<|tool_list_end|>' }}""",
) + _CHAT_ML.replace(
    "CALL",
    """
      {{- '<|tool_call_start|>[' + tool_call.name + '(' }}
      {%- for name, value in tool_call.arguments | items %}
        {{- name ~ '=' ~ (value | tojson) ~ (', ' if not loop.last) }}
      {%- endfor %}
      {{- ')]<|tool_call_end|>' }}""",
)
GLM = """\
[gMASK]<sop>
{%- if tools %}
  {{- '<|system|>\\n# Tools' }}
  {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson(ensure_ascii=False) }}{%- endfor %}
{%- endif %}
{%- for m in messages %}
  {%- if m.role == 'tool' %}
    {{- '<|observation|>' if loop.first or loop.previtem.role != 'tool' }}
    {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
  {%- else %}
    {{- '<|' + m.role + '|>\\n' + (m.content or '') }}
    {%- for call in m.tool_calls or [] %}
      {%- set call = call.function or call %}
      {{- '\\n<tool_call>' + call.name }}
      {%- for name, value in call.arguments.items() %}
        {{- '\\n<arg_key>' + name + '</arg_key>\\n<arg_value>' }}
        {{- value if value is string else value | tojson(ensure_ascii=False) }}</arg_value>
      {%- endfor %}
      {{- '\\n</tool_call>' }}
    {%- endfor %}
  {%- endif %}
{%- endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt }}
"""
MISTRAL = """\
{{- '<s>' }}
{%- if messages[0].role == 'system' %}
  {{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for m in messages %}
  {%- if m.role == 'user' %}
    {{- '[INST]' + m.content + '[/INST]' }}
  {%- elif m.role == 'assistant' %}
    {{- m.content or '' }}
    {%- for call in m.tool_calls or [] %}
      {%- if call.id is not defined or call.id | length != 9 %}
        {{- raise_exception('The id of a call has nine characters') }}
      {%- endif %}
      {{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}
      {{- call.function.arguments | tojson }}
    {%- endfor %}
    {{- '</s>' }}
  {%- elif m.role == 'tool' %}
    {{- '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}
  {%- endif %}
{%- endfor %}
"""
LLAMA = """\
{{- '<|begin_of_text|>' }}
{%- for m in messages %}
  {{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) }}
  {{- '<|end_header_id|>\\n\\n' }}
  {%- if tools and m.role == 'user' and loop.index0 < 2 %}
    {{- 'Answer with a call, as JSON.\\n\\n' }}
    {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n\\n' }}{%- endfor %}
  {%- endif %}
  {{- m.content or '' }}
  {%- if m.tool_calls %}
    {%- if m.tool_calls | length != 1 %}
      {{- raise_exception('This model makes one call at once') }}
    {%- endif %}
    {%- set call = m.tool_calls[0].function %}
    {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
  {%- endif %}
  {{- '<|eot_id|>' }}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt }}
"""
GEMMA4 = """\
{%- macro shown(value) -%}
  {%- if value is string -%}{{ '<|"|>' + value + '<|"|>' }}
  {%- elif value is boolean -%}{{ 'true' if value else 'false' }}
  {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- set ended = namespace(by='') -%}
{{- '<bos>' -}}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{%- if tools or system -%}
  {{- '<|turn>system\\n' + system -}}
  {%- for tool in tools or [] -%}
    {%- set tool = tool.function -%}
    {{- '<|tool>declaration:' + tool.name + '{description:' + shown(tool.description) -}}
    {{- ',parameters:{properties:{' -}}
    {%- for name, about in tool.parameters.properties | dictsort -%}
      {{- ',' if not loop.first -}}{{- name + ':{type:' + shown(about.type | upper) + '}' -}}
    {%- endfor -%}
    {{- '},type:' + shown('OBJECT') + '}}<tool|>' -}}
  {%- endfor -%}
  {{- '<turn|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'tool' -%}
    {{- '<|tool_response>response:' + m.name + '{value:' + shown(m.content) -}}
    {{- '}<tool_response|>' -}}
    {%- set ended.by = 'tool' -%}
  {%- elif m.role != 'system' -%}
    {%- if ended.by != 'tool' or m.role != 'assistant' -%}
      {{- '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}
    {%- endif -%}
    {{- (m.content or '') | trim -}}
    {%- for call in m.tool_calls or [] -%}
      {{- '<|tool_call>call:' + call.function.name + '{' -}}
      {%- for name, value in call.function.arguments | dictsort -%}
        {{- ',' if not loop.first -}}{{- name + ':' + shown(value) -}}
      {%- endfor -%}
      {{- '}<tool_call|>' -}}
    {%- endfor -%}
    {{- '<turn|>\\n' if not m.tool_calls -}}
    {%- set ended.by = m.role -%}
  {%- endif -%}
{%- endfor -%}
{{- '<|turn>model\\n' if add_generation_prompt and ended.by != 'tool' -}}
"""
FUNCTION_GEMMA = """\
{%- macro shown(value) -%}
  {{- '<escape>' + value + '<escape>' if value is string else value | tojson -}}
{%- endmacro -%}
{%- set ended = namespace(by='') -%}
{{- '<bos>' -}}
{%- set told = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{%- if tools or told -%}
  {{- '<start_of_turn>developer\\n' + told -}}
  {%- for tool in tools or [] -%}
    {%- set tool = tool.function -%}
    {{- '<start_function_declaration>declaration:' + tool.name + '{description:' -}}
    {{- shown(tool.description) + ',parameters:{properties:{' -}}
    {%- for name, about in tool.parameters.properties | dictsort -%}
      {{- ',' if not loop.first -}}{{- name + ':{type:' + shown(about.type | upper) + '}' -}}
    {%- endfor -%}
    {{- '},type:' + shown('OBJECT') + '}}<end_function_declaration>' -}}
  {%- endfor -%}
  {{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'tool' -%}
    {{- '<start_function_response>response:' + m.name + '{value:' + shown(m.content) -}}
    {{- '}<end_function_response>' -}}
    {%- set ended.by = 'tool' -%}
  {%- elif m.role != 'system' -%}
    {%- if ended.by != 'tool' or m.role != 'assistant' -%}
      {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}
    {%- endif -%}
    {{- (m.content or '') | trim -}}
    {%- for call in m.tool_calls or [] -%}
      {{- '<start_function_call>call:' + call.function.name + '{' -}}
      {%- for name, value in call.function.arguments | dictsort -%}
        {{- ',' if not loop.first -}}{{- name + ':' + shown(value) -}}
      {%- endfor -%}
      {{- '}<end_function_call>' -}}
    {%- endfor -%}
    {{- '<end_of_turn>\\n' if not m.tool_calls -}}
    {%- set ended.by = m.role -%}
  {%- endif -%}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt and ended.by != 'tool' -}}
"""


class Published(NamedTuple):
    """A family's template."""

    template: str
    form: str | None
    """mlx-lm's name for how it writes calls; None where it knows no parser for them."""
    added: tuple[str, ...]
    """Texts that are tokens by themselves."""


_TURNS = ("<|im_start|>", "<|im_end|>")
PUBLISHED = {
    "qwen3": Published(QWEN3, "json_tools", (*_TURNS, "<tool_call>", "</tool_call>")),
    "qwen3_coder": Published(QWEN3_CODER, "qwen3_coder", (*_TURNS, "<tool_call>", "</tool_call>")),
    "lfm2": Published(
        LFM2,
        "pythonic",
        (*_TURNS, "<|tool_list_start|>", "<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "glm": Published(
        GLM, "glm47", ("<|user|>", "<|assistant|>", "<|observation|>", "<tool_call>", "<arg_key>")
    ),
    "mistral": Published(
        MISTRAL,
        "mistral",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ),
    "gemma4": Published(
        GEMMA4,
        "gemma4",
        (
            "<bos>",
            "<turn|>",
            "<|turn>",
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_response>",
            '<|"|>',
        ),
    ),
    "function_gemma": Published(
        FUNCTION_GEMMA,
        "function_gemma",
        (
            "<bos>",
            "<end_of_turn>",
            "<start_of_turn>",
            "<start_function_call>",
            "<end_function_call>",
            "<start_function_response>",
            "<escape>",
        ),
    ),
    "llama": Published(LLAMA, None, ("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>")),
}
