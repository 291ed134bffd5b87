"""Training in two stages: `towers` teach what each patch shows, `chat` to answer about pictures.

    python -m scripts.demo_model.train towers --assets A --decoder D --out O --seconds 300
    python -m scripts.demo_model.train chat --assets A --decoder D --out O --seconds 1200

A stage goes on from O/state.pt where that exists, so it may be run in several pieces: `--plan` is
then the length of all pieces together, which the learning rates follow. With `--steps` in place of
`--seconds`, the schedule counts steps and not time, and the outcome depends on the seed alone.
"""

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from scripts.demo_model import evaluate, texts
from scripts.demo_model.assets import Assets
from scripts.demo_model.batches import Arrays, Batches, BatchShape, kinds_count
from scripts.demo_model.decoder import Decoder
from scripts.demo_model.progress import Log
from scripts.demo_model.scenes import LETTERS
from scripts.demo_model.tokens import ChatTokens
from scripts.demo_model.towers import Eyes, EyesShape, PatchHeads, load_weights


class Training:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.chat = options.stage == "chat"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.assets = Assets.load(Path(options.assets))
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        self.eyes = Eyes(EyesShape()).to(self.device)
        width = self.eyes.projector.fc1.in_features
        kinds, letters = kinds_count(self.assets), 1 + len(LETTERS)
        self.heads = PatchHeads(width, kinds, letters).to(self.device)
        self.decoder: Decoder | None = None
        groups: list[dict[str, Any]] = [
            {"params": [*self.eyes.dino.parameters(), *self.eyes.siglip.parameters()]},
            {"params": list(self.heads.parameters())},
        ]
        self.saved = time.monotonic()
        rates = [options.tower_rate, options.tower_rate]
        if self.chat:
            self.decoder = Decoder(Path(options.decoder), options.rank).to(self.device)
            groups.append({"params": list(self.eyes.projector.parameters())})
            groups.append({"params": list(self.decoder.lora.parameters())})
            rates += [options.projector_rate, options.lora_rate]
        self.rates = rates
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), weight_decay=0.02, fused=fused
        )
        for group in groups[3:]:
            group["weight_decay"] = 0.0
        self.step, self.spent, self.seen = 0, 0.0, 0
        self.log = Log(self.out)
        self._resume()
        if fused:
            for block in (*self.eyes.dino.blocks, *self.eyes.siglip.blocks):
                block.compile(dynamic=False)
            if self.decoder:
                self.decoder.compile()
                self.decoder.dtype = torch.bfloat16

    # --- state ----------------------------------------------------------------------------

    def _resume(self) -> None:
        file = self.out / "state.pt"
        if not file.exists():
            return
        state = torch.load(file, map_location=self.device, weights_only=False)
        self.eyes.load_state_dict(state["eyes"])
        self.heads.load_state_dict(state["heads"])
        if state["stage"] != self.options.stage:
            return
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent, self.seen = state["step"], state["spent"], state["seen"]
        if self.decoder:
            self.decoder.load_adapters(state["lora"])

    def save(self) -> None:
        state: dict[str, Any] = {
            "stage": self.options.stage,
            "eyes": self.eyes.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lora": self.decoder.adapters() if self.decoder else {},
            **{"step": self.step, "spent": self.spent, "seen": self.seen},
        }
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")
        self.save_weights()

    def save_weights(self) -> None:
        """What export needs, in float16; the heads too, from which training can go on."""
        parts = {f"eyes.{n}": w for n, w in self.eyes.state_dict().items()}
        parts |= {f"heads.{n}": w for n, w in self.heads.state_dict().items()}
        if self.decoder:
            parts |= {f"lora.{n}": w for n, w in self.decoder.adapters().items()}
        halves = {name: w.half().contiguous().cpu() for name, w in parts.items()}
        save_file(halves, self.out / "weights.tmp")
        os.replace(self.out / "weights.tmp", self.out / "weights.safetensors")

    def load_weights(self, file: Path) -> None:
        load_weights(file, self.eyes, self.heads, self.decoder)

    # --- the loop -------------------------------------------------------------------------

    def run(self) -> None:
        options = self.options
        tokenizer = Path(options.decoder) / "tokenizer.json" if self.chat else None
        shape = BatchShape(options.pictures, options.sequences if self.chat else 0)
        began = time.monotonic()
        plan = options.plan or options.steps or options.seconds
        first, known = self.step, self.spent
        # Another piece of the same stage must not see the first piece's pictures again.
        start = self.step + (1_000_000 if self.chat else 0)
        with Batches(
            Path(options.assets), tokenizer, shape, options.seed, options.workers, start
        ) as batches:
            plain = self._plain_texts(shape.length) if self.chat else None
            while True:
                elapsed = time.monotonic() - began
                done = self.step if options.steps else known + elapsed
                if done >= plan or (
                    self.step - first >= options.steps
                    if options.steps
                    else elapsed >= options.seconds
                ):
                    break
                waited = time.monotonic()
                batch = next(batches)
                waited = time.monotonic() - waited
                self._rates(done / plan)
                if time.monotonic() - self.saved > options.save_every:
                    self.saved = time.monotonic()
                    self.save_weights()
                    self.log.save()
                losses = self._update(batch, plain)
                self.step, self.seen = self.step + 1, self.seen + shape.pictures
                if self.step % options.every == 0 or self.step == first + 1:
                    values = {name: round(loss.item(), 4) for name, loss in losses.items()}
                    seconds = round(known + time.monotonic() - began, 1)
                    speed = round((self.step - first) * shape.pictures / (seconds - known + 1e-3))
                    self.log.add(
                        stage=options.stage,
                        **{"step": self.step, "seconds": seconds, "pictures_a_second": speed},
                        **{"seen": self.seen, "waited": round(waited, 3), **values},
                    )
            self.spent = known + time.monotonic() - began
        self.save()
        self.log.save()

    def _rates(self, progress: float) -> None:
        """Warm up, then down along a cosine; the towers' stage ends at a third of its rate."""
        warm = min(1.0, (self.step + 1) / self.options.warm_up)
        low = 0.01 if self.chat else 0.33
        level = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * level * warm

    def _update(self, batch: Arrays, plain: Tensor | None) -> dict[str, Tensor]:
        moved = {
            name: torch.from_numpy(array).to(self.device)
            for name, array in batch.items()
            if array.size
        }
        pixels = moved["pixels"].float() / 255
        # A little noise, as cameras and compression leave it.
        noise = torch.rand(len(pixels), 1, 1, 1, device=self.device).square() * 0.04
        pixels = pixels + noise * torch.randn_like(pixels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            features = self.eyes.features(pixels)
            kinds, letters = self.heads.loss(
                features, moved["kinds"].long(), moved["letters"].long()
            )
            losses = {"kinds": kinds, "letters": letters}
            total = kinds + letters
            if self.decoder is not None:
                rows = self.eyes.projector(features)
        if self.decoder is not None:
            assert plain is not None
            answers, kept = self._chats(rows, moved, plain)
            losses |= {"answers": answers, "kept": kept}
            total = answers + self.options.keep * kept + self.options.patches * total
        total.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        losses["gradient"] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def _chats(
        self, rows: Tensor, batch: dict[str, Tensor], plain: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss on answers, and how far text without pictures has drifted."""
        decoder = self.decoder
        assert decoder is not None
        chosen = torch.randint(len(plain), (self.options.texts,), device=self.device)
        text = decoder.embed(plain[chosen])
        slots = batch["slots"].long()
        shown = slots >= 0
        seen = rows.flatten(0, 1).to(text.dtype).index_select(0, slots[shown])
        chats = decoder.embed(batch["tokens"].long())
        chats = chats.masked_scatter(shown[..., None], seen)
        hidden = decoder(torch.cat([chats, text]))
        targets = batch["targets"].long()
        asked = targets >= 0
        said = decoder.logits(hidden[: len(chats)][asked]).float()
        answers = F.cross_entropy(said, targets[asked])
        with torch.no_grad():
            before = decoder.logits(decoder(text, adapted=False))
        return answers, texts.divergence(decoder.logits(hidden[len(chats) :]), before)

    def _plain_texts(self, length: int) -> Tensor:
        """Kept in a file, since making chats up takes a while."""
        file = self.out / "texts.npy"
        if not file.exists():
            assert self.decoder is not None
            tokens = ChatTokens(Path(self.options.decoder) / "tokenizer.json")
            made = texts.own_chats(
                self.decoder, tokens, self.options.chats, length, self.options.seed
            )
            np.save(file, np.concatenate([made, texts.docstrings(tokens, length)]))
        return torch.from_numpy(np.load(file)).long().to(self.device)

    # --- measuring ------------------------------------------------------------------------

    def measure(self, count: int) -> None:
        assert self.decoder is not None
        self.decoder.run_plainly()
        for block in (*self.eyes.dino.blocks, *self.eyes.siglip.blocks):
            block._compiled_call_impl = None
        tokenizer = Path(self.options.decoder) / "tokenizer.json"
        samples = evaluate.drawn(count, Path(self.options.assets), tokenizer, self.options.workers)
        shares: dict[str, float] = evaluate.table(
            self.eyes, self.decoder, samples, half=self.device.type == "cuda"
        )
        topics = texts.help_topics(ChatTokens(tokenizer), 512, 8 if self.options.smoke else 100)
        for name, adapted in (("perplexity", True), ("perplexity_before", False)):
            shares[name] = round(texts.perplexity(self.decoder, topics, adapted), 4)
        self.log.measured(samples=count, seen=self.seen, step=self.step, **shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("towers", "chat"))
    parser.add_argument("--assets", required=True)
    parser.add_argument("--decoder", help="folder of the text model, for the stage chat")
    parser.add_argument("--out", required=True)
    parser.add_argument("--from-weights", help="begin with the weights of this file")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--plan", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=160)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tower-rate", type=float, default=1.2e-3)
    parser.add_argument("--projector-rate", type=float, default=1e-3)
    parser.add_argument("--lora-rate", type=float, default=8e-4)
    parser.add_argument("--warm-up", type=int, default=200, help="steps")
    parser.add_argument("--keep", type=float, default=2.0, help="weight of keeping to plain text")
    parser.add_argument("--patches", type=float, default=0.3, help="weight of the patch heads")
    parser.add_argument("--texts", type=int, default=8, help="texts without pictures, a step")
    parser.add_argument("--chats", type=int, default=1024)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--save-every", type=float, default=240, help="seconds")
    parser.add_argument("--measure", type=int, default=0, help="samples a skill, at the end")
    parser.add_argument("--smoke", action="store_true", help="a minute on a CPU: does it run?")
    options = parser.parse_args()
    if options.smoke:
        options.steps, options.pictures, options.sequences = 4, 24, 3
        options.workers, options.chats, options.every, options.measure = 1, 1, 1, 10
        options.texts = 1
    training = Training(options)
    if options.from_weights and not training.step:
        training.load_weights(Path(options.from_weights))
    training.run()
    if options.measure and training.chat:
        training.measure(options.measure)


if __name__ == "__main__":
    main()
