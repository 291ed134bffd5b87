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

GEMMA3N = GEMMA3.replace(
    """\
      {%- if part['type'] == 'image' -%}
        {{ '<start_of_image>' }}
""",
    """\
      {%- if part['type'] == 'audio' -%}
        {{ '<audio_soft_token>' }}
      {%- elif part['type'] == 'image' -%}
        {{ '<image_soft_token>' }}
""",
)
"""The same with other marks, and sounds."""

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

IDEFICS3 = """\
<|im_start|>
{%- for turn in messages -%}
  {{- turn['role'] | capitalize -}}
  {%- if turn['content'][0]['type'] == 'image' -%}{{- ':' -}}{%- else -%}{{- ': ' -}}{%- endif -%}
  {%- for part in turn['content'] -%}
    {%- if part['type'] == 'text' -%}
      {{- part['text'] -}}
    {%- elif part['type'] == 'image' -%}
      {{- '<image>' -}}
    {%- endif -%}
  {%- endfor -%}
  {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
"""Parts alone, in every role; of a text it writes nothing."""
GRANITE_DOCLING = """\
{%- for turn in messages -%}
  {{- '<|start_of_role|>' + turn['role'] + '<|end_of_role|>' -}}
  {%- if turn['content'] is string -%}
    {{- turn['content'] -}}
  {%- else -%}
    {%- for part in turn['content'] -%}
      {%- if part['type'] == 'text' -%}{{- part['text'] -}}
      {%- elif part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_of_role|>assistant' -}}
  {%- if controls -%}{{- ' ' + controls | tojson -}}{%- endif -%}
  {{- '<|end_of_role|>' -}}
{%- endif -%}
"""
"""Texts or parts, in every role."""

INTERNVL = """\
{%- for turn in messages %}
  {{- '<|im_start|>' + turn['role'] + '\\n' }}
  {%- if turn['content'] is string %}
    {{- turn['content'] }}
  {%- else %}
    {%- for part in turn['content'] %}
      {%- if part['type'] == 'image' %}
        {{- '<IMG_CONTEXT>\\n' }}
      {%- elif part['type'] == 'video' %}
        {{- '<video>\\n' }}
      {%- elif part['type'] == 'text' %}
        {{- part['text'] }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Texts or parts in every role, a line break behind each image, and no system message."""


LFM2_VL = """\
{{- bos_token }}
{%- for turn in messages %}
  {{- '<|im_start|>' + turn['role'] + '\\n' }}
  {%- if turn['content'] is string %}
    {{- turn['content'] }}
  {%- else %}
    {%- for part in turn['content'] %}
      {%- if part['type'] == 'image' %}
        {{- '<image>' }}
      {%- elif part['type'] == 'text' %}
        {{- part['text'] }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Texts or parts in every role, and nothing that nobody said."""
LFM2_5_VL = """\
{{- bos_token }}
{%- set told = namespace(text='', last=-1) %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
  {%- set told.text = messages[0]['content'] %}
  {%- set turns = messages[1:] %}
{%- endif %}
{%- if tools %}
  {%- set told.text = told.text + ('\\n' if told.text else '') + 'List of tools: [' %}
  {%- for tool in tools %}
    {%- set told.text = told.text + (tool if tool is string else tool | tojson) %}
    {%- set told.text = told.text + ('' if loop.last else ', ') %}
  {%- endfor %}
  {%- set told.text = told.text + ']' %}
{%- endif %}
{%- if told.text %}
  {{- '<|im_start|>system\\n' + told.text + '<|im_end|>\\n' }}
{%- endif %}
{%- for turn in turns if turn['role'] == 'assistant' %}
  {%- set told.last = told.last + 1 %}
{%- endfor %}
{%- set said = namespace(count=-1, text='') %}
{%- for turn in turns %}
  {{- '<|im_start|>' + turn['role'] + '\\n' }}
  {%- set said.text = '' %}
  {%- if turn['content'] is string %}
    {%- set said.text = turn['content'] %}
  {%- else %}
    {%- for part in turn['content'] %}
      {%- if part['type'] == 'image' %}
        {%- set said.text = said.text + '<image>' %}
      {%- elif part['type'] == 'text' %}
        {%- set said.text = said.text + part['text'] %}
      {%- else %}
        {%- set said.text = said.text + part | tojson %}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
  {%- if turn['role'] == 'assistant' %}
    {%- set said.count = said.count + 1 %}
    {%- if said.count != told.last and '</think>' in said.text %}
      {%- set said.text = said.text.split('</think>')[-1] | trim %}
    {%- endif %}
  {%- endif %}
  {{- said.text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The system message as a text, with tools; of earlier answers only what follows the thoughts."""


def with_first_part(message: Mapping[str, Any], *roles: str) -> Mapping[str, Any]:
    """A message whose template reads a text, or the first part alone, in these roles."""
    return as_text(message) if message["role"] in roles else message
