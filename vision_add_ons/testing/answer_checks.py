"""Answers: token by token what the reference says, whatever way a prompt takes to the decoder."""

from vision_add_ons.testing.kit import Kit, NothingToCheck, answered, begin
from vision_add_ons.testing.reference import Part
from vision_add_ons.testing.vocabulary import BOS

STEPS = (7, 32, 2048)
"""Prompt tokens that are run at once: pieces that cut pictures, that cut prompts, and none."""


def check_text(kit: Kit) -> None:
    """A prompt without pictures."""
    case = kit.case("text only")
    case.compare([BOS, *case.words(40)])


def check_one_picture(kit: Kit, step: int = 2048) -> None:
    """One picture at the start of the prompt."""
    case = kit.case(f"one picture, steps of {step}")
    case.compare([BOS, case.image(), *case.words(30)], prefill_step_size=step)


def check_a_later_picture(kit: Kit, step: int = 2048) -> None:
    """A picture behind more text than the smaller steps hold."""
    case = kit.case(f"a later picture, steps of {step}")
    prompt = [BOS, *case.words(45), case.image(1), *case.words(9)]
    case.compare(prompt, prefill_step_size=step)


def check_two_pictures(kit: Kit, step: int = 2048) -> None:
    """Two pictures of different sizes with text around them: their order counts."""
    case = kit.case(f"two pictures, steps of {step}")
    first, second = case.image(), case.image(1)
    prompt = [BOS, *case.words(3), first, *case.words(5), second, *case.words(7)]
    _, end = case.compare(prompt, prefill_step_size=step)
    assert end.images_encoded == 2, (
        f"two pictures that the engine had not seen, but it encoded {end.images_encoded}"
    )


def check_touching_pictures(kit: Kit) -> None:
    """Two pictures with nothing between them."""
    if not kit.reference.touching:
        raise NothingToCheck("the reference cannot be asked for pictures that touch")
    case = kit.case("touching pictures")
    prompt = [BOS, case.image(), case.image(1), *case.words(6)]
    case.compare(prompt, prefill_step_size=STEPS[0])


def check_a_conversation(kit: Kit) -> None:
    """Text, a picture after it, text, and another picture: each continues the cache."""
    case = kit.case("a conversation")
    history: list[Part] = [BOS]
    turns: list[list[Part]] = [
        [*case.words(33)],
        [*case.words(4), case.image(), *case.words(6)],
        [*case.words(5)],
        [case.image(1), *case.words(3)],
        [*case.words(2)],
    ]
    for i, turn in enumerate(turns):
        seen, _ = kit.reference.expanded(history)
        history += turn
        answer, end = case.compare(history)
        if i and kit.reference.continues:
            # The last token of an answer may not have been run.
            assert end.cached_tokens >= len(seen) - 1, (
                f"turn {i + 1} continues {len(seen)} tokens, but only {end.cached_tokens} came "
                "from the cache: look at the spans and the bidirectional ranges of expand_prompt"
            )
        history += answer


def check_conversations_in_turns(kit: Kit) -> None:
    """Text and pictures alternate on one engine, each going on where it was."""
    case = kit.case("conversations in turns")
    talks: list[list[Part]] = [
        [BOS, *case.words(20)],
        [BOS, *case.words(2), case.image(), *case.words(4)],
        [BOS, case.image(1), *case.words(4)],
    ]
    for _ in range(2):
        for talk in talks:
            talk += case.compare(talk)[0] + case.words(3)


def check_together(kit: Kit) -> None:
    """Texts and pictures whose answers are decoded together, rows that join and leave at will."""
    case = kit.case("together")
    engine = kit.open(kit.folder, parallel=3)
    prompts: list[list[Part]] = [
        [BOS, *case.words(30)],
        [BOS, case.image(), *case.words(5)],
        [BOS, *case.words(3), case.image(1), *case.words(2), case.image(), *case.words(40)],
        [BOS, *case.words(2)],
        [BOS, *case.words(12), case.image(1), *case.words(4)],
    ]
    begun = [begin(engine, prompt, kit.reference, prefill_step_size=16) for prompt in prompts]
    for prompt, generation in zip(prompts, begun, strict=True):
        case.hold(prompt, answered(generation), kit.reference)
