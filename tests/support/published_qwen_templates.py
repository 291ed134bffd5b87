"""Chat templates in the forms in which Qwen's families publish them, written anew by hand."""

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
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '\\n</think>\\n\\n' }}
  {%- endif %}
{%- endif %}
"""
)
"""Trimmed texts or parts; strict about system messages; each answer begins with its thoughts,
which are over at once if they are switched off."""

MINICPMV = QWEN35.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>\\n")
"""The same with an image on a line of its own."""
