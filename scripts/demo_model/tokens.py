"""Chats as token ids, exactly as the engine renders them for SmolLM2."""

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from scripts.demo_model.questions import Turn

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OTHER_SYSTEMS = (
    "You answer briefly.",
    "You are a helpful assistant.",
    "You describe pictures.",
    "Answer in a few words.",
    "You are an assistant that can see.",
)
END = 2  # <|im_end|>, which ends an answer


class ChatTokens:
    """Ids of the parts of a ChatML chat. A picture's rows stand at the start of the user's text."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.ids = lru_cache(maxsize=300_000)(self._ids)
        self.before_user = self._ids("<|im_start|>user\n")
        self.before_answer = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.after_answer = self._ids("\n")

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def system(self, text: str = SYSTEM) -> list[int]:
        return self.ids(f"<|im_start|>system\n{text}<|im_end|>\n")

    def answer(self, turn: Turn) -> list[int]:
        """Ids of the answer and its end."""
        if not turn.spelled:
            return [*self.ids(turn.answer), END]
        before, _, after = turn.answer.partition(turn.spelled)
        letters = [self.ids(letter)[0] for letter in turn.spelled]
        return [*self.ids(before), *letters, *self.ids(after), END]
