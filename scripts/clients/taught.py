"""A tiny model that says what the clients' programs expect, so that each answer is known.

It calls a tool where it knows one that is offered, and looks at what came back; it writes a story
without an end; and of anything else it tells the capital of France. Real weights, see
`tests/support/recited.py`; which script it says follows from its chat template.
"""

from pathlib import Path

from support import recited
from support.moxin_checkpoint import write_seeing

ANSWER = "The capital of France is Paris.\nVoilà: 🦊, <b>bold</b> & *more*."
SUNNY = "It is sunny in Ulm."
NOTHING = "The tool told nothing."
FILE = "marmot.txt"
"""What coding agents are made to write into the folder where they work."""


def called(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def command(name: str, more: str = "") -> str:
    """A call of the tool of that name that runs a command of the shell."""
    run = f'"command": "echo sunny in Ulm > {FILE}; cat {FILE}", "description": "Asks"'
    return called(name, f"{{{run}{more}}}")


SCRIPTS: dict[int | str, str] = {
    0: ANSWER,
    1: "Let me look.\n" + called("weather", '{"city": "Ulm"}'),
    2: SUNNY,
    3: NOTHING,
    4: "and then the dog ran on, ",
    5: command("bash"),
    6: command("run_shell_command", ', "is_background": false'),
    7: called("final_answer", f'{{"answer": "{SUNNY}"}}'),
    8: called("get_current_timestamp", "{}"),
    ">": "",  # a call that a grammar enforced, letter by letter, is the last
}
TEMPLATE = """\
{%- set seen = namespace(user='', told='', names=[]) %}
{%- for tool in tools or [] %}{% set seen.names = seen.names + [tool.function.name] %}
{{- 'tool: ' ~ (tool | tojson) ~ '\\n' }}{% endfor %}
{%- for m in messages %}
{%- set text = namespace(all='') %}
{%- if m.content is string %}{% set text.all = m.content %}
{%- else %}{% for part in m.content or [] %}{% set text.all = text.all ~ part.text %}{% endfor %}
{%- endif %}
{%- if m.role == 'user' %}{% set seen.user, seen.told = text.all, '' %}{% endif %}
{%- if m.role == 'tool' or 'Observation:' in text.all %}
{%- set seen.told = seen.told ~ text.all %}{% endif %}
{{- m.role ~ ': ' ~ text.all }}
{%- for call in m.tool_calls or [] %}{{- '\\n' ~ (call.function | tojson) }}{% endfor %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{%- if seen.told %}
{%- set known = 'sunny' in seen.told or 'current_timestamp' in seen.told %}
{%- set script = 3 if not known else 7 if 'final_answer' in seen.names else 2 %}
{%- elif 'get_current_timestamp' in seen.names and 'time' in seen.user %}{% set script = 8 %}
{%- elif 'weather' in seen.names %}{% set script = 1 %}
{%- elif 'bash' in seen.names %}{% set script = 5 %}
{%- elif 'run_shell_command' in seen.names %}{% set script = 6 %}
{%- elif 'a long story' in seen.user %}{% set script = 4 %}
{%- else %}{% set script = 0 %}{% endif %}
{{- 'assistant: ' ~ script }}{% endif %}"""
CONTEXT = 2**14
"""In letters, of which each is a token."""
ROOMY = 2**18
"""The same for coding agents, who send some 100,000 letters before the first question."""


def save(folder: Path, context: int = CONTEXT) -> Path:
    """The checkpoint `folder/taught`, which also sees, in that it takes pictures."""
    made = {"endless": (4,), "context": context}
    text = recited.save(folder / "text", SCRIPTS, TEMPLATE, "json_tools", **made)
    return write_seeing(folder / "taught", text, seed=5)
