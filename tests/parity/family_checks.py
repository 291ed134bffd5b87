"""What every family must hold against its reference, on a tiny random checkpoint of this run.

A family brings a `Reference` and a test class derived from `FamilyChecks`. Prompts are token ids,
so that the whole vocabulary's log-probabilities come out of the engine's ordinary interface.
"""

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm import stream_generate
from parity.moxin_checkpoint import Photo
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny import randomize
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine import Engine, GenerationOptions, TextDelta, load
from engine.images import load_picture
from model_kit.config import read_config
from model_kit.decoder import build_decoder
from model_kit.kit import load_model_kit
from vision_add_ons.weights import read_weights

TOLERANCE = 2e-5
VOCAB = 96
PAD, BOS, EOS = 0, 1, 2
WORDS = range(8, 80)
"""Ids of plain words; those above are a family's own special tokens."""
ANSWER = 8
"""Greedy tokens that are compared."""
GROUP, BITS = 32, 4

Part = int | Image.Image


def random_weights(model: torch.nn.Module, seed: int) -> Any:
    """Random weights under which no answer ends and none holds a special token."""
    randomize(model, seed)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter is not head:
                # Attention and positions still decide; the reference's own rounding does not.
                parameter *= 0.7
        head[: WORDS.start] = 0
        head[WORDS.stop :] = 0
    return model


class Reference(ABC):
    """A family's tiny random checkpoint, as transformers computes it: float32, eager attention."""

    name: ClassVar[str]
    dialects: ClassVar[tuple[str, ...]] = ("transformers 5", "transformers 4", "mlx-vlm")
    """How names and config are written: as `save_pretrained` does, as published, as converted."""
    image_token: ClassVar[int]
    """Marks a picture's place in a prompt that is not yet expanded."""
    continues: ClassVar[bool] = True
    """Whether what a text left in the cache serves a longer prompt with pictures."""
    decoder_scale: float = 1.0
    """What the decoder multiplies its input by, so rows are divided by it."""
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((40, 30), (28, 52))
    """Pictures that are shown."""
    model: Any

    @abstractmethod
    def __init__(self, seed: int) -> None:
        """Build `self.model`, whose weights `random_weights` fills."""

    @abstractmethod
    def write(self, folder: Path, dialect: str) -> None:
        """Write config, weights and image processor, in float32."""

    @abstractmethod
    def block(self, image: Image.Image) -> list[int]:
        """The tokens that the family's processor writes for one image token."""

    @abstractmethod
    def rows(self, image: Image.Image) -> np.ndarray:
        """The picture's embedding rows, [n, hidden_size]."""

    @abstractmethod
    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        """Logits [len(tokens) + len(answer), VOCAB] of an expanded prompt and its answer so far."""

    def expanded(self, prompt: Sequence[Part]) -> tuple[list[int], list[Image.Image]]:
        """The prompt with each picture's tokens in its place, and the pictures."""
        tokens: list[int] = []
        images = []
        for part in prompt:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += self.block(part)
                images.append(part)
        return tokens, images


def write_tokenizer(folder: Path) -> None:
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS}
    vocabulary |= {f"w{i}": i for i in range(3, VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def written(reference: Reference, folder: Path, dialect: str | None = None) -> Path:
    """The whole checkpoint, with a tokenizer; in the reference's first dialect if none is told."""
    reference.write(folder, dialect or reference.dialects[0])
    write_tokenizer(folder)
    return folder


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits without what softmax does not see: log-probabilities differ from them by just that."""
    return logits - logits.mean(axis=-1, keepdims=True)


def dequantized_weights(model: torch.nn.Module, towers: bool) -> dict[str, tuple[Any, ...]]:
    """Round the model's weights to what quantization keeps of them; the quantized ones by content.

    Changes the model. Without `towers`, only its decoder.
    """
    kept = {}
    done = set()
    for name, module in model.named_modules():
        decoder = "lm_head" in name or "language_model" in name
        layer = isinstance(module, torch.nn.Linear | torch.nn.Embedding)
        if not layer or module.weight.shape[-1] % GROUP or not (decoder or towers):
            continue
        if module.weight.data_ptr() in done:  # the head of tied embeddings
            continue
        done.add(module.weight.data_ptr())
        parts = mx.quantize(mx.array(module.weight.detach().numpy()), GROUP, BITS)
        rounded = np.array(mx.dequantize(*parts, GROUP, BITS))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(rounded))
        kept[hashlib.sha256(rounded.tobytes()).hexdigest()] = parts
    return kept


def quantize_folder(folder: Path, kept: dict[str, tuple[Any, ...]]) -> None:
    """Write the quantized weights in place of the rounded ones, as MLX's converters do."""
    file = folder / "model.safetensors"
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in load_file(file).items():
        parts = kept.get(hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest())
        if parts is None:
            tensors[name] = tensor
            continue
        stem = name.removesuffix("weight")
        for end, part in zip(("weight", "scales", "biases"), parts, strict=True):
            tensors[stem + end] = np.array(part)
    save_file(tensors, file, metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    entry = {"group_size": GROUP, "bits": BITS}
    config |= {"quantization": entry, "quantization_config": entry}
    (folder / "config.json").write_text(json.dumps(config))


class FamilyChecks:
    reference_class: ClassVar[type[Reference]]

    @pytest.fixture(scope="class")
    def class_seed(self) -> int:
        return random.SystemRandom().randrange(2**31)

    @pytest.fixture(autouse=True)
    def tell_seed(self, class_seed: int, record_property: Any, request: Any) -> None:
        print(f"seed of {self.reference_class.name}: {class_seed}")
        self.record = record_property
        self.case = request.node.name.removeprefix("test_")
        self.random = random.Random(f"{class_seed} {self.case}")

    @pytest.fixture(scope="class")
    def reference(self, class_seed: int) -> Reference:
        return self.reference_class(class_seed)

    @pytest.fixture(scope="class")
    def folder(self, reference: Reference, tmp_path_factory: Any) -> Path:
        return written(reference, tmp_path_factory.mktemp("plain"))

    @pytest.fixture(scope="class")
    def engine(self, folder: Path) -> Iterator[Engine]:
        with load(folder) as loaded:
            yield loaded

    # --- prompts and comparisons ---------------------------------------------------------------

    def words(self, count: int) -> list[int]:
        return [self.random.choice(WORDS) for _ in range(count)]

    def photo(self, which: int = 0) -> Image.Image:
        width, height = self.reference_class.sizes[which]
        return Photo(width, height, self.random.randrange(2**31)).image

    def note(self, what: str, error: float) -> None:
        """For the table at the end of the run; see conftest."""
        print(f"{what}: {error:.1e}")
        self.record("parity", (self.reference_class.name, f"{self.case}, {what}", error))

    def compare(
        self, engine: Engine, reference: Reference, prompt: Sequence[Part], **options: Any
    ) -> tuple[list[int], Any]:
        """Ask the engine, hold every step against the reference; the answer and its figures."""
        marked = [p if isinstance(p, int) else reference.image_token for p in prompt]
        tokens, images = reference.expanded(prompt)
        answer, ours, end = ask(engine, marked, images, **options)
        assert end.prompt_tokens == len(tokens)
        theirs = centred(reference.logits(tokens, images, answer[:-1])[len(tokens) - 1 :])
        errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
        self.note("first", errors[0])
        self.note("worst of 8", max(errors))
        assert max(errors) <= TOLERANCE
        for token, row in zip(answer, theirs, strict=True):
            # The same greedy token, unless two are as good as equal.
            assert row[token] >= row.max() - TOLERANCE * np.linalg.norm(row)
        return answer, end

    # --- what must hold -------------------------------------------------------------------------

    def test_rows(self, folder: Path, reference: Reference) -> None:
        add_on = load_model_kit(folder).add_on
        assert add_on is not None
        for which in (0, 1):
            photo = self.photo(which)
            picture = load_picture(photo)
            rows = np.array(add_on.encode_image(picture)) * reference.decoder_scale
            assert add_on.row_count(picture) == rows.shape[0]
            error = relative_error(rows, reference.rows(photo))
            self.note(f"{photo.size[0]}x{photo.size[1]}", error)
            assert error <= TOLERANCE

    def test_text_only(self, engine: Engine, reference: Reference) -> None:
        self.compare(engine, reference, [BOS, *self.words(40)])

    @pytest.mark.parametrize("step", [7, 32, 2048])
    def test_one_image(self, engine: Engine, reference: Reference, step: int) -> None:
        prompt = [BOS, self.photo(), *self.words(30)]
        self.compare(engine, reference, prompt, prefill_step_size=step)

    @pytest.mark.parametrize("step", [7, 32, 2048])
    def test_image_not_first(self, engine: Engine, reference: Reference, step: int) -> None:
        prompt = [BOS, *self.words(45), self.photo(1), *self.words(9)]
        self.compare(engine, reference, prompt, prefill_step_size=step)

    @pytest.mark.parametrize("step", [7, 32, 2048])
    def test_two_images(self, engine: Engine, reference: Reference, step: int) -> None:
        prompt = [BOS, *self.words(3), self.photo(), *self.words(5), self.photo(1), *self.words(7)]
        _, end = self.compare(engine, reference, prompt, prefill_step_size=step)
        assert end.images_encoded == 2

    def test_a_conversation(self, engine: Engine, reference: Reference) -> None:
        """Text, a picture after it, text, and another picture: each continues the cache."""
        history: list[Part] = [BOS]
        for i, turn in enumerate(
            (
                self.words(33),
                [*self.words(4), self.photo(), *self.words(6)],
                self.words(5),
                [self.photo(1), *self.words(3)],
                self.words(2),
            )
        ):
            seen, _ = reference.expanded(history)
            history += turn
            answer, end = self.compare(engine, reference, history)
            if i and reference.continues:
                # The last token of an answer may not have been run.
                assert end.cached_tokens >= len(seen) - 1
            history += answer

    def test_two_conversations_in_turns(self, engine: Engine, reference: Reference) -> None:
        """Text and pictures alternate on one engine, each going on where it was."""
        text: list[Part] = [BOS, *self.words(20)]
        seeing: list[Part] = [BOS, *self.words(2), self.photo(), *self.words(4)]
        for _ in range(2):
            seeing += self.compare(engine, reference, seeing)[0] + self.words(3)
            text += self.compare(engine, reference, text)[0] + self.words(3)

    def test_text_is_plain_text(self, folder: Path, engine: Engine, reference: Reference) -> None:
        """Bit for bit what a fresh engine says, also right after a picture."""
        prompt = self.words(38)
        self.compare(engine, reference, [BOS, self.photo(), *self.words(5)])
        answer, ours, end = ask(engine, prompt, [])
        assert end.cached_tokens == 0
        with load(folder) as fresh:
            other, theirs, _ = ask(fresh, prompt, [])
        assert answer == other
        assert np.array_equal(ours, theirs)

    def test_text_is_mlx_lm_alone(self, folder: Path, reference: Reference) -> None:
        """Bit for bit what mlx-lm's loop says with the decoder as it is built for text."""
        prompt = self.words(38)
        with load(folder) as fresh:
            ask(fresh, [BOS, reference.image_token, *self.words(5)], [self.photo()])
            answer, ours, end = ask(fresh, prompt, [])
        assert end.cached_tokens == 0
        kit = load_model_kit(folder, vocab_only=True)
        model = build_decoder(folder, read_config(folder), read_weights(folder))
        alone = list(stream_generate(model, kit.tokenizer, mx.array(prompt), max_tokens=ANSWER))
        assert [r.token for r in alone] == answer
        theirs = centred(np.array([np.array(r.logprobs) for r in alone]))
        assert np.array_equal(ours, theirs)

    def test_dialects(self, reference: Reference, tmp_path: Path) -> None:
        prompt = [BOS, *self.words(3), self.photo(1), *self.words(5)]
        for dialect in reference.dialects:
            folder = written(reference, tmp_path / dialect.replace(" ", "-"), dialect)
            with load(folder) as engine:
                self.compare(engine, reference, prompt)

    @pytest.mark.parametrize("towers", [False, True], ids=["decoder", "decoder and towers"])
    def test_quantized(self, class_seed: int, tmp_path: Path, towers: bool) -> None:
        """By MLX, against the reference with the weights that quantization left."""
        reference = self.reference_class(class_seed + 1)
        kept = dequantized_weights(reference.model, towers)
        folder = written(reference, tmp_path, reference.dialects[-1])
        quantize_folder(folder, kept)
        names = load_file(folder / "model.safetensors")
        assert sum(name.endswith(".scales") for name in names) == len(kept) > 0
        prompt = [BOS, *self.words(3), self.photo(), *self.words(5)]
        with load(folder) as engine:
            self.compare(engine, reference, prompt)


def ask(
    engine: Engine, tokens: list[int], images: Sequence[Image.Image], **options: Any
) -> tuple[list[int], np.ndarray, Any]:
    """A greedy answer: its tokens, its centred logits [ANSWER, VOCAB], and its figures."""
    wanted = GenerationOptions(max_tokens=ANSWER, top_logprobs=VOCAB, **options)
    generation = engine.generate(tokens, images=images, options=wanted)
    deltas = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
    end = generation.result()
    logprobs = np.empty((len(deltas), VOCAB), np.float32)
    for row, delta in zip(logprobs, deltas, strict=True):
        assert len(delta.top_logprobs) == VOCAB
        for token, logprob in delta.top_logprobs:
            row[token] = logprob
    assert len(deltas) == ANSWER
    return [d.token for d in deltas], centred(logprobs), end  # type: ignore[misc]
