"""Chat templates in the forms in which families publish them, written anew by hand."""

from collections.abc import Mapping
from typing import Any

from vision_add_ons.testing import as_text

GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
  {%- set told = messages[0]['content'] -%}
  {%- set opening = (told if told is string else told[0]['text']) + '\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set opening, turns = '', messages -%}
{%- endif -%}
{%- for turn in turns -%}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('Questions and answers must take turns') }}
  {%- endif -%}
  {{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\\n' }}
  {{- opening if loop.first -}}
  {%- if turn['content'] is string -%}
    {{ turn['content'] | trim }}
  {%- elif turn['content'] is iterable -%}
    {%- for part in turn['content'] -%}
      {%- if part['type'] == 'image' -%}
        {{ '<start_of_image>' }}
      {%- elif part['type'] == 'text' -%}
        {{ part['text'] | trim }}
      {%- endif -%}
    {%- endfor -%}
  {%- else -%}
    {{ raise_exception('This is no content') }}
  {%- endif -%}
  {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
"""Texts or parts, each trimmed; the system message, as a text or its first part, leads the first
question; strictly in turns."""

_PIXTRAL = """\
{%%- if messages[0]["role"] == "system" %%}
  {%%- set told = messages[0]["content"] %%}
  {%%- set turns = messages[1:] %%}
{%%- else %%}
  {%%- set turns = messages %%}
{%%- endif %%}
{{- bos_token }}
{%%- for turn in turns %%}
  {%%- if (turn["role"] == "user") != (loop.index0 %% 2 == 0) %%}
    {{- raise_exception("Questions and answers must take turns") }}
  {%%- endif %%}
  {%%- if turn["role"] == "user" %%}
    {%%- if loop.last and told is defined %%}
      {{- "[INST]" + told + "\\n\\n" }}
    {%%- else %%}
      {{- "[INST]" }}
    {%%- endif %%}
    {%%- if turn["content"] is not string %%}
      {%%- for chunk in turn["content"] %%}
        {%%- if chunk["type"] == "text" %%}
%s
        {%%- elif chunk["type"] == "image" %%}
          {{- "[IMG]" }}
        {%%- else %%}
          {{- raise_exception("Neither text nor image") }}
        {%%- endif %%}
      {%%- endfor %%}
    {%%- else %%}
      {{- turn["content"] }}
    {%%- endif %%}
    {{- "[/INST]" }}
  {%%- elif turn["role"] == "assistant" %%}
    {{- turn["content"] + eos_token }}
  {%%- else %%}
    {{- raise_exception("Only user and assistant take turns, after one system message") }}
  {%%- endif %%}
{%%- endfor %%}
"""
PIXTRAL = _PIXTRAL % (
    """\
          {%- if "content" in chunk %}
            {{- chunk["content"] }}
          {%- elif "text" in chunk %}
            {{- chunk["text"] }}
          {%- endif %}"""
)
"""Questions as texts or parts, of which the text has either name; all else as texts; the system
message leads the last question."""
PIXTRAL_FIRST = _PIXTRAL % """          {{- chunk["content"] }}"""
"""As first published: a part's text lies under `content` alone."""

_SYSTEM_FIRST = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
  {%- set told = messages[0]['content'] %}
  {%- set told = told if told is string else told[0]['text'] %}
  {%- set turns = messages[1:] %}
{%- else %}
  {%- set told, turns = 'Answer as well as you can.', messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + told + '[/SYSTEM_PROMPT]' }}
"""
_MISTRAL_TURNS = """\
  {%- if turn['role'] == 'user' or turn['role'] == 'system' %}
    {%- set marks = ('[INST]', '[/INST]') if turn['role'] == 'user'
                    else ('[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]') %}
    {{- marks[0] }}
    {%- if turn['content'] is string %}
      {{- turn['content'] }}
    {%- elif turn['role'] == 'system' %}
      {{- turn['content'][0]['text'] }}
    {%- else %}
      {%- for block in turn['content'] %}
        {%- if block['type'] == 'text' %}
          {{- block['text'] }}
        {%- elif block['type'] in ('image', 'image_url') %}
          {{- '[IMG]' }}
        {%- else %}
          {{- raise_exception('Neither text nor image') }}
        {%- endif %}
      {%- endfor %}
    {%- endif %}
    {{- marks[1] }}
"""
MISTRAL3 = (
    _SYSTEM_FIRST
    + "{%- for turn in turns %}\n"
    + _MISTRAL_TURNS
    + """\
  {%- elif turn['role'] == 'assistant' %}
    {%- set said = turn['content'] %}
    {{- (said if said is string else said[0]['text']) + eos_token }}
  {%- else %}
    {{- raise_exception('Only user, system and assistant are known') }}
  {%- endif %}
{%- endfor %}
"""
)
"""A standing system message; system messages and answers as texts or their first part."""
MISTRAL3_TOOLS = (
    _SYSTEM_FIRST
    + "{%- for turn in turns %}\n"
    + _MISTRAL_TURNS
    + """\
  {%- elif turn['role'] == 'assistant' %}
    {%- if turn['content'] is string %}
      {{- turn['content'] }}
    {%- else %}
      {%- for block in turn['content'] if block['type'] == 'text' %}
        {{- block['text'] }}
      {%- endfor %}
    {%- endif %}
    {%- for call in turn['tool_calls'] or [] %}
      {%- if call['id'] is not defined or call['id'] | length != 9 %}
        {{- raise_exception('The id of a call has nine characters') }}
      {%- endif %}
      {{- '[TOOL_CALLS]' + call['function']['name'] + '[CALL_ID]' + call['id'] }}
      {{- '[ARGS]' + call['function']['arguments'] | tojson }}
    {%- endfor %}
    {{- eos_token }}
  {%- elif turn['role'] == 'tool' %}
    {{- '[TOOL_RESULTS]' + turn['tool_call_id'] + '[TOOL_CONTENT]' }}
    {{- turn['content'] | string + '[/TOOL_RESULTS]' }}
  {%- else %}
    {{- raise_exception('A role that nobody knows') }}
  {%- endif %}
{%- endfor %}
"""
)
"""With calls of tools, and what tools answered, as a text."""

_QWEN_CONTENT = """\
  {%- if turn['content'] is string %}
    {{- turn['content'] }}
  {%- else %}
    {%- for part in turn['content'] %}
      {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part %}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
      {%- elif part['type'] == 'video' or 'video' in part %}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
      {%- elif 'text' in part %}
        {{- part['text'] }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
"""
QWEN = (
    """\
{%- for turn in messages %}
  {%- if loop.first and turn['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
  {%- endif %}
  {{- '<|im_start|>' + turn['role'] + '\\n' }}
"""
    + _QWEN_CONTENT
    + """\
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
)
"""Texts or parts in every role, and a standing system message."""
QWEN_TOOLS = (
    """\
{%- for turn in messages %}
  {%- if loop.first and turn['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
  {%- endif %}
  {%- if turn['role'] == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
      {{- '<|im_start|>user' }}
    {%- endif %}
    {{- '\\n<tool_response>\\n' }}
  {%- else %}
    {{- '<|im_start|>' + turn['role'] + '\\n' }}
  {%- endif %}
"""
    + _QWEN_CONTENT
    + """\
  {%- for call in turn.tool_calls or [] %}
    {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
    {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
  {%- endfor %}
  {%- if turn['role'] == 'tool' %}
    {{- '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}
      {{- '<|im_end|>\\n' }}
    {%- endif %}
  {%- else %}
    {{- '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
)
"""The same with calls of tools, whose answers stand as a question."""

_QWEN3 = """\
{%%- if messages[0]['role'] == 'system' %%}
  {{- '<|im_start|>system\\n' + told(messages[0]) + '<|im_end|>\\n' }}
{%%- endif %%}
{%%- for turn in messages %%}
  {%%- if turn['role'] == 'user' %%}
    {{- '<|im_start|>user\\n' + shown(turn) + '<|im_end|>\\n' }}
  {%%- elif turn['role'] == 'assistant' %%}
%s
    {%%- for call in turn.tool_calls or [] %%}
      {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
      {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
    {%%- endfor %%}
    {{- '<|im_end|>\\n' }}
  {%%- elif turn['role'] == 'tool' %%}
    {%%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %%}
      {{- '<|im_start|>user' }}
    {%%- endif %%}
    {{- '\\n<tool_response>\\n' + shown(turn) + '\\n</tool_response>' }}
    {%%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %%}
      {{- '<|im_end|>\\n' }}
    {%%- endif %%}
  {%%- endif %%}
{%%- endfor %%}
"""
_QWEN3_MACROS = (
    "{%- macro shown(turn) %}\n"
    + _QWEN_CONTENT
    + """\
{%- endmacro %}
{%- macro told(turn) %}
  {%- if turn['content'] is string %}
    {{- turn['content'] }}
  {%- else %}
    {%- for part in turn['content'] if 'text' in part %}
      {{- part['text'] }}
    {%- endfor %}
  {%- endif %}
{%- endmacro %}
"""
)
QWEN3 = (
    _QWEN3_MACROS
    + _QWEN3 % "    {{- '<|im_start|>assistant\\n' + told(turn) }}"
    + """\
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
)
"""Texts or parts; images in questions and in what tools say; a system message as the first only."""
QWEN3_THINKING = (
    _QWEN3_MACROS
    + """\
{%- set asked = namespace(last=-1) %}
{%- for turn in messages if turn['role'] == 'user' %}
  {%- set asked.last = messages.index(turn) %}
{%- endfor %}
"""
    + _QWEN3
    % """\
    {%- set said, thought = told(turn), turn.reasoning_content or '' %}
    {%- if not thought and '</think>' in said %}
      {%- set thought = said.split('</think>')[0].split('<think>')[-1] %}
      {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > asked.last and (loop.last or thought) %}
      {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}
    {%- else %}
      {{- said }}
    {%- endif %}"""
    + """\
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""
)
"""The same, with thoughts behind the last question only; an answer begins with its thoughts."""

QWEN35 = (
    _QWEN3_MACROS
    + """\
{%- set asked = namespace(last=-1) %}
{%- for turn in messages if turn['role'] == 'user' %}
  {%- set asked.last = messages.index(turn) %}
{%- endfor %}
{%- if asked.last < 0 %}
  {{- raise_exception('Nobody asks') }}
{%- endif %}
{%- for turn in messages %}
  {%- set said = shown(turn) | trim %}
  {%- if turn['role'] == 'system' and not loop.first %}
    {{- raise_exception('A system message stands first') }}
  {%- elif turn['role'] in ('system', 'user') %}
    {%- if turn['role'] == 'system' and '<|image_pad|>' in said %}
      {{- raise_exception('A system message has no images') }}
    {%- endif %}
    {{- '<|im_start|>' + turn['role'] + '\\n' + said + '<|im_end|>\\n' }}
  {%- elif turn['role'] == 'assistant' %}
    {%- set thought = turn.reasoning_content or '' %}
    {%- if not thought and '</think>' in said %}
      {%- set thought = said.split('</think>')[0].split('<think>')[-1] %}
      {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > asked.last %}
      {{- '<think>\\n' + thought | trim + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- said + '<|im_end|>\\n' }}
  {%- elif turn['role'] == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
      {{- '<|im_start|>user' }}
    {%- endif %}
    {{- '\\n<tool_response>\\n' + said + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}
      {{- '<|im_end|>\\n' }}
    {%- endif %}
  {%- else %}
    {{- raise_exception('Nobody has this role') }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""
)
"""Trimmed texts or parts; strict about system messages; each answer begins with its thoughts."""


def with_first_part(message: Mapping[str, Any], *roles: str) -> Mapping[str, Any]:
    """A message whose template reads a text, or the first part alone, in these roles."""
    return as_text(message) if message["role"] in roles else message
