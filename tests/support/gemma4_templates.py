"""Gemma 4's chat templates in the forms in which they are published, written anew by hand."""

_ARGUMENTS = """\
{%- macro shown(value) -%}
  {%- if value is string -%}
    {{ '<|"|>' + value + '<|"|>' }}
  {%- else -%}
    {{ value }}
  {%- endif -%}
{%- endmacro -%}
"""
_ANSWER = """\
{%- macro said(text) -%}
  {%- set told = namespace(text='') -%}
  {%- for part in text.split('<channel|>') -%}
    {%- set told.text = told.text + part.split('<|channel>')[0] -%}
  {%- endfor -%}
  {{ told.text | trim }}
{%- endmacro -%}
"""
_TURNS = """\
{%- set turns, ended = messages, namespace(by='') -%}
{{ bos_token }}
{%- if enable_thinking or tools or messages[0]['role'] in ('system', 'developer') -%}
  {{ '<|turn>system\\n' }}
  {{- '<|think|>' if enable_thinking -}}
  {%- if messages[0]['role'] in ('system', 'developer') -%}
    {{ messages[0]['content'] | trim }}
    {%- set turns = messages[1:] -%}
  {%- endif -%}
  {{ '<turn|>\\n' }}
{%- endif -%}
{%- for turn in turns -%}
  {%- set answers = turn['role'] == 'assistant' -%}
  {{ '<|turn>' + ('model' if answers else turn['role']) + '\\n' }}
  {%- set ended.by = '' -%}
  {%- for call in turn['tool_calls'] or () -%}
    {{ '<|tool_call>call:' + call['function']['name'] + '{' }}
    {%- for name, value in call['function']['arguments'] | dictsort -%}
      {{ ',' if not loop.first }}{{ name }}:{{ shown(value) }}
    {%- endfor -%}
    {{ '}<tool_call|>' }}
  {%- endfor -%}
  {%- for answer in turn['tool_responses'] or () -%}
    {{ '<|tool_response>response:' + answer['name'] + '{value:' + shown(answer['response']) }}
    {{- '}<tool_response|>' }}
    {%- set ended.by = 'tool_response' -%}
  {%- endfor -%}
  {%- if turn['content'] is string -%}
    {{ said(turn['content']) if answers else turn['content'] | trim }}
  {%- else -%}
    {%- for part in turn['content'] or () -%}
      {%- if part['type'] == 'text' -%}
        {{ said(part['text']) if answers else part['text'] | trim }}
      {%- elif part['type'] == 'image' -%}
        {{ '\\n\\n<|image|>\\n\\n' }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if turn['content'] or not turn['tool_responses'] -%}
    {{ '<turn|>\\n' }}
  {%- endif -%}
{%- endfor -%}
"""
_NEXT = """\
{%- if add_generation_prompt -%}
  {{ '<|turn>model\\n' if ended.by != 'tool_response' }}
"""

GEMMA4 = _ARGUMENTS + _ANSWER + _TURNS + _NEXT + "{%- endif -%}\n"
"""Of E2B and E4B."""

GEMMA4_WITHOUT_THOUGHT = (
    _ARGUMENTS
    + _ANSWER
    + _TURNS
    + _NEXT
    + """\
  {%- if not enable_thinking -%}
    {{ '<|channel>thought\\n<channel|>' }}
  {%- endif -%}
{%- endif -%}
"""
)
"""Of the larger ones, whose answers begin with a thought: an empty one where none is asked for."""
