"""Makes the keys of stored vectors, from the encoder that made a vector and from its chunk's tokens.

    key = fingerprint (16 bytes) + digest of the chunk's token ids (16 bytes)

The fingerprint covers everything that could give the same tokens another vector. So after a change to a document only
its changed chunks have new keys; after a change to the encoder all chunks have.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refrag.config import RefragConfig
from refrag.errors import CheckpointError

# C chunks, K tokens per chunk

FINGERPRINT_BYTES = DIGEST_BYTES = 16
IDENTITY_FILE = "encoder.json"


def fingerprint_encoder(
    encoder: Sequence[Path], tokenizer: Sequence[Path], config: RefragConfig, arithmetic: str
) -> bytes:
    """Return a 16-byte digest of everything that turns a chunk's tokens into its vector.

    encoder: the encoder's files, in Hugging Face format.
    tokenizer: files of the decoder's tokenizer, if the encoder reads text made of the decoder's tokens; otherwise none.
    arithmetic: precision of the exported ONNX model, and what it was calibrated with.
    """
    settings = {
        "chunk_size": config.chunk_size,
        "encoder_length": config.encoder_length,
        "pooling": config.pooling,
        "precision": arithmetic,
    }
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES)
    for path in (*encoder, *tokenizer):
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        for block in _blocks(path):
            digest.update(block)
    return digest.digest()


@dataclass(frozen=True)
class EncoderIdentity:
    """The encoder as the store knows it: the fingerprint of its vectors' keys, and the numbers in a vector."""

    fingerprint: bytes
    width: int

    def save(self, folder: Path) -> None:
        text = json.dumps({"fingerprint": self.fingerprint.hex(), "width": self.width})
        (folder / IDENTITY_FILE).write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path) -> "EncoderIdentity":
        """Return the identity of the encoder that the folder's model belongs to.

        Raises CheckpointError if the file is missing, as after the export of an older release, or cannot be read.
        """
        path = folder / IDENTITY_FILE
        try:
            found = json.loads(path.read_text())
            return cls(bytes.fromhex(found["fingerprint"]), int(found["width"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; run the export again") from None


def digest_chunks(token_ids: np.ndarray) -> list[bytes]:
    """Return the 16-byte digest of each row of packed token ids.  INT32 (C, K) -> C digests"""
    width = token_ids.shape[1] * token_ids.itemsize if token_ids.ndim == 2 else 0
    data = np.ascontiguousarray(token_ids).tobytes()
    return [
        hashlib.blake2b(data[start : start + width], digest_size=DIGEST_BYTES).digest()
        for start in range(0, len(data), width or 1)
    ]


def owner_of(key: bytes) -> bytes:
    """Return the fingerprint in a key."""
    return key[:FINGERPRINT_BYTES]


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block
