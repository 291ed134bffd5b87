"""What a family brings to be checked: a tiny checkpoint, and what it should give."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import CheckpointError
from vision_add_ons.testing.comparison import TOLERANCE
from vision_add_ons.testing.vocabulary import JOINED, write_tokenizer

Part = int | Image.Image
"""A prompt is a list of these: a token id, or a picture in its place."""


class Refused(NamedTuple):
    """A value in a checkpoint's JSON files with which loading must be refused.

    A plain tuple of the first two or more serves as well.
    """

    path: str
    """Names joined by dots, in config.json ("vision_config.hidden_act") or in another file
    ("preprocessor_config.json/do_resize")."""
    value: Any
    """`REMOVED` takes the field away."""
    error: type[CheckpointError] = CheckpointError
    """What must be raised, or a class that is derived from it."""
    told: str | None = None
    """A regular expression that the message must match; by default the field's own name, and for
    a `model_type` that of the object that it stands in."""


REMOVED = object()
"""In place of a value: the field is not there."""


@dataclass(frozen=True)
class Conversation:
    """`messages`, and the `text` that the family's chat template must make of them.

    Each message is a dictionary of `role`, `content` and, for a user's, `images`.
    """

    messages: Sequence[Mapping[str, Any]]
    text: str

    @property
    def images(self) -> list[Image.Image]:
        """Those of all messages, in their order."""
        return [image for message in self.messages for image in message.get("images", ())]


class Reference(ABC):
    """A family's tiny random checkpoint, as an implementation other than the add-on computes it.

    It must be built anew, alike, from the same seed. Weights are float32, and large enough that
    attention and positions decide the outcome (`random_weights` fills a torch model so). The
    vocabulary is the kit's: `VOCAB` token ids, of which `PAD`, `BOS`, `EOS` and `WORDS` are taken.
    No answer may end or hold a special token: rows of the head outside of `WORDS` are zero.
    """

    name: ClassVar[str]
    """The family, in tables and messages."""
    image_token: ClassVar[int | None] = None
    """Marks a picture's place in a prompt that is not yet expanded; None for families without such
    a token, whose pictures stand at the start of their message."""
    sizes: ClassVar[Sequence[tuple[int, int]]] = ((40, 30), (28, 52))
    """Width and height of two pictures that are shown; they should give different numbers of rows
    where the family allows it."""
    more_sizes: ClassVar[Sequence[tuple[int, int]]] = ((64, 64), (9, 47), (61, 8))
    """Further ones, of which only rows and places are checked; the kit draws some, too."""
    dialects: ClassVar[Sequence[str]] = ("published",)
    """In how many ways `write` can write the same model: as published, as transformers 5 saves it,
    as a converter to MLX leaves it. The first serves all checks, the last those of quantization."""
    continues: ClassVar[bool] = True
    """Whether what a text left in the cache serves a longer prompt with pictures. Not for decoders
    whose prompts see themselves whole."""
    places_pictures: ClassVar[bool] = False
    """Whether pictures without a place in the prompt are no error, the family giving them one."""
    touching: ClassVar[bool] = True
    """Whether `logits` can be asked for pictures with nothing between them."""
    decoder_scale: ClassVar[float] = 1.0
    """What the decoder multiplies its input by, so that the add-on's rows are `rows` divided by
    it."""

    refused: ClassVar[Sequence[Refused | tuple[Any, ...]]] = ()
    """JSON values that must be refused by an error that names the field."""
    ignored: ClassVar[Collection[str]] = ()
    """Fields of config.json with texts (paths, see `Refused`) that mean nothing to the pictures."""
    unused: ClassVar[Sequence[str]] = ()
    """Regular expressions, matched against the starts of names, of weights that `write` writes and
    nothing uses. Their absence and their shape are no errors."""

    seed: int | None = None
    """Of a reference that is ready, and not built from any seed: the one that all its answers are
    for."""
    model: Any = None
    """The torch module, where there is one: `quantized` rounds its weights."""

    @abstractmethod
    def __init__(self, seed: int) -> None:
        """Build the tiny model with random weights of this seed."""

    @abstractmethod
    def write(self, folder: Path, dialect: str) -> None:
        """Write config.json, model.safetensors in float32, and the image processor's files.

        `folder` exists. The tokenizer is the kit's to write. Each of the image processor's settings
        that are written is tried absent, too.
        """

    @abstractmethod
    def block(self, image: Image.Image) -> list[int]:
        """The tokens that the family's processor writes for one picture, placeholders and all."""

    @abstractmethod
    def rows(self, image: Image.Image) -> np.ndarray:
        """The picture's embedding rows, float32 [n, hidden_size], as they enter the decoder."""

    @abstractmethod
    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        """Logits [len(tokens) + len(answer), VOCAB] of an expanded prompt and its answer so far."""

    # --- what a family may bring besides ----------------------------------------------------------

    def allowed(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> float:
        """How far logits may be off, of such an answer that is off by more than `TOLERANCE`.

        More than that only where float32 itself ends: at most 1.5 times what the other
        implementation's float32 is off its own float64, for a reference in float64 (in the worst of
        some orders of summation, as one alone says little); infinity where
        the model chooses between two things, as experts, that float32 cannot tell apart.
        """
        return TOLERANCE

    def named(self, tensor: str) -> str:
        """How an error may call this tensor, if not by its name in the checkpoint."""
        return tensor

    def misshapen(self, tensor: str, array: mx.array) -> mx.array:
        """A tensor in a shape that the model cannot use: one more along its last axis.

        For those whose last axis decides a size of the model, give another wrong shape.
        """
        return mx.zeros((*array.shape[:-1], array.shape[-1] + 1), array.dtype)

    def before(self, index: int) -> list[int]:
        """The tokens that the family's processor writes before the `block` of a picture which has
        `index` others before it in the prompt; for families that number pictures."""
        return []

    means: ClassVar[Mapping[str, Any]] = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1.0, 2.0, 3.0],
    }
    """Settings of preprocessor_config.json that must change the rows."""

    def quantized(self, seed: int, towers: bool) -> "Reference | None":
        """A model of another seed whose weights are rounded to what MLX's quantization keeps of
        them, and written quantized; without `towers`, its decoder's alone.

        The default does so with `model`, a torch module; None where there is none.
        """
        from vision_add_ons.testing.quantization import QuantizedReference, round_weights

        other = type(self)(seed)
        if other.model is None:
            return None
        return QuantizedReference(other, round_weights(other.model, towers))

    pixel_sizes: ClassVar[Sequence[tuple[int, int]]] = (
        (1, 50),
        (60, 1),
        (190, 1),
        (3, 570),
        (31, 33),
        (1300, 900),
    )
    """Of pictures whose preprocessing is compared with `pixels`, beside those of drawn sizes."""
    processors: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    """Settings of preprocessor_config.json, each laid over what `write` wrote, with which pixels
    are compared."""

    def pictures(self) -> list[Image.Image]:
        """Real pictures whose preprocessing is compared too."""
        return []

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray | None:
        """What the family's own image processor makes of a picture with these `settings`.

        They are all that its file says: what is not there is as the processor's class has it.
        """
        return None

    def our_pixels(self, add_on: VisionAddOn, image: Image.Image) -> np.ndarray:
        """The same by the add-on; must be equal to the last bit."""
        raise NotImplementedError(f"{type(self).__name__} has `pixels` and must have `our_pixels`")

    special_tokens: ClassVar[Mapping[str, tuple[int, str]]] = {}
    """The family's special tokens by the names that processors know them by ("image_token"), or
    any others: ids in the tiny vocabulary, and texts, which all tokenizers of the kit have."""
    adds_bos: ClassVar[Sequence[bool]] = (False,)
    """Whether the tokenizer itself puts BOS before a text: both, where checkpoints differ."""
    texts: ClassVar[Sequence[tuple[str, int]]] = ()
    """Whole prompts as texts, and how many pictures each has."""

    control_tokens: ClassVar[Sequence[str]] = ()
    """Texts of further special tokens, such as those that begin and end a turn."""
    templates: ClassVar[Mapping[str, str | None]] = {}
    """By a name for tables, the chat templates that the family's checkpoints bring, each of a form
    of its own; None for checkpoints that bring none. With each, prompts of drawn conversations are
    compared with those of `own_processor`."""

    def own_processor(self, folder: Path) -> Any:
        """The family's own processor of this checkpoint folder, with the folder's tokenizer and
        its chat template, which is one of `templates` (chat_template.jinja).

        Its `apply_chat_template(messages, tokenize=True, add_generation_prompt=True)` gives a list
        of one list of token ids, as transformers' processors do, or raises for what it refuses.
        """
        raise NotImplementedError(f"{type(self).__name__} has `templates` and no `own_processor`")

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A drawn message as one of the `templates` reads it, by its name: `as_text` and `as_parts`
        are for those that do not read both."""
        return message

    def conversations(self) -> Sequence[Conversation]:
        """Messages whose prompts, by the add-on's own chat template, are compared with those of
        the family's processor."""
        return ()

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        """The token ids that the family's own processor makes of a whole prompt's text, with this
        tokenizer of transformers, which adds no BOS."""
        raise NotImplementedError(f"{type(self).__name__} has texts to process and no `processed`")

    # --- for the checks ---------------------------------------------------------------------------

    def expanded(self, prompt: Sequence[Part]) -> tuple[list[int], list[Image.Image]]:
        """The prompt with each picture's tokens in its place, and the pictures."""
        tokens: list[int] = []
        images: list[Image.Image] = []
        for part in prompt:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += [*self.before(len(images)), *self.block(part)]
                images.append(part)
        return tokens, images


def written(reference: Reference, folder: Path, dialect: str | None = None) -> Path:
    """The whole checkpoint, with a tokenizer; in the reference's first dialect if none is told."""
    folder.mkdir(parents=True, exist_ok=True)
    reference.write(folder, dialect or reference.dialects[0])
    template = JOINED if reference.image_token is None else None
    write_tokenizer(folder, template, reference.special_tokens)
    return folder
