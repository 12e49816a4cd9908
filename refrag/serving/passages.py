"""The chunker of a served model, which remembers passages in the store."""

from pathlib import Path

from refrag.chunking import Chunker
from refrag.config import RefragConfig
from refrag.model.tokenizers import (
    DECODER,
    load_decoder_tokenizer,
    load_encoder_tokenizer,
    tokenizer_files,
)
from refrag.store.store import Store
from refrag.store.tokens import StoredTokens, fingerprint_tokenizer


def open_chunker(checkpoint: Path, config: RefragConfig, store: Store) -> Chunker:
    """Its tokens are kept beside the store's vectors."""
    tokens = store.beside(fingerprint_tokenizer(tokenizer_files(checkpoint / DECODER), config.template))
    return Chunker(config, load_decoder_tokenizer(checkpoint), load_encoder_tokenizer(checkpoint), StoredTokens(tokens))
