"""ChatML, the form of chats of Qwen and of many that followed, for checkpoints that bring no chat
template: each turn stands between `<|im_start|>` with its role and `<|im_end|>`."""

TEMPLATE = """\
{%- for message in messages -%}
  EACH{{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {{- 'IMAGE' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def chat_ml(image: str, start: str = "", each: str = "") -> str:
    """The Jinja template that writes `image` for an image, as between quotes in Jinja.

    `start` and `each` are Jinja that goes before the first message, and before each one.
    """
    return start + TEMPLATE.replace("IMAGE", image).replace("EACH", each)
