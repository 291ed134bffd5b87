"""The tokenizer of a checkpoint folder, with every end-of-text id and a chat template."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_kit.chat_templates import find_template
from model_kit.config import CheckpointConfig
from model_kit.sentencepiece_bpe import FILE, load_sentencepiece
from vision_add_ons.errors import BrokenTokenizer
from vision_add_ons.json_files import read_json_if_there

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PretrainedConfig

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

    extra: dict[str, Any] = {}
    if config.sees:
        # As processors do, which read tokenizer.json where there is a tekken.json, too.
        extra = {"config": _config(folder, config), "mistral_format": False}
    return load(folder, extra, eos_token_ids=sorted(config.eos_token_ids))


def _config(folder: Path, checkpoint: CheckpointConfig) -> "PretrainedConfig":
    """What AutoTokenizer chooses the tokenizer's class by, and nothing else of config.json.

    It would read the whole, and warn of what it does not know in it, or judge the vision half.
    """
    from transformers import AutoConfig, PretrainedConfig

    try:
        config = AutoConfig.for_model(checkpoint.model_type)
    except ValueError:  # a type that transformers does not know
        config = PretrainedConfig()
        config.model_type = checkpoint.model_type
    config.tokenizer_class = checkpoint.raw.get("tokenizer_class")
    config.name_or_path = str(folder)
    return config


def _with_template(
    tokenizer: "TokenizerWrapper", folder: Path, config: CheckpointConfig
) -> "TokenizerWrapper":
    own = tokenizer.chat_template if tokenizer.has_chat_template else None
    template, config.chat_template = find_template(folder, config, own)
    if template is not None and template is not own:
        tokenizer.chat_template = template
        tokenizer.has_chat_template = True
    return tokenizer
