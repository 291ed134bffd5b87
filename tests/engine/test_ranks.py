"""A model that several processes hold, as MLX's launcher starts them."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny
from support.families import FAMILIES
from support.seeds import SWEEP

from engine import OptionError, UnsupportedCheckpoint, load
from engine.ranks import watch
from engine.ranks.worker import check_ranked, check_same
from model_kit import load_model_kit
from model_kit.sharding import check_shards
from scripts import check_ranks
from vision_add_ons.testing import written


@pytest.mark.whole
@pytest.mark.skipif(not SWEEP, reason="two programs more: of sweeps alone")
def test_two_ranks_answer_as_one(tmp_path: Path, seed: int, record_property: Any) -> None:
    """Conversations with pictures, drawn or not, cancelled and branched."""
    (family,) = (one for one in FAMILIES if one.name == "qwen2_vl")
    reference = family(seed)
    written(reference, tmp_path / "model")
    out = tmp_path / "found.json"
    told = ["--child", str(tmp_path / "model"), "--out", str(out), "--seed", str(seed)]
    told += ["--steps", "8", "--image-token", str(reference.image_token)]
    ran = check_ranks.launched(2, *told)
    assert out.exists(), ran.stdout + ran.stderr
    with load(tmp_path / "model", cache_bytes=3 * 2**20) as engine:
        alone = check_ranks.talk(engine, reference.image_token, seed, 8)
    worst = check_ranks.held(json.loads(out.read_text()), alone)
    assert sum(one["cached"] for one in alone) > 0
    record_property("parity", (family.name, "two ranks against one", worst))


def test_decoders_that_cannot_be_shared(tmp_path: Path, seed: int) -> None:
    kit = load_model_kit(tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "model"))
    assert kit.text_model is not None
    check_shards(kit.text_model, kit.config, 2)
    with pytest.raises(UnsupportedCheckpoint, match="3 ranks cannot share this model"):
        check_shards(kit.text_model, kit.config, 3)
    with pytest.raises(UnsupportedCheckpoint, match="cannot be held by several ranks"):
        check_shards(SimpleNamespace(), kit.config, 2)  # type: ignore[arg-type]


def test_what_ranks_do_not_do_is_refused_by_name() -> None:
    check_ranked(draft=None, parallel=False)
    with pytest.raises(OptionError, match="cache_dir is not there"):
        check_ranked(cache_dir="folder")


def test_ranks_that_were_started_otherwise() -> None:
    class Two:
        def gather(self, facts: Any) -> list[Any]:
            return [{"mlx": "1", "the checkpoint": "a"}, facts]

    check_same(Two(), {"mlx": "1", "the checkpoint": "a"})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="rank 1 has mlx '2', rank 0 has '1'"):
        check_same(Two(), {"mlx": "2", "the checkpoint": "a"})  # type: ignore[arg-type]


def test_a_watch_tells_who_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SECONDS", 0.01)
    told = threading.Event()
    resting = watch.Watch(lambda _: pytest.fail("nothing was waited for"))
    waiting = watch.Watch(lambda _: told.set())
    waiting.beat()
    assert told.wait(600)
    resting.end()
    resting._thread.join(600)
