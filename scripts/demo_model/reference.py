"""A few pictures and what the trained model makes of them, to compare an engine with.

    python -m scripts.demo_model.reference EXPORTED --assets A --decoder D --out FOLDER

`reference.json` lists the samples: picture file, chat, prompt ids (zeros where the rows stand),
the first row's position. `reference.safetensors` holds the last position's logits, [n, vocabulary]
in float32, of the exported float16 weights computed in float32.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from scripts.demo_model.assets import Assets
from scripts.demo_model.batches import ROWS
from scripts.demo_model.data import held_out
from scripts.demo_model.decoder import Decoder
from scripts.demo_model.evaluate import encode
from scripts.demo_model.export import PARTS
from scripts.demo_model.tokens import ChatTokens
from scripts.demo_model.towers import Eyes, EyesShape

SKILLS = ("name", "position", "count", "word", "yes_no", "follow_up")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exported", type=Path)
    for argument in ("--assets", "--decoder", "--out"):
        parser.add_argument(argument, type=Path, required=True)
    options = parser.parse_args()
    eyes, decoder = Eyes(EyesShape()), Decoder(options.decoder)
    load_exported(options.exported, eyes, decoder)
    tokens = ChatTokens(options.decoder / "tokenizer.json")
    assets = Assets.load(options.assets)
    options.out.mkdir(parents=True, exist_ok=True)
    listed, logits = [], []
    for skill in SKILLS:
        (sample,) = held_out(skill, 1, 4242, assets)
        encoded = encode(sample, tokens)
        x = decoder.embed(torch.tensor([encoded.tokens]))
        rows = eyes(torch.from_numpy(encoded.pixels.copy())[None].float() / 255)
        x[:, encoded.first_row : encoded.first_row + ROWS] = rows
        logits.append(decoder.logits(decoder(x)[0, -1]))
        picture = f"{skill}.png"
        sample.image.save(options.out / picture)
        listed.append(
            {
                "picture": picture,
                "turns": [[turn.question, turn.answer] for turn in sample.turns],
                "prompt": encoded.tokens,
                "first_row": encoded.first_row,
                "rows": ROWS,
                "next": int(logits[-1].argmax()),
                "right": encoded.answer[0],
            }
        )
    (options.out / "reference.json").write_text(json.dumps(listed, indent=1) + "\n")
    save_file({"logits": torch.stack(logits)}, options.out / "reference.safetensors")


def load_exported(folder: Path, eyes: Eyes, decoder: Decoder) -> None:
    """What `export` wrote, in float32 again."""
    vision = load_file(folder / "vision.safetensors")
    named = {
        old.removeprefix("eyes.") + name.removeprefix(new): tensor.float()
        for name, tensor in vision.items()
        for old, new in PARTS.items()
        if name.startswith(new)
    }
    known = eyes.state_dict()
    eyes.load_state_dict({name: tensor for name, tensor in named.items() if name in known})
    decoder.load_adapters(load_file(folder / "adapters.safetensors"))


if __name__ == "__main__":
    main()
