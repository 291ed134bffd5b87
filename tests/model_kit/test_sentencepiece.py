"""Raw SentencePiece models of Mistral, against SentencePiece itself."""

import json
import random
import shutil
from pathlib import Path

import mistral_common
import pytest
from sentencepiece import SentencePieceProcessor
from support import tiny
from support.seeds import SWEEP

from model_kit import load_model_kit
from model_kit.sentencepiece_bpe import load_sentencepiece
from vision_add_ons.errors import BrokenTokenizer

DATA = Path(mistral_common.__file__).parent / "data"
MODELS = ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
PIECES = [
    "the",
    "river",
    "",
    "bends",
    "",
    "",
    "In:",
    "Out:",
    "\n\n\t",
    "12",
    "345",
    "naïve",
    "façade",
    "Ünïcödé",
    "日本語",
    "🦊",
    "👩\u200d🚀",
    "\u200b",
    "def",
    "f(x):",
    "return",
    "x",
    "**",
    "2",
    "<unk>",
    "[INST]",
    "▁",
    "--",
    "...",
    "é",
    "\U000f1234",
]


def folder_with(model: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(DATA / model, folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_random_texts(model: str, tmp_path: Path, seed: int) -> None:
    reference = SentencePieceProcessor(model_file=str(DATA / model))
    tokenizer = load_sentencepiece(folder_with(model, tmp_path), {})
    rng = random.Random(seed)
    special = [p for p in ("<unk>", "[INST]") if p in tokenizer.added_tokens_encoder]
    words = [w for w in PIECES if w not in special]
    for _ in range(2000 if SWEEP else 300):
        text = "".join(
            rng.choice(words) + " " * rng.choice((0, 1, 1, 1, 2, 3, 7, 17, 33))
            for _ in range(rng.randrange(1, 12))
        )
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokens == reference.encode(text), repr(text)
        assert tokenizer.decode(tokens) == reference.decode(tokens)


def test_special_tokens_and_the_stream(tmp_path: Path, seed: int) -> None:
    """In a whole checkpoint: BOS, end of text, an added <PAD>, and text as it is streamed."""
    model = tiny.text_model(seed, vocab_size=32064)
    folder = folder_with(MODELS[0], tiny.save(model, tmp_path / "tiny"))
    added = {"32000": {"content": "<PAD>", "special": True}}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "pad_token": "<PAD>"})
    )
    tokenizer = load_model_kit(folder, vocab_only=True).tokenizer
    assert tokenizer.encode("Hi") == [1, *tokenizer.encode("Hi", add_special_tokens=False)]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 32000)
    assert tokenizer.eos_token_ids == {2}
    text = "The fox 🦊  jumps\n over é日本"
    detokenizer = tokenizer.detokenizer
    pieces = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        detokenizer.add_token(token)
        pieces.append(detokenizer.last_segment)
    detokenizer.finalize()
    assert "".join(pieces) + detokenizer.last_segment == text
    assert "\ufffd" not in "".join(pieces)


def test_damaged(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 100)
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.model"):
        load_sentencepiece(tmp_path, {})
