"""The little vocabulary that all tiny checkpoints of the kit share, and the tokenizer for it."""

from pathlib import Path

VOCAB = 96
"""Token ids, few enough that an engine can tell the log-probability of each."""
PAD = 0
"""The token that fills up, in no prompt of the kit's."""
BOS = 1
"""The token that begins a text."""
EOS = 2
"""The token that ends an answer."""
WORDS = range(8, 80)
"""Ids of plain words, of which prompts and answers are made; those above are a family's own special
tokens, such as its image token."""

JOINED = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
"""The chat template where no token marks a picture's place: the messages behind each other."""


def word(token: int) -> str:
    """The text of a token: `w9` for 9, and `<pad>`, `<s>` and `</s>`."""
    return {PAD: "<pad>", BOS: "<s>", EOS: "</s>"}.get(token, f"w{token}")


def write_tokenizer(folder: Path, chat_template: str | None = None) -> None:
    """Write a tokenizer of `VOCAB` words, which spaces part, into a checkpoint folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word(token): token for token in range(VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=word(3)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=word(BOS), eos_token=word(EOS), pad_token=word(PAD)
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
