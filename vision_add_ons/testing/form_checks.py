"""The forms in which the same model is found: every dialect, and quantized."""

from vision_add_ons.testing.folders import tensors_of
from vision_add_ons.testing.kit import Kit, NothingToCheck
from vision_add_ons.testing.reference import written
from vision_add_ons.testing.vocabulary import BOS


def check_dialects(kit: Kit) -> None:
    """However it is written, it is the same model."""
    reference = kit.reference
    for dialect in reference.dialects[1:]:  # the first serves all the other checks
        case = kit.case(f"dialect {dialect}")
        folder = written(reference, kit.new_folder(dialect), dialect)
        prompt = [BOS, *case.words(3), case.image(1), *case.words(5)]
        case.compare(prompt, kit.open(folder))


def check_quantized(kit: Kit, towers: bool) -> None:
    """By MLX, against the reference with the weights that quantization left."""
    reference = kit.reference.quantized(kit.seed + 1, towers)
    if reference is None:
        raise NothingToCheck("the reference has neither a torch `model` nor its own `quantized`")
    case = kit.case("quantized" + (", towers too" if towers else ""))
    folder = written(reference, kit.new_folder("quantized"))
    assert any(name.endswith(".scales") for name in tensors_of(folder)), "nothing is quantized"
    prompt = [BOS, *case.words(3), case.image(), *case.words(5)]
    case.compare(prompt, kit.open(folder), reference)
