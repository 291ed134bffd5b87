"""Some checkpoints damaged at random; `scripts/fuzz_checkpoints.py` loads thousands."""

import random
from pathlib import Path

import pytest

pytest.importorskip("torch")

from support.checkpoint_damage import Damages
from support.damages.outcomes import Portrait, outcome, portrait
from support.damages.wholes import write_wholes
from support.seeds import seed_of

from model_kit import load_model_kit

COUNT = 54


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_wholes(tmp_path_factory.mktemp("whole"), seed_of("damaged checkpoints"))


def test_damaged_checkpoints_are_refused_or_the_same(
    wholes: dict[str, Path], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    portraits: dict[str, Portrait] = {n: portrait(load_model_kit(f)) for n, f in wholes.items()}
    damages = {name: Damages(folder, rng) for name, folder in wholes.items()}
    names = list(wholes)
    wrong = []
    for number in range(COUNT):
        name = names[number % len(names)]
        damage = damages[name].write(tmp_path / "damaged")
        found = outcome(tmp_path / "damaged", damage, portraits[name])
        if found.failure:
            wrong.append(f"{name}, {damage.name}: {found.kind} {found.error}: {found.failure}")
    assert not wrong, "\n".join(wrong)
    # No damage reached what is whole.
    assert all(portrait(load_model_kit(wholes[n])) == portraits[n] for n in names)
