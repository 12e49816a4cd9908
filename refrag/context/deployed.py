"""Keeps what an export found out from a checkpoint's tokenizers, so that a server reads text without transformers.

frame.json                the frame of every prompt, and the size of the decoder's vocabulary
decoder/tokenizer.json    as transformers had read it, with what other files of the tokenizer add
decoder/text.json         its special tokens, and how it writes text
encoder/                  the same two, only if the encoder has a tokenizer of its own
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from refrag.context.frame import Frame
from refrag.context.tokenizer import TextTokenizer
from refrag.errors import CheckpointError

FRAME_FILE, TEXT_FILE, TOKENIZER_FILE = "frame.json", "text.json", "tokenizer.json"
DECODER, ENCODER = "decoder", "encoder"


@dataclass(frozen=True)
class DeployedFrame:
    """The frame of a deployed checkpoint's prompts, and the rows of its decoder's embedding matrix.

    `load` raises CheckpointError for a file that is missing, as after the export of an older release, or is another.
    """

    frame: Frame
    vocab_size: int

    def save(self, folder: Path) -> None:
        (folder / FRAME_FILE).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "DeployedFrame":
        path = folder / FRAME_FILE
        try:
            values = json.loads(path.read_text())
            return cls(Frame(**values["frame"]), int(values["vocab_size"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from None


@dataclass(frozen=True)
class DeployedTokenizers:
    """The tokenizers of a deployed checkpoint. encoder: None if the encoder reads the decoder's tokens.

    `load` raises CheckpointError as DeployedFrame's does.
    """

    decoder: TextTokenizer
    encoder: TextTokenizer | None = None

    def save(self, folder: Path) -> None:
        _save(self.decoder, folder / DECODER)
        if self.encoder is not None:
            _save(self.encoder, folder / ENCODER)

    @classmethod
    def load(cls, folder: Path) -> "DeployedTokenizers":
        has_own = (folder / ENCODER).is_dir()
        return cls(_load(folder / DECODER), _load(folder / ENCODER) if has_own else None)


def _save(tokenizer: TextTokenizer, folder: Path) -> None:
    folder.mkdir()
    tokenizer.backend.no_truncation()
    tokenizer.backend.no_padding()
    (folder / TOKENIZER_FILE).write_text(tokenizer.backend.to_str())
    values = {"pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id, "cleans_up": tokenizer.cleans_up}
    (folder / TEXT_FILE).write_text(json.dumps(values) + "\n")


def _load(folder: Path) -> TextTokenizer:
    try:
        values: Any = json.loads((folder / TEXT_FILE).read_text())
        return TextTokenizer(Tokenizer.from_file(str(folder / TOKENIZER_FILE)), **values)
    except Exception as error:  # tokenizers raises Exception itself
        raise _unreadable(folder, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error!r}; run the export again")
