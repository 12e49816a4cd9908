"""A tokenizer as prompts need it, on the `tokenizers` library alone: what serves text starts without transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What transformers takes out of decoded text, in this order, if a tokenizer's config asks for it.
CLEANED_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)

CLEANS_UP_BYTE_PAIRS = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@dataclass(frozen=True)
class TextTokenizer:
    """Turns text into token ids and back, as transformers' tokenizer over the same `backend` does.

    pad_id, eos_id: None where the tokenizer has no such token. cleans_up: whether decoded text loses the spaces in
    front of punctuation.
    """

    backend: Tokenizer
    pad_id: int | None = None
    eos_id: int | None = None
    cleans_up: bool = False

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> "TextTokenizer":
        backend = tokenizer.backend_tokenizer
        # After byte pairs, where these spaces belong to the text, transformers does so only if asked by this name.
        is_left = type(backend.model).__name__ == "BPE" and not getattr(tokenizer, CLEANS_UP_BYTE_PAIRS, False)
        cleans_up = bool(tokenizer.clean_up_tokenization_spaces) and not is_left
        return cls(backend, tokenizer.pad_token_id, tokenizer.eos_token_id, cleans_up)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        self._read_all_as_text()
        # Neither masks nor offsets are read, which would take a third of the time.
        return [read.ids for read in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, texts: Sequence[str], special_tokens: bool) -> list[Encoding]:
        """Return ids and offsets of each text; with the special tokens that a model reads around it, or without."""
        self._read_all_as_text()
        return self.backend.encode_batch(list(texts), add_special_tokens=special_tokens)

    def decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """Return the text of each row of ids."""
        texts = self.backend.decode_batch([list(row) for row in rows], skip_special_tokens=skip_special_tokens)
        return [_clean_up(text) for text in texts] if self.cleans_up else texts

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """`backend` under the name that transformers' tokenizers have for it."""
        return self.backend

    @property
    def size(self) -> int:
        """Return the number of tokens, added ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def _read_all_as_text(self) -> None:
        # A caller's text may spell a special token. It must stay text, or a passage could end the prompt.
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()


def _clean_up(text: str) -> str:
    for spaced, joined in CLEANED_UP:
        text = text.replace(spaced, joined)
    return text
