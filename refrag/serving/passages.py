"""Opens what a served model reads passages with: the chunker, and the store of passages' tokens."""

from pathlib import Path

from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.context.deployed import DECODER, DeployedFrame, DeployedTokenizers
from refrag.store.forms import TokenForm
from refrag.store.store import Store
from refrag.store.tokens import StoredTokens, fingerprint_tokenizer


def open_chunker(checkpoint: Path, config: RefragConfig, store: Store) -> tuple[Chunker, StoredTokens]:
    """Return the chunker with the checkpoint's tokenizers, and its cache: passages' tokens beside the vectors."""
    frame, tokenizers = DeployedFrame.load(checkpoint).frame, DeployedTokenizers.load(checkpoint)
    # Here the decoder's folder holds nothing but its tokenizer.
    files = sorted((checkpoint / DECODER).iterdir())
    form = TokenForm(max(tokenizers.decoder.backend.get_vocab().values()) + 1, config.chunk_size)
    tokens = StoredTokens(store.beside(fingerprint_tokenizer(files, config.template, config.chunk_size), form))
    return Chunker(config, frame, tokenizers.decoder, tokenizers.encoder, tokens), tokens
