"""Turns token ids into text that can be sent: whole UTF-8 characters, and nothing that may belong to a stop word."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer: `push` takes tokens and returns the text that is now certain.

    tokenizer: one of transformers' or a TextTokenizer. stopped: true once a stop word has appeared.
    """

    def __init__(self, tokenizer: Any, stop_words: Sequence[str]) -> None:
        self.tokenizer = tokenizer.backend_tokenizer
        self.decode = DecodeStream(skip_special_tokens=True)
        # Tokens whose text is not yet certain.
        self.pending: list[int] = []
        self.stop_words = stop_words
        self.held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Return the text that can be sent after this token; "" while a character or a stop word is incomplete."""
        text = self.held + self._decode(token_id)
        if found := [text.index(word) for word in self.stop_words if word in text]:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = self._possible_stop(text)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back in case it became a stop word. An incomplete character is never sent."""
        text, self.held = self.held, ""
        return text

    def _decode(self, token_id: int) -> str:
        """Return the text that is certain with this token, "" while there is none."""
        self.pending.append(token_id)
        try:
            text = self.decode.step(self.tokenizer, token_id) or ""
        except Exception:  # tokenizers raises no narrower one
            # A stray byte makes the bytes before it invalid too (ByteFallback). Their text is sent, so what came after
            # it is read anew.
            self.decode = DecodeStream(skip_special_tokens=True)
            text = "".join(self.decode.step(self.tokenizer, pending) or "" for pending in self.pending)
        if text:
            self.pending = []
        return text

    def _possible_stop(self, text: str) -> int:
        """Return the length of the longest end of the text that is the beginning of a stop word."""
        lengths = range(min(len(text), max(map(len, self.stop_words), default=1) - 1), 0, -1)
        return next((n for n in lengths if any(word.startswith(text[-n:]) for word in self.stop_words)), 0)
