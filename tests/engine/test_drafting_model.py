"""A draft model's own caches: whatever was refused before, it says what it would say alone."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from support import hybrids, tiny
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from engine.drafting import model as draft_model
from engine.drafting.model import BESIDE, DraftModel
from engine.memory.memory import Memory
from model_kit import ModelKit, load_model_kit
from vision_add_ons.testing import BOS, VOCAB, WORDS


def gemma3(seed: int) -> Any:
    """With a sliding window, which the histories here are longer than."""
    config = Gemma3TextConfig(
        **{
            **hybrids.SIZES,
            "num_hidden_layers": 3,
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
        },
        attn_implementation="eager",
    )
    return tiny.randomize(Gemma3ForCausalLM(config), seed)


DRAFTS: dict[str, Callable[[int], Any]] = {
    "mistral": tiny.of_few_words,
    "gemma3": gemma3,
    **hybrids.HYBRIDS,
}


@pytest.fixture(params=DRAFTS)
def kit(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> ModelKit:
    return load_model_kit(tiny.save_of_few_words(DRAFTS[request.param](seed), tmp_path / "draft"))


def likeliest(kit: ModelKit, tokens: list[int], count: int) -> list[int]:
    """What mlx-lm alone goes on with."""
    steps = generate_step(mx.array(tokens), kit.text_model, max_tokens=count)
    return [int(token) for token, _ in steps][:count]


def drafting(kit: ModelKit, memory: Memory, owner: object = None) -> DraftModel:
    return DraftModel(kit, memory.of_draft(kit), VOCAB, owner, lambda: True)


def grown(kit: ModelKit, model: DraftModel, history: list[int], chance: random.Random) -> list[int]:
    """A history that goes on as the draft has it, for a while, and then otherwise; or as nobody
    drafted it."""
    last = chance.choice(WORDS)
    for _ in range(6):
        count = chance.randrange(1, 7)
        if chance.random() < 0.3:
            history = [*history, last, *chance.choices(WORDS, k=chance.randrange(50))]
            last = chance.choice(WORDS)
        assert model.ready(history)
        assert len(history) - len(model._held) <= BESIDE
        drafted = model.draft(history, mx.array([last]), count)
        expected = likeliest(kit, [*history, last], count)
        assert drafted.tolist() == expected
        accepted = chance.randrange(count + 1)
        history = [*history, last, *expected[:accepted]]
        others = [word for word in WORDS if word not in expected[accepted : accepted + 1]]
        last = chance.choice(others)
    return history


def test_it_says_what_it_would_say_alone(kit: ModelKit, seed: int) -> None:
    """Over several answers of one conversation, of which the later begin with what was kept."""
    chance, memory, owner = random.Random(seed), Memory(kit, 2**24, None, 0), object()
    history = [BOS, *chance.choices(WORDS, k=50)]
    for turn in range(2):
        model = drafting(kit, memory, owner)
        history = grown(kit, model, history, chance)
        model.close(history)
        assert len(memory.of_draft(kit)) == 1
        if turn:
            assert model._start is not None
            assert model._start.length > len(history) // 3
        history += chance.choices(WORDS, k=5)
    memory.close()


def test_what_was_drafted_last_and_never_said_is_not_kept(kit: ModelKit, seed: int) -> None:
    chance, memory = random.Random(seed), Memory(kit, 2**24, None, 0)
    history, owner = [BOS, *chance.choices(WORDS, k=40)], object()
    model = drafting(kit, memory, owner)
    assert model.ready(history)
    model.draft(history, mx.array([WORDS[0]]), 4)
    model.close([*history, WORDS[0]] if seed % 2 else history)
    for entry in memory.of_draft(kit)._entries.values():
        assert list(entry.key) == [*history, WORDS[0]][: len(entry.key)]
    model = drafting(kit, memory, owner)
    grown(kit, model, history, chance)
    memory.close()


def test_it_rests_where_its_context_ends(tmp_path: Path, seed: int) -> None:
    draft = tiny.of_few_words(seed, max_position_embeddings=40)
    kit = load_model_kit(tiny.save_of_few_words(draft, tmp_path / "draft"))
    memory, last = Memory(kit, 2**24, None, 0), mx.array([WORDS[0]])
    history = [BOS, *random.Random(seed).choices(WORDS, k=36)]
    model = drafting(kit, memory)
    assert model.ready(history)
    assert model.draft(history, last, 8).size == 3  # the last of them is not run
    for length in (39, 40, 60):
        history += random.Random(seed).choices(WORDS, k=length - len(history))
        assert model.ready(history) is (length < 40)
    model.close(history)
    (entry,) = memory.of_draft(kit)._entries.values()
    assert list(entry.key) == history[: len(entry.key)]
    memory.close()


def test_it_rests_behind_a_token_that_it_does_not_know(tmp_path: Path, seed: int) -> None:
    """As where the large model's vocabulary is padded further."""
    kit = load_model_kit(tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "draft"))
    memory = Memory(kit, 2**24, None, 0)
    history = [BOS, *random.Random(seed).choices(WORDS, k=36)]
    model = drafting(kit, memory)
    assert model.ready(history)
    assert model.draft(history, mx.array([VOCAB + 5]), 8).size == 8
    history += [VOCAB + 5, *WORDS[:3]]
    assert not model.ready(history)
    model.close(history)
    for entry in memory.of_draft(kit)._entries.values():
        assert max(entry.key) < VOCAB
    memory.close()


def test_who_is_cancelled_reads_no_further(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "CHUNK", 40)
    kit = load_model_kit(tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "draft"))
    memory = Memory(kit, 2**24, None, 0)
    history = [BOS, *random.Random(seed).choices(WORDS, k=100)]
    asked = []

    def wanted() -> bool:
        asked.append(True)
        return len(asked) < 2

    model = DraftModel(kit, memory.of_draft(kit), VOCAB, None, wanted)
    assert not model.ready(history)
    assert len(model._held) == 40
    memory.close()
