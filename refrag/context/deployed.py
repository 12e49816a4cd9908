"""Keeps what an export found out from a checkpoint's tokenizers, so that a server reads text without transformers.

text.json                 the frame of every prompt, the sizes of the vocabulary, special tokens
decoder/tokenizer.json    as transformers had read it, with what other files of the tokenizer add
encoder/tokenizer.json    only if the encoder has a tokenizer of its own
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from refrag.context.frame import Frame
from refrag.context.tokenizer import TextTokenizer
from refrag.errors import CheckpointError

TEXT_FILE, TOKENIZER_FILE = "text.json", "tokenizer.json"


@dataclass(frozen=True)
class DeployedText:
    """Frame and tokenizers of a deployed checkpoint.

    vocab_size: rows of the decoder's embedding matrix. encoder: None if the encoder reads the decoder's tokens.
    """

    frame: Frame
    vocab_size: int
    decoder: TextTokenizer
    encoder: TextTokenizer | None = None

    def save(self, folder: Path) -> None:
        """Write text.json, and each tokenizer into its part's folder, which may exist."""
        parts = {"decoder": self.decoder, "encoder": self.encoder}
        values: dict[str, Any] = {"frame": asdict(self.frame), "vocab_size": self.vocab_size}
        for part, tokenizer in parts.items():
            values[part] = None if tokenizer is None else _save_tokenizer(tokenizer, folder / part)
        (folder / TEXT_FILE).write_text(json.dumps(values) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "DeployedText":
        """Return what `save` wrote.

        Raises CheckpointError if a file is missing, as after the export of an older release, or cannot be read.
        """
        try:
            values = json.loads((folder / TEXT_FILE).read_text())
            decoder, encoder = (_load_tokenizer(values[part], folder / part) for part in ("decoder", "encoder"))
            assert decoder is not None
            return cls(Frame(**values["frame"]), int(values["vocab_size"]), decoder, encoder)
        except Exception as error:  # tokenizers raises Exception itself
            raise CheckpointError(f"{folder / TEXT_FILE} cannot be read: {error!r}; run the export again") from None


def _save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    tokenizer.backend.no_truncation()
    tokenizer.backend.no_padding()
    (folder / TOKENIZER_FILE).write_text(tokenizer.backend.to_str())
    return {"pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id, "cleans_up": tokenizer.cleans_up}


def _load_tokenizer(values: dict[str, Any] | None, folder: Path) -> TextTokenizer | None:
    if values is None:
        return None
    return TextTokenizer(Tokenizer.from_file(str(folder / TOKENIZER_FILE)), **values)
