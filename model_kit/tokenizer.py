"""The tokenizer of a checkpoint folder, with every end-of-text id and a chat template."""

from pathlib import Path
from typing import TYPE_CHECKING

from model_kit.blame import running
from model_kit.config import CheckpointConfig
from model_kit.sentencepiece_bpe import FILE, load_sentencepiece
from vision_add_ons.errors import BrokenTokenizer
from vision_add_ons.json_files import read_json_if_there

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

TEKKEN = "tekken.json"
LENGTH_TOLD = "sequence-length-is-longer-than-the-specified-maximum"
"""Under this name a tokenizer of transformers notes that it has said so."""


def load_tokenizer(folder: Path, config: CheckpointConfig) -> "TokenizerWrapper":
    """Load through mlx-lm, which also picks the streaming detokenizer.

    End-of-text ids are those of config.json, generation_config.json and the tokenizer together.
    The chat template is the folder's own, else the one its family supplies (noted in
    `config.assumed`), else none. Raises `BrokenTokenizer`, and what the file's format trips over.
    """
    bare = (folder / FILE).is_file() and not (folder / "tokenizer.json").is_file()
    tokenizer = (_from_sentencepiece if bare else _from_transformers)(folder, config)
    # transformers would print that a prompt is longer than the tokenizer's own idea of a limit.
    getattr(tokenizer, "deprecation_warnings", {})[LENGTH_TOLD] = True
    return _with_template(tokenizer, folder, config)


def check_tokenizer(folder: Path) -> None:
    """Raise `BrokenTokenizer` for a folder that has none but mistral-common's `tekken.json`."""
    if not (folder / TEKKEN).is_file():
        return
    if not any((folder / name).is_file() for name in ("tokenizer.json", FILE)):
        code = (
            "from transformers import MistralCommonBackend as T; "
            f"T('{TEKKEN}').save_pretrained('.', save_format='hf')"
        )
        raise BrokenTokenizer(
            f"the tokenizer of {folder} is there as {TEKKEN} alone; write a tokenizer.json from "
            f'it: pip install mistral-common, and in that folder python -c "{code}"'
        )


def cover_vocabulary(tokenizer: "TokenizerWrapper", vocab_size: int) -> None:
    """Let ids that pad the decoder's vocabulary stand for no text.

    mlx-lm's detokenizer for SentencePiece would fail at them: Moxin has 32064 logits and 32001
    tokens. All its copies share one table.
    """
    table = getattr(tokenizer.detokenizer, "tokenmap", None)
    if table and isinstance(table[0], bytes):
        table += [b""] * (vocab_size - len(table))


def _from_sentencepiece(folder: Path, config: CheckpointConfig) -> "TokenizerWrapper":
    from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, TokenizerWrapper

    settings = read_json_if_there(folder / "tokenizer_config.json")
    return TokenizerWrapper(
        load_sentencepiece(folder, settings),
        SPMStreamingDetokenizer,
        eos_token_ids=sorted(config.eos_token_ids),
    )


def _from_transformers(folder: Path, config: CheckpointConfig) -> "TokenizerWrapper":
    from mlx_lm.tokenizer_utils import load
    from transformers import PretrainedConfig

    extra = {}
    if config.add_on is not None or "vision_config" in config.raw:
        # Without a config of its own, the loader looks the model type up in a table that does
        # not have it, and warns, or judges the vision half.
        extra["config"] = PretrainedConfig()
    return load(folder, extra, eos_token_ids=sorted(config.eos_token_ids))


def _with_template(
    tokenizer: "TokenizerWrapper", folder: Path, config: CheckpointConfig
) -> "TokenizerWrapper":
    if not tokenizer.has_chat_template:
        template = _chat_template(folder, config)
        if template is not None:
            tokenizer.chat_template = template
            tokenizer.has_chat_template = True
    return tokenizer


def _chat_template(folder: Path, config: CheckpointConfig) -> str | None:
    # Processors of transformers 4 kept the template in a file that its tokenizers do not read.
    template = read_json_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(template, str):
        return template
    if config.add_on is not None:
        with running(config.add_on):
            template = config.add_on.default_chat_template(config.raw, folder)
        if template is not None:
            config.assumed.append(f"chat template: {config.add_on.__name__}'s own")
            return template
    return None
