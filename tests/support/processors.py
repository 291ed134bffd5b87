"""transformers' own processors of checkpoint folders, where it withholds some of their parts."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from vision_add_ons.testing.drawn_conversations import images_of


class Built:
    """A processor of this class with a folder's tokenizer and chat template.

    Its `from_pretrained` would want torchvision, for a faster image processor or for videos.
    """

    def __init__(self, kind: Any, images: Any, folder: Path, **settings: Any) -> None:
        # As `from_pretrained` has it: PixtralProcessor takes this class whatever the folder says.
        pixtral = "PixtralProcessor" in kind.__name__
        self.tokenizer = (TokenizersBackend if pixtral else AutoTokenizer).from_pretrained(folder)
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self.whole = kind(images, self.tokenizer, chat_template=template, **settings)

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        if all(message["content"] for message in messages):
            return self.whole.apply_chat_template(messages, **options)
        # In one go it would show an empty text to the template as an empty list.
        text = self.whole.apply_chat_template(messages, add_generation_prompt=True)
        begun = text.startswith(self.tokenizer.bos_token)
        images = images_of(messages) or None
        return self.whole(text=text, images=images, add_special_tokens=not begun)["input_ids"]
