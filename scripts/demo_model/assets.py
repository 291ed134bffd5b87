"""What scenes are drawn from: emoji, clip art, fonts, words and handwritten digits.

`python -m scripts.demo_model.assets FOLDER` gathers them once, from Debian packages (README.md
lists them) and scikit-learn, into one folder, all that drawing needs from then on.
"""

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = Path(__file__).with_name("classes.tsv")
CLIP_ART = Path(__file__).with_name("clipart.tsv")
CLIP_ART_FILES = Path("/usr/share/openclipart/png")
FONTS = Path("/usr/share/fonts")
DICTIONARY = Path("/usr/share/dict/words")
EMOJI_FONT = "NotoColorEmoji"
SPRITE = 112  # pixels; the emoji font holds bitmaps of 136 x 128

TRAINED_FONTS = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansCondensed",
    "LiberationSans-Regular",
    "LiberationSans-Bold",
    "LiberationSans-Italic",
    "LiberationSerif-Regular",
    "LiberationSerif-Bold",
    "LiberationSerif-Italic",
    "LiberationMono-Regular",
    "LiberationMono-Bold",
    "LiberationSansNarrow-Bold",
    "FreeSans",
    "FreeSansBold",
    "FreeSerifBold",
    "FreeMonoBold",
    "FreeSerifItalic",
    "Lato-Regular",
    "Lato-Bold",
    "Lato-Black",
    "Lato-Italic",
    "Roboto-Regular",
    "Roboto-Bold",
    "RobotoCondensed-Regular",
    "OpenSans-Regular",
    "OpenSans-Bold",
    "Quicksand-Medium",
    "Quicksand-Bold",
    "ComicNeue-Regular",
    "ComicNeue-Bold",
    "EBGaramond12-Regular",
    "EBGaramond12-Bold",
    "LinLibertine_R",
    "LinLibertine_RB",
]
# Whole families that training never sees.
HELD_OUT_FONTS = [
    "Carlito-Regular",
    "Carlito-Bold",
    "Cantarell-Regular",
    "Cantarell-Bold",
    "LinBiolinum_R",
    "LinBiolinum_RB",
    "Inconsolata",
]


def is_held_out(text: str) -> bool:
    """One word in eight, by its hash, so that it is the same one everywhere."""
    return hashlib.sha256(text.encode()).digest()[0] < 32


@dataclass(eq=False)
class Assets:
    """`sprites[i]` is the drawing called `names[i]`, RGBA, trimmed and centred.

    The emoji come first, then the clip art.
    """

    folder: Path
    names: list[str]
    sprites: np.ndarray
    digits: np.ndarray
    digit_labels: np.ndarray
    words: list[str]
    neighbours: np.ndarray
    means: np.ndarray
    _sprites: dict[int, Image.Image] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Assets":
        with np.load(folder / "assets.npz") as saved:
            arrays = {name: saved[name] for name in saved.files}
        words = (folder / "words.txt").read_text().split()
        names = (folder / "names.txt").read_text().splitlines()
        return cls(folder, names, words=words, **arrays)

    def sprite(self, index: int) -> Image.Image:
        if index not in self._sprites:
            self._sprites[index] = Image.fromarray(self.sprites[index])
        return self._sprites[index]

    @cached_property
    def trained_words(self) -> list[str]:
        return [word for word in self.words if not is_held_out(word)]

    @cached_property
    def held_out_words(self) -> list[str]:
        return [word for word in self.words if 3 <= len(word) <= 6 and is_held_out(word)]

    @cached_property
    def digit_masks(self) -> list[Image.Image]:
        """Handwritten digits as ink, white on black; the last 300 are held out."""
        scaled = (self.digits.astype(np.float32) * (255 / 16)).clip(0, 255).astype(np.uint8)
        grown = [np.pad(digit, 1) for digit in scaled]
        return [Image.fromarray(g).resize((60, 60), Image.Resampling.BICUBIC) for g in grown]

    @lru_cache(maxsize=2048)  # noqa: B019 - one instance a process, for its whole life
    def font(self, name: str, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(self.folder / "fonts" / name), size)

    @cached_property
    def fonts(self) -> dict[bool, list[str]]:
        """File names of the fonts: of the held-out ones, and of those to train with."""
        files = {path.stem: path.name for path in sorted((self.folder / "fonts").iterdir())}
        return {
            True: [files[stem] for stem in HELD_OUT_FONTS if stem in files],
            False: [files[stem] for stem in TRAINED_FONTS if stem in files],
        }


def clip_art() -> list[tuple[str, str]]:
    """Of each piece of clip art its file, below CLIP_ART_FILES, and its name."""
    return _table(CLIP_ART)


def gather(
    folder: Path,
    fonts: Sequence[str] = (*TRAINED_FONTS, *HELD_OUT_FONTS),
    clips: Sequence[tuple[str, str]] | None = None,
) -> None:
    """`clips`: the clip art, as `clip_art` gives it; all of it by default.

    Raises FileNotFoundError naming the first font, picture or list of words that is not installed.
    """
    (folder / "fonts").mkdir(parents=True, exist_ok=True)
    found = {path.stem: path for path in sorted(FONTS.rglob("*.[ot]tf"))}
    for stem in (*fonts, EMOJI_FONT):
        if stem not in found:
            raise FileNotFoundError(f"the font {stem} is not installed; see README.md")
    for stem in fonts:
        shutil.copy(found[stem], folder / "fonts")

    emoji, clips = _table(CLASSES), clip_art() if clips is None else clips
    font = ImageFont.truetype(str(found[EMOJI_FONT]), 109)
    drawings = [_emoji(chr(int(code, 16)), font) for code, _ in emoji]
    drawings += [_clip(CLIP_ART_FILES / file) for file, _ in clips]
    sprites = np.stack([_centred(drawing) for drawing in drawings])
    (folder / "names.txt").write_text("\n".join(name for _, name in (*emoji, *clips)))

    words = sorted({word for word in DICTIONARY.read_text().split() if _is_plain(word)})
    (folder / "words.txt").write_text("\n".join(words))

    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez_compressed(
        folder / "assets.npz",
        sprites=sprites,
        digits=digits.images.astype(np.uint8),
        digit_labels=digits.target.astype(np.uint8),
        neighbours=_neighbours(sprites),
        means=_means(sprites),
    )


def _is_plain(word: str) -> bool:
    return 3 <= len(word) <= 8 and word.isascii() and word.isalpha() and word.islower()


def _table(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(source, name) for source, name in rows]


def _emoji(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((10, 10), character, font=font, embedded_color=True)
    return image


def _clip(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: install openclipart-png") from None


def _centred(image: Image.Image) -> np.ndarray:
    image = image.crop(image.getbbox())
    image.thumbnail((SPRITE, SPRITE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SPRITE, SPRITE))
    square.paste(image, ((SPRITE - image.width) // 2, (SPRITE - image.height) // 2))
    return np.asarray(square)


def _neighbours(sprites: np.ndarray, count: int = 8) -> np.ndarray:
    """The most similar other classes of each: hard negatives."""
    small = [
        Image.alpha_composite(Image.new("RGBA", (SPRITE, SPRITE), "gray"), Image.fromarray(s))
        .convert("RGB")
        .resize((20, 20))
        for s in sprites
    ]
    features = np.stack([np.asarray(s, np.float32).ravel() / 255 for s in small])
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :count].astype(np.int16)


def _means(sprites: np.ndarray) -> np.ndarray:
    """The mean colour of each sprite, 0 to 255, so that backgrounds can differ from it."""
    alpha = sprites[..., 3:].astype(np.float32)
    return (sprites[..., :3] * alpha).sum((1, 2)) / alpha.sum((1, 2))


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
