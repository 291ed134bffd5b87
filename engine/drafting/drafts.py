"""Where an engine's drafts come from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.drafting.drafting import Drafter, Drafting
from engine.drafting.lookup import PromptLookup
from engine.drafting.model import DraftModel
from engine.drafting.step_times import StepTimes
from vision_add_ons.errors import OptionError

if TYPE_CHECKING:
    from engine.decoding.answer import Answer
    from engine.memory.memory import Memory
    from engine.prompts.builder import Prompt
    from model_kit.kit import ModelKit

SAMPLES = (
    "A draft reads 1,234 words;  and\n\tsays: na\u00efve caf\u00e9 \u2014 \u4f60\u597d, "
    "\U0001f600!",
    "def f(x):\n    return {'a': x ** 2}",
)
"""Texts by which tokenizers of one vocabulary are told apart that cut words otherwise."""


class Drafts:
    """Of a draft model, if there is one, else of what was said before."""

    def __init__(self, kit: "ModelKit | None", memory: "Memory") -> None:
        """`kit` is the draft model, whose KV caches `memory` keeps too."""
        self._kit = kit
        self._prompts = None if kit is None else memory.of_draft(kit)
        self._times = StepTimes()

    def of(self, answer: "Answer") -> Drafting | None:
        """What drafts for an answer; None if it asks for none."""
        fixed = answer.options.draft_tokens
        if fixed == 0:
            return None
        drafter: Drafter = PromptLookup()
        if self._kit is not None and self._prompts is not None:
            vocab_size = min(answer.kit.vocab_size, self._kit.vocab_size)
            owner, cancelled = answer.start.owner, answer.generation
            drafter = DraftModel(
                self._kit, self._prompts, vocab_size, owner, lambda: not cancelled.cancelled
            )
        return Drafting(drafter, words(answer.prompt), self._times, fixed)


def check_draft(kit: "ModelKit", draft: "ModelKit") -> None:
    """Raises `OptionError` for a draft model whose tokens are not those of the model."""
    ours, theirs = kit.tokenizer, draft.tokenizer
    if ours.get_vocab() != theirs.get_vocab() or any(
        ours.encode(text) != theirs.encode(text) for text in SAMPLES
    ):
        raise OptionError(
            f"draft {draft.folder.name} has another tokenizer than {kit.folder.name}: what it "
            "drafts would be other words; give a smaller model of the same family"
        )


def words(prompt: "Prompt") -> Sequence[int]:
    """A prompt's tokens without its pictures'."""
    if not prompt.spans:
        return prompt.tokens
    tokens: list[int] = []
    done = 0
    for span in prompt.spans:
        tokens += prompt.tokens[done : span.start]
        done = span.end
    return [*tokens, *prompt.tokens[done:]]
