"""Opens what a served model reads passages with: the chunker, and the store of passages' tokens."""

from pathlib import Path

from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.model.tokenizers import DECODER, load_decoder_tokenizer, load_encoder_tokenizer
from refrag.store.store import Store
from refrag.store.tokens import StoredTokens, fingerprint_tokenizer


def open_tokens(checkpoint: Path, config: RefragConfig, store: Store) -> StoredTokens:
    """Return the store of passages' tokens, which lies beside the vectors in `store`."""
    # Here the decoder's folder holds no weights, but every file that its tokenizer may be made of.
    files = sorted(path for path in (checkpoint / DECODER).iterdir() if path.is_file())
    return StoredTokens(store.beside(fingerprint_tokenizer(files, config.template)))


def open_chunker(checkpoint: Path, config: RefragConfig, tokens: StoredTokens) -> Chunker:
    """Return the chunker with the checkpoint's tokenizers, and `tokens` as its cache."""
    return Chunker(config, load_decoder_tokenizer(checkpoint), load_encoder_tokenizer(checkpoint), tokens)
