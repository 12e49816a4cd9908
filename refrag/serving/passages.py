"""Opens what a served model reads passages with: the chunker, and the store of passages' tokens."""

from pathlib import Path

from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.context.deployed import DeployedText
from refrag.store.forms import TokenForm
from refrag.store.store import Store
from refrag.store.tokens import StoredTokens, fingerprint_tokenizer


def open_chunker(checkpoint: Path, config: RefragConfig, store: Store) -> tuple[Chunker, StoredTokens]:
    """Return the chunker with the checkpoint's tokenizers, and its cache: passages' tokens beside the vectors."""
    text = DeployedText.load(checkpoint)
    # Here the decoder's folder holds no weights, but every file that its tokenizer may be made of.
    files = sorted(path for path in (checkpoint / "decoder").iterdir() if path.is_file())
    form = TokenForm(max(text.decoder.backend.get_vocab().values()) + 1)
    tokens = StoredTokens(store.beside(fingerprint_tokenizer(files, config.template), form))
    return Chunker(config, text.frame, text.decoder, text.encoder, tokens), tokens
