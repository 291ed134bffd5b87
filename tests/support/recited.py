"""Tiny models that were taught what to say: a script for each length of the conversation.

All that such a model does is look at its last token, and each token of a script is one of its own:
real weights, by which every text follows from the one before. What it is asked it does not heed;
only how many messages there are, which its chat template writes where an answer begins.
"""

import random
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from support.tiny import LETTERS

HIDDEN = 256
PLAIN = (
    "{% set told = 1 if messages[0].role == 'system' else 0 %}"
    "{% for m in messages %}{{ m.role }}: {{ loop.index0 - told if m.role == 'assistant' }}"
    "{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {{ messages | length - told }}{% endif %}"
)
"""A template that knows no tools."""

HERMES = """\
{%- if tools %}{{ 'system: ' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{%- endif %}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{%- endfor %}
{%- elif messages[0].role == 'system' %}{{ 'system: ' + messages[0].content + '\\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ 'user: ' + m.content + '\\n' }}
{%- elif m.role == 'assistant' %}{{ 'assistant: ' ~ loop.index0 ~ (m.content or '') }}
{%- for call in m.tool_calls %}{% set tool_call = call.function %}
{%- if m.content or not loop.first %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
{{- tool_call.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '\\n' }}
{%- elif m.role == 'tool' %}{{ 'tool: ' + m.content + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' ~ messages | length }}{% endif %}"""
"""One in the form of Hermes and Qwen."""


def cut(text: str, seed: int, most: int = 9) -> list[str]:
    """A text in tokens of a few characters; marks of forms lie across their borders."""
    draw = random.Random(seed)
    pieces, at = [], 0
    while at < len(text):
        size = draw.randint(1, most)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def save(
    folder: Path,
    scripts: Mapping[int | str, str | Sequence[str]],
    template: str = HERMES,
    parser: str | None = None,
    seed: int = 7,
    added: Sequence[str] = (),
    endless: Container[int | str] = (),
    context: int = 8192,
) -> Path:
    """A checkpoint that says `scripts[n]` where the conversation has `n` messages, and ends.

    A script by the name of a letter is what is said behind that letter.

    A script may come in tokens of its own; what is `added` is the token that it is, and stands in
    one script once. `parser` is mlx-lm's name for the form of its calls;
    without one mlx-lm finds it. `added` are texts that are tokens by themselves. The scripts in
    `endless` begin anew where they end. `context` is in tokens.
    """
    words = {letter: i for i, letter in enumerate(LETTERS)}
    for text in added:
        words[text] = len(words)
    follows: dict[int, int] = {}
    for count, script in scripts.items():
        last = words[str(count)]
        for i, piece in enumerate(cut(script, seed) if isinstance(script, str) else script):
            own = words.get(piece) if piece in added else None
            token = own or words.setdefault(f"\ue100{count}.{i}\ue101{piece}", len(words))
            follows[last], last = token, token
        follows[last] = follows[words[str(count)]] if count in endless else words["</s>"]
    _save_model(folder, len(words), follows, seed, context)
    _save_tokenizer(folder, words, template, parser, added)
    return folder


def _save_model(
    folder: Path, size: int, follows: Mapping[int, int], seed: int, context: int
) -> None:
    config = MistralConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=context,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = MistralForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn((size, HIDDEN), generator=generator)
    looks /= looks.norm(dim=1, keepdim=True)
    head = torch.zeros((size, HIDDEN))
    for token, following in follows.items():
        head[following] += 4 * looks[token]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # what goes through a layer is what came
        model.model.embed_tokens.weight.copy_(looks)
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)


def _save_tokenizer(
    folder: Path,
    words: Mapping[str, int],
    template: str,
    parser: str | None,
    added: Sequence[str],
) -> None:
    letters = Tokenizer(models.WordLevel(dict(words), unk_token="<unk>"))
    letters.normalizer = normalizers.Replace(Regex("[\ue100\ue101]"), "")
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # A script's tokens differ by a number that is not part of their texts.
    letters.decoder = decoders.Sequence(
        [decoders.Replace(Regex("\ue100[0-9.]+\ue101"), ""), decoders.Fuse()]
    )
    letters.add_tokens(list(added))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    more = {} if parser is None else {"tool_parser_type": parser}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, **names, **more)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
