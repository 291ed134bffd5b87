"""How closely one checkpoint follows another: KL divergence and top-1 agreement.

Meant for a checkpoint that was made from another, by quantization say. Both read the same tokens
(teacher forcing), and what they expect next is compared at every position.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from engine.options import GenerationOptions
from model_kit.blas import preload_openblas
from vision_add_ons.errors import (
    ContextExceeded,
    ImageError,
    OptionError,
    PromptError,
    RequestError,
)

if TYPE_CHECKING:
    import mlx.core as mx

    from engine.prompts.builder import Prompt, PromptBuilder
    from model_kit.kit import ModelKit

Progress = Callable[[str, int, int], None]
PicturePath = str | os.PathLike[str]

MAX_TOKENS = 512
"""Longer texts are cut to so many tokens, or to the model's context."""
QUESTION = "Describe the picture."
ANSWER_TOKENS = 24
"""At most so many tokens of the source's answer about a picture are compared."""
ROWS = 64
"""Positions compared at once: a row of logits may take a megabyte in float32."""
LABEL = 32
_NO_MATPLOTLIB = "a plot needs matplotlib; `pip install matplotlib`"


@dataclass(frozen=True)
class ItemFidelity:
    """One text or picture."""

    label: str
    """How the text begins, or the picture's file name."""
    kl: tuple[float, ...]
    """KL(source || target) at each position compared, in nats."""
    agrees: tuple[bool, ...]
    """Whether both find the same token likeliest there."""

    @property
    def tokens(self) -> int:
        """How many positions were compared."""
        return len(self.kl)

    @property
    def mean_kl(self) -> float:
        return sum(self.kl) / len(self.kl)

    @property
    def top1(self) -> float:
        """The share of positions, 0 to 1, at which both find the same token likeliest."""
        return sum(self.agrees) / len(self.agrees)


@dataclass(frozen=True)
class Fidelity:
    """The result of `compare`. Means are over all positions of all items: long ones count more."""

    items: tuple[ItemFidelity, ...]

    @property
    def tokens(self) -> int:
        """How many positions were compared."""
        return self._whole.tokens

    @property
    def mean_kl(self) -> float:
        """KL(source || target) in nats, over the whole vocabulary."""
        return self._whole.mean_kl

    @property
    def top1(self) -> float:
        """The share of positions, 0 to 1, at which both find the same token likeliest."""
        return self._whole.top1

    @property
    def _whole(self) -> ItemFidelity:
        kl = tuple(x for item in self.items for x in item.kl)
        return ItemFidelity("all", kl, tuple(x for item in self.items for x in item.agrees))

    def lines(self) -> list[str]:
        """A table for a terminal: one line an item, the last for all of them."""
        lines = [f"{'':{LABEL}}  {'tokens':>6}  {'KL (nats)':>9}  {'top-1':>6}"]
        for item in (*self.items, self._whole):
            figures = f"{item.tokens:6}  {item.mean_kl:9.5f}  {item.top1:6.1%}"
            lines.append(f"{item.label:{LABEL}}  {figures}")
        return lines


def compare(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    texts: Sequence[str] | None = None,
    pictures: Sequence[PicturePath] | None = None,
    progress: Progress | None = None,
) -> Fidelity:
    """Compare two checkpoint folders on texts and pictures; None stands for those that ship.

    A text is read as it stands, at most `MAX_TOKENS` of it, and compared at each of its positions.
    A picture is shown with `QUESTION`, and compared along the source's own greedy answer: at the
    prompt's last position and at each of the answer's. At each, KL(source || target) is taken over
    the whole vocabulary in float32. The pictures that ship are left out if either cannot see.

    `progress(stage, done, total)` is called from this thread. While the comparison runs, the
    source's logits lie in the system's temporary folder, 2 or 4 bytes for each position and each
    token of the vocabulary. Raises a `CheckpointError`, or a `RequestError` if the two cannot be
    compared, or not on these.
    """
    preload_openblas()
    if isinstance(texts, str):
        raise PromptError("texts are a list of texts, not one text")
    # One model in memory at a time: whoever quantizes may have no room for two. Logits for a large
    # vocabulary are too much to keep there as well; files hold them as they are, unrounded.
    with TemporaryDirectory(prefix="sightline-fidelity-") as folder:
        items = _run_source(Path(source), Path(target), texts, pictures, Path(folder), progress)
        return Fidelity(_run_target(Path(target), items, progress))


def default_texts() -> list[str]:
    """The texts that ship: prose, a dialogue, a list, Python, a letter, facts and numbers."""
    whole = Path(__file__).with_name("fidelity_texts.txt").read_text("utf-8")
    return whole.removesuffix("\n").split("\n%\n")


def default_pictures() -> list[Path]:
    """The pictures that ship."""
    from model_kit.demo_eyes import PARTS

    return sorted((PARTS / "samples").glob("*.png"))


def check_plot(path: Path) -> None:
    """Raise `OptionError` if `plot` could not draw there, as far as that can be known before."""
    if find_spec("matplotlib") is None:
        raise OptionError(_NO_MATPLOTLIB)
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{path} cannot be written as a plot: there is no folder {path.parent}")


def plot(fidelity: Fidelity, path: str | os.PathLike[str]) -> None:
    """Draw the KL divergence at every position to a file; its suffix decides the format.

    Raises `OptionError` if matplotlib is missing, or the file cannot be written.
    """
    try:
        # By name, so that type checking does not ask for it.
        new_figure = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise OptionError(_NO_MATPLOTLIB) from error

    items = fidelity.items
    figure = new_figure(figsize=(8, 1.2 + 0.3 * len(items)), layout="constrained")
    axes = figure.add_subplot()
    for row, item in enumerate(items):
        axes.plot(item.kl, [row] * item.tokens, "|", color="tab:blue", alpha=0.5)
        axes.plot([item.mean_kl], [row], "o", color="black")
    axes.axvline(fidelity.mean_kl, color="black", linestyle="--", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1e-4)  # logarithmic, but there may be zeros
    axes.set_xlim(left=0)
    axes.set_xlabel("KL (nats) at each position, and the means")
    # Dollar signs are dollar signs.
    axes.set_yticks(range(len(items)), [i.label for i in items], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_title(f"mean KL {fidelity.mean_kl:.5f} nats, top-1 agreement {fidelity.top1:.1%}")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OptionError(f"{os.fspath(path)} cannot be written as a plot: {error}") from error


@dataclass(frozen=True)
class _Item:
    """What both models read, and where the source's logits lie."""

    label: str
    prompt: "Prompt"
    answer: list[int] | None
    """The source's answer about a picture; None for a text."""
    logits: Path


def _run_source(
    source: Path,
    target: Path,
    texts: Sequence[str] | None,
    pictures: Sequence[PicturePath] | None,
    folder: Path,
    progress: Progress | None,
) -> list[_Item]:
    """Let the source read everything, and leave its logits in `folder`."""
    import mlx.core as mx

    from engine.prompts.builder import PromptBuilder
    from model_kit.kit import load_model_kit

    words = load_model_kit(target, vocab_only=True)
    # Beside a text checkpoint, its source may be the text half alone too.
    kit = load_model_kit(source, progress=progress, decoder_only=words.config.add_on is None)
    blind = _check(kit, words)
    if pictures and blind is not None:
        model = f"{blind.folder} ({blind.config.model_type})"
        raise ImageError(f"{model} is text only, so it cannot look at pictures")
    if texts is None:
        texts = default_texts()
    if pictures is None:
        pictures = default_pictures() if blind is None else ()
    if not texts and not pictures:
        raise RequestError("there is nothing to compare on; give a text or a picture")
    builder = PromptBuilder(kit)
    # All of them before the first is run, so that a bad one is known at once.
    asked = [(text, _text_prompt(kit, builder, text)) for text in texts]
    asked += [(p.name, _picture_prompt(kit, builder, p)) for p in map(Path, pictures)]
    items = []
    for i, (label, prompt) in enumerate(asked):
        _tell(progress, "run source", i, len(asked))
        answer = _answer(kit, prompt) if prompt.spans else None
        item = _Item(_short(label), prompt, answer, folder / f"{i}.safetensors")
        logits = _logits(kit, item)
        mx.eval(logits)
        try:
            mx.save_safetensors(str(item.logits), {"logits": logits})
        except (OSError, RuntimeError) as error:
            raise RequestError(
                f"the source's logits cannot be kept in {folder} ({error}); have TMPDIR name a "
                "folder with more room"
            ) from error
        items.append(item)
    _tell(progress, "run source", len(asked), len(asked))
    return items


def _run_target(
    target: Path, items: Sequence[_Item], progress: Progress | None
) -> tuple[ItemFidelity, ...]:
    import mlx.core as mx

    from model_kit.kit import load_model_kit

    mx.clear_cache()  # the source's memory, which nothing holds any more
    kit = load_model_kit(target, progress=progress)
    measured = []
    for i, item in enumerate(items):
        _tell(progress, "run target", i, len(items))
        stored = mx.load(str(item.logits))
        assert isinstance(stored, dict)
        measured.append(_measure(item.label, stored["logits"], _logits(kit, item)))
        item.logits.unlink()
    _tell(progress, "run target", len(items), len(items))
    return tuple(measured)


def _check(source: "ModelKit", target: "ModelKit") -> "ModelKit | None":
    """The one that cannot see, if there is one. Raises `RequestError` if they do not compare."""
    same_size = source.vocab_size == target.vocab_size
    if not same_size or source.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise RequestError(
            f"{source.folder} and {target.folder} have different vocabularies "
            f"({source.vocab_size} and {target.vocab_size} tokens), so what they expect next "
            "cannot be compared"
        )
    return next((kit for kit in (source, target) if kit.config.add_on is None), None)


def _text_prompt(kit: "ModelKit", builder: "PromptBuilder", text: str) -> "Prompt":
    from engine.prompts.builder import Prompt

    if not isinstance(text, str):
        raise PromptError(f"a text is wanted, not {type(text).__name__}")
    return Prompt(builder.build(text).tokens[: min(MAX_TOKENS, kit.max_context or MAX_TOKENS)])


def _picture_prompt(kit: "ModelKit", builder: "PromptBuilder", path: Path) -> "Prompt":
    prompt = builder.build([{"role": "user", "content": QUESTION}], [path])
    if kit.max_context is not None and len(prompt.tokens) >= kit.max_context:
        raise ContextExceeded(
            f"{path} takes {len(prompt.tokens)} tokens with its question, and the context ends at "
            f"{kit.max_context}; give a smaller picture"
        )
    return prompt


def _answer(kit: "ModelKit", prompt: "Prompt") -> list[int]:
    """The greedy answer's tokens, without the one that ends it."""
    from engine.decoding.alone import steps
    from engine.decoding.answer import Answer
    from engine.generation import Generation
    from engine.memory.memory import Memory

    generation = Generation(prompt, GenerationOptions(max_tokens=ANSWER_TOKENS))
    for _ in steps(Answer(kit, Memory(kit, 0, None, 0), generation)):
        pass
    return list(generation.result().tokens)


def _logits(kit: "ModelKit", item: _Item) -> "mx.array":
    """Logits at each position to compare, [positions, vocabulary], in the decoder's own dtype."""
    import mlx.core as mx

    from engine.decoding.prefill import prefill

    model, caches, prompt = kit.text_model, kit.make_cache(), item.prompt
    assert model is not None
    tokens = mx.array(list(prompt.tokens))[None]
    if item.answer is None:
        return model(tokens, cache=caches)[0]
    assert kit.add_on is not None
    rows = kit.add_on.compute_embeddings(model, tokens[0], prompt.spans).input_embeddings
    for span in prompt.spans:
        span.picture.release()
    caches = kit.add_on.cache_views(caches, prompt)
    # In the steps of an ordinary answer, which every family's masks and positions are made for.
    whole, options = prompt.bidirectional, GenerationOptions()
    for _ in prefill(model, prompt.tokens, rows, caches, whole, options):
        pass
    last = {} if rows is None else {"input_embeddings": rows[-1:][None]}
    logits = model(tokens[:, -1:], cache=caches, **last)
    if item.answer:
        rest = model(mx.array([item.answer]), cache=caches)
        logits = mx.concatenate([logits, rest], axis=1)
    return logits[0]


def _measure(label: str, source: "mx.array", target: "mx.array") -> ItemFidelity:
    """Compare logits [positions, vocabulary]."""
    import mlx.core as mx

    mx.eval(source, target)
    kl: list[float] = []
    agrees: list[bool] = []
    for start in range(0, source.shape[0], ROWS):
        a, b = (x[start : start + ROWS].astype(mx.float32) for x in (source, target))
        log_p = a - mx.logsumexp(a, axis=-1, keepdims=True)
        log_q = b - mx.logsumexp(b, axis=-1, keepdims=True)
        p = mx.exp(log_p)
        # What has no probability adds nothing, also if its logit is minus infinity.
        sums = mx.where(p == 0, 0, p * (log_p - log_q)).sum(axis=-1)
        # Rounding may leave them just below zero.
        kl += mx.maximum(sums, 0).tolist()  # type: ignore[arg-type]
        same = mx.argmax(a, axis=-1) == mx.argmax(b, axis=-1)
        agrees += same.tolist()  # type: ignore[arg-type]
    return ItemFidelity(label, tuple(kl), tuple(agrees))


def _short(label: str) -> str:
    """On one line, without what a terminal would obey."""
    label = "".join(c if c.isprintable() else " " for c in label[: 4 * LABEL])
    label = " ".join(label.split())
    return label if len(label) <= LABEL else label[: LABEL - 3] + "..."


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)
