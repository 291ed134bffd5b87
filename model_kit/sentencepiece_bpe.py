"""A tokenizer from a raw SentencePiece `tokenizer.model`, exact where transformers' own is not.

transformers' conversion encodes runs of spaces otherwise than SentencePiece does. Here the merges
of the BPE model stand in the order of their scores, which is how SentencePiece applies them. Runs
of spaces all have one score, and among equals SentencePiece takes the leftmost pair: that is the
one whose left piece has grown longest.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_add_ons.errors import BrokenTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE = "tokenizer.model"
SPACE = "▁"


def load_sentencepiece(folder: Path, settings: dict[str, Any]) -> "PreTrainedTokenizerFast":
    """Build a fast tokenizer from `tokenizer.model` and the fields of tokenizer_config.json.

    Raises `BrokenTokenizer` for a damaged file, and for a model whose normalisation or algorithm
    is not the plain BPE of Llama and Mistral.
    """
    from transformers import AddedToken, PreTrainedTokenizerFast

    model = _read(folder / FILE)
    pieces = [p.piece for p in model.pieces]
    tokenizer = _bpe(model, pieces, add_bos=settings.get("add_bos_token", True))
    names = {"unk_token": model.trainer_spec.unk_id, "bos_token": model.trainer_spec.bos_id}
    names["eos_token"] = model.trainer_spec.eos_id
    special = {n: pieces[i] for n, i in names.items() if 0 <= i < len(pieces)}
    for name in ("pad_token", *names):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None:
            special[name] = value
    added = settings.get("added_tokens_decoder", {})
    for _, token in sorted(added.items(), key=lambda item: int(item[0])):
        flags = {k: v for k, v in token.items() if k in ("lstrip", "rstrip", "normalized")}
        tokenizer.add_special_tokens([AddedToken(token["content"], special=True, **flags)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    fast.chat_template = settings.get("chat_template")
    return fast


def _read(file: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's own, which differs between its implementations
        raise BrokenTokenizer(f"{file} is no SentencePiece model; fetch it again") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    plain = {
        "algorithm is not BPE": trainer.model_type == trainer.BPE,
        "normaliser is not the identity": normalizer.name == "identity",
        "extra white space is removed": not normalizer.remove_extra_whitespaces,
        "no space is put in front": normalizer.add_dummy_prefix,
        "there is no byte fallback": trainer.byte_fallback,
    }
    for difference, fine in plain.items():
        if not fine:
            raise BrokenTokenizer(f"{file}: {difference}; the folder needs a tokenizer.json")
    return model


def _bpe(model: Any, pieces: list[str], add_bos: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    kind = model.SentencePiece
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in model.pieces:
        if piece.type not in (kind.NORMAL, kind.USER_DEFINED, kind.UNUSED):
            continue
        text = piece.piece
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                merges.append((-piece.score, -cut, vocab[left], vocab[right], left, right))
    unknown = pieces[model.trainer_spec.unk_id]
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            [(left, right) for *_, left, right in sorted(merges)],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    control = [p.piece for p in model.pieces if p.type in (kind.CONTROL, kind.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in control])
    if add_bos and model.trainer_spec.bos_id >= 0:
        bos = pieces[model.trainer_spec.bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, model.trainer_spec.bos_id)]
        )
    return tokenizer
