"""What stands for pictures in Pixtral's prompts, and what stands around them."""

from pathlib import Path
from typing import Any

from vision_add_ons.tokenizer_file import token_ids

TOKENS = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}

# A message's text, with an image token for each of its pictures.
PARTS = """\
{%- macro parts(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {{- '[IMG]' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

CHAT_TEMPLATE = (
    PARTS
    + """\
{{- bos_token -}}
{%- set turn = namespace(system='') -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set turn.system = parts(message['content']) + '\\n\\n' -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- parts(message['content']) + eos_token -}}
  {%- else -%}
    {{- '[INST]' + (turn.system if loop.last else '') + parts(message['content']) + '[/INST]' -}}
  {%- endif -%}
{%- endfor -%}
"""
)


def image_tokens(folder: Path, processor: dict[str, Any]) -> list[int]:
    """The ids of an image's token, of a line's end and of an image's end.

    `processor` is processor_config.json, which may give the tokens other names. Raises
    `BrokenTokenizer` naming the token that tokenizer.json lacks.
    """
    found = []
    for field, usual in TOKENS.items():
        hint = f"add it, or let processor_config.json name another as {field}"
        found += token_ids(folder, [processor.get(field, usual)], hint)
    return found
