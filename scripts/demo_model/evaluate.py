"""Measuring in PyTorch: how often each skill's answer is exactly right.

An answer that greedy decoding writes token by token is right just when every token is the most
likely one after the right ones before it, so one pass tells.
"""

import argparse
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scripts.demo_model import texts
from scripts.demo_model.assets import Assets
from scripts.demo_model.batches import ROWS, square
from scripts.demo_model.data import SKILLS, Sample, held_out
from scripts.demo_model.decoder import Decoder
from scripts.demo_model.tokens import ChatTokens
from scripts.demo_model.towers import Eyes, EyesShape, load_weights

PART = 50  # samples of one seed


@dataclass
class Encoded:
    pixels: np.ndarray
    tokens: list[int]  # with zeros where the picture's rows stand
    first_row: int
    answer: list[int]


def encode(sample: Sample, tokens: ChatTokens) -> Encoded:
    """The prompt up to the last answer."""
    ids = tokens.system()
    first = len(ids) + len(tokens.before_user)
    for number, turn in enumerate(sample.turns):
        if number:
            ids = ids + tokens.answer(sample.turns[number - 1]) + tokens.after_answer
        ids = ids + tokens.before_user + [0] * (0 if number else ROWS)
        ids = ids + tokens.ids(turn.question) + tokens.before_answer
    return Encoded(square(sample.image), ids, first, tokens.answer(sample.turns[-1]))


def _part(job: tuple[str, int, str, str]) -> list[Encoded]:
    skill, seed, assets, tokenizer = job
    tokens = ChatTokens(Path(tokenizer))
    return [encode(sample, tokens) for sample in held_out(skill, PART, seed, _assets(assets))]


_LOADED: dict[str, Assets] = {}


def _assets(folder: str) -> Assets:
    if folder not in _LOADED:
        _LOADED[folder] = Assets.load(Path(folder))
    return _LOADED[folder]


def drawn(
    count: int, assets: Path, tokenizer: Path, workers: int, seed: int = 0
) -> dict[str, list[Encoded]]:
    """`count` samples of each skill, and of "swap"."""
    jobs = [
        (skill, 1000 * seed + part, str(assets), str(tokenizer))
        for skill in (*SKILLS, "swap")
        for part in range(-(-count // PART))
    ]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        parts = pool.map(_part, jobs, chunksize=1)
    samples: dict[str, list[Encoded]] = {}
    for (skill, *_), part in zip(jobs, parts, strict=True):
        samples.setdefault(skill, []).extend(part)
    return {skill: kept[:count] for skill, kept in samples.items()}


@torch.no_grad()
def right(
    eyes: Eyes, decoder: Decoder, samples: list[Encoded], batch: int = 100, half: bool = True
) -> np.ndarray:
    """For each sample, whether the answer is right. `half` computes in bfloat16."""
    device = decoder.embedding.device
    results = []
    for start in range(0, len(samples), batch):
        some = samples[start : start + batch]
        longest = max(len(s.tokens) + len(s.answer) for s in some)
        tokens = torch.zeros(len(some), longest, dtype=torch.long)
        targets = torch.full((len(some), longest), -1)
        for i, s in enumerate(some):
            end = len(s.tokens) + len(s.answer)
            tokens[i, :end] = torch.tensor(s.tokens + s.answer)
            targets[i, len(s.tokens) - 1 : end - 1] = torch.tensor(s.answer)
        pixels = torch.from_numpy(np.stack([s.pixels for s in some])).to(device).float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            rows = eyes(pixels)
        x = decoder.embed(tokens.to(device))
        for i, s in enumerate(some):
            x[i, s.first_row : s.first_row + ROWS] = rows[i].to(x.dtype)
        asked = targets >= 0
        said = decoder.logits(decoder(x)[asked.to(device)]).argmax(-1).cpu()
        wrong = torch.zeros(len(some), dtype=torch.long)
        where = asked.nonzero()[:, 0]
        wrong.index_add_(0, where, (said != targets[asked]).long())
        results.append((wrong == 0).numpy())
    return np.concatenate(results)


def table(
    eyes: Eyes, decoder: Decoder, samples: dict[str, list[Encoded]], half: bool = True
) -> dict[str, float]:
    """Share of right answers of each skill; of "swap", of neighbours that are both right."""
    shares = {}
    for skill, some in samples.items():
        good = right(eyes, decoder, some, half=half)
        if skill == "swap":
            good = good[1:] & good[:-1]
        shares[skill] = round(float(good.mean()), 4)
    return shares


def main() -> None:
    """Measure trained weights as they ship: rounded to float16, computed in float32."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("weights", type=Path, help="weights.safetensors of a training")
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--decoder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    tokenizer = options.decoder / "tokenizer.json"
    samples = drawn(options.samples, options.assets, tokenizer, options.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    eyes, decoder = Eyes(EyesShape()).to(device), Decoder(options.decoder).to(device)
    load_weights(options.weights, eyes, None, decoder)
    shares = {"samples": options.samples, **table(eyes, decoder, samples, half=False)}
    topics = texts.help_topics(ChatTokens(tokenizer), 512)
    for name, adapted in (("perplexity", True), ("perplexity_before", False)):
        shares[name] = round(texts.perplexity(decoder, topics, adapted), 4)
    print(json.dumps(shares, indent=1))
    if options.out:
        options.out.write_text(json.dumps(shares, indent=1) + "\n")


if __name__ == "__main__":
    main()
