"""GLM-4V's chat templates in the forms in which its makers publish them, written anew by hand."""

from collections.abc import Mapping
from typing import Any

from vision_add_ons.testing import as_text

_SHOWN = """\
{%- macro shown(turn) -%}
  {%- if turn['content'] is string -%}
    {{- turn['content'] -}}
  {%- else -%}
    {%- for part in turn['content'] -%}
      {%- if part['type'] == 'video' or 'video' in part -%}
        {{- '<|begin_of_video|><|video|><|end_of_video|>' -}}
      {%- elif part['type'] == 'image' or 'image' in part -%}
        {{- '<|begin_of_image|><|image|><|end_of_image|>' -}}
      {%- elif part['type'] == 'text' -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
GLM41V = (
    _SHOWN
    + """\
{{- '[gMASK]<sop>' -}}
{%- for turn in messages -%}
  {%- if turn['role'] == 'system' -%}
    {{- '<|system|>\\n' + turn['content'] -}}
  {%- elif turn['role'] == 'user' -%}
    {{- '<|user|>\\n' + shown(turn) -}}
  {%- elif turn['role'] == 'assistant' -%}
    {{- '<|assistant|>\\n' + turn['content'] -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
)
"""Texts, and in questions texts or parts. Tools have no turns."""
GLM46V = (
    _SHOWN
    + """\
{%- macro told(turn) -%}
  {%- if turn['content'] is string -%}
    {{- turn['content'] -}}
  {%- else -%}
    {%- for part in turn['content'] if part['type'] == 'text' -%}
      {{- part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set asked = namespace(last=-1) -%}
{%- for turn in messages if turn['role'] == 'user' -%}
  {%- set asked.last = messages.index(turn) -%}
{%- endfor -%}
{{- '[gMASK]<sop>' -}}
{%- for turn in messages -%}
  {%- if turn['role'] == 'user' -%}
    {{- '<|user|>\\n' + shown(turn) -}}
    {%- if enable_thinking is defined and not enable_thinking -%}{{- '/nothink' -}}{%- endif -%}
  {%- elif turn['role'] == 'assistant' -%}
    {%- set said, thought = told(turn), turn.reasoning_content or '' -%}
    {%- if not thought and '</think>' in said -%}
      {%- set thought = said.split('</think>')[0].split('<think>')[-1] -%}
      {%- set said = said.split('</think>')[-1] -%}
    {%- endif -%}
    {%- if loop.index0 <= asked.last -%}{%- set thought = '' -%}{%- endif -%}
    {{- '<|assistant|>\\n<think>' + thought.strip() + '</think>' -}}
    {%- if said.strip() -%}{{- '\\n' + said.strip() -}}{%- endif -%}
    {%- for call in turn.tool_calls or [] -%}
      {{- '\\n<tool_call>' + call.function.name + '\\n' -}}
      {%- for name, value in call.function.arguments.items() -%}
        {{- '<arg_key>' + name + '</arg_key>\\n<arg_value>' -}}
        {{- value if value is string else value | tojson -}}
        {{- '</arg_value>\\n' -}}
      {%- endfor -%}
      {{- '</tool_call>' -}}
    {%- endfor -%}
  {%- elif turn['role'] == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}
      {{- '<|observation|>' -}}
    {%- endif -%}
    {{- '\\n<tool_response>\\n' + shown(turn) + '\\n</tool_response>' -}}
  {%- elif turn['role'] == 'system' -%}
    {{- '<|system|>\\n' + told(turn) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}
    {{- '\\n<think></think>' -}}
  {%- endif -%}
{%- endif -%}
"""
)
"""Texts or parts everywhere; thoughts behind the last question only, trimmed; calls of tools, whose
answers may have images."""


def as_glm_reads(template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as "4.1V" reads it: outside of questions a text."""
    questions = template != "4.1V" or message["role"] == "user"
    return message if questions else as_text(message)
