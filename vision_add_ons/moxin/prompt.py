"""Moxin's two prompt forms as chat templates, for checkpoints that bring none."""

from pathlib import Path
from typing import Any

from vision_add_ons.configs import checkpoint_name
from vision_add_ons.json_files import read_json_if_there

# Messages are trimmed, and an empty answer stands as one space, as in Prismatic's prompt builders.
# `images` holds the marker strings of a turn's pictures.
_TURNS = """\
{{- bos_token -}}
{%- set turn = namespace(system='') -%}
{%- for message in messages -%}
  {%- set text = message['content'] | trim -%}
  {%- if message['role'] == 'system' -%}
    {%- if not loop.first -%}
      {{- raise_exception('The system message must be the first message.') -}}
    {%- endif -%}
    {%- set turn.system = text + '\\n\\n' if text else '' -%}
  {%- elif message['role'] == 'user' -%}
    {{- message['images'] | default([], true) | join -}}
    {{- before + (turn.system + text) | trim + after -}}
    {%- set turn.system = '' -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' + (text or ' ') + eos_token -}}
  {%- else -%}
    {{- raise_exception('Roles are system, user and assistant, not ' ~ message['role'] ~ '.') -}}
  {%- endif -%}
{%- endfor -%}
"""

IN_OUT = "{%- set before, after = 'In: ', '\\nOut:' -%}\n" + _TURNS
INSTRUCT = "{%- set before, after = '[INST] ', ' [/INST]' -%}\n" + _TURNS


def chat_template(config: dict[str, Any], folder: Path) -> str:
    """The `[INST]` form if the config or the folder's name calls the model "instruct"."""
    names = (config.get("_name_or_path"), config.get("llm_backbone_id"), checkpoint_name(folder))
    return INSTRUCT if any("instruct" in str(name).lower() for name in names) else IN_OUT


def has_own_template(folder: Path) -> bool:
    """Whether the checkpoint brings a chat template, in any of the places where one may be."""
    files = ("chat_template.jinja", "additional_chat_templates/default.jinja")
    fields = ("processor_config.json", "chat_template.json", "tokenizer_config.json")
    return any((folder / name).exists() for name in files) or any(
        read_json_if_there(folder / name).get("chat_template") for name in fields
    )
