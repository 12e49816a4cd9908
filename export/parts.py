"""The parts of a checkpoint that each Python model of the repository reads, copied into its version folder.

preprocessing      refrag.json, encoder.json, frame.json, the tokenizers
chunk_store        the same
expansion_policy   refrag.json, encoder.json, frame.json, policy.safetensors if there is one
decoder            refrag.json, decoder/, attention_heads.json if there is one
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from refrag.config import RefragConfig
from refrag.context.deployed import DECODER, ENCODER, DeployedFrame, DeployedTokenizers
from refrag.context.frame import open_frame
from refrag.context.tokenizer import TextTokenizer
from refrag.errors import CheckpointError
from refrag.model.attention_heads import HEADS_FILE
from refrag.model.policy_file import POLICY
from refrag.model.tokenizers import (
    has_tokenizer,
    load_decoder_tokenizer,
    load_decoder_vocab_size,
    load_encoder_tokenizer,
)
from refrag.store.keys import EncoderIdentity, fingerprint_encoder

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"}


def choose_chunk_size(config: RefragConfig, chunk_size: int | None, encoder_has_tokenizer: bool) -> RefragConfig:
    """Return the config to deploy; raise CheckpointError for a chunk size that the checkpoint was not trained with."""
    chunk_size = config.chunk_size if chunk_size is None else chunk_size
    if chunk_size not in config.trained_chunk_sizes:
        raise CheckpointError(
            f"chunk size {chunk_size} is not one the checkpoint was trained with; "
            f"choose from {sorted(config.trained_chunk_sizes)}"
        )
    # An encoder that reads the decoder's tokens needs exactly k of them; wider rows would only add padding.
    encoder_length = config.encoder_length if encoder_has_tokenizer else chunk_size
    return replace(config, chunk_size=chunk_size, encoder_length=encoder_length)


def fingerprint_of(checkpoint: Path, config: RefragConfig, arithmetic: str) -> bytes:
    """Return the fingerprint of the encoder as exported, under which its vectors are stored.

    arithmetic: the precision, and for int8 the digest of the calibration.
    """
    # An encoder with its own tokenizer reads the chunk's text, which the decoder's tokenizer makes from the tokens.
    encoder_files = sorted(path for path in (checkpoint / ENCODER).iterdir() if path.is_file())
    tokenizer_files = _non_weights(checkpoint / DECODER) if has_tokenizer(checkpoint / ENCODER) else []
    return fingerprint_encoder(encoder_files, tokenizer_files, config, arithmetic)


@dataclass(frozen=True)
class SharedParts:
    """Parts that several models of the repository get alike."""

    config: RefragConfig
    encoder: EncoderIdentity
    frame: DeployedFrame
    tokenizers: DeployedTokenizers

    @classmethod
    def of(cls, checkpoint: Path, config: RefragConfig, encoder: EncoderIdentity) -> "SharedParts":
        decoder_tokenizer, own = load_decoder_tokenizer(checkpoint), load_encoder_tokenizer(checkpoint)
        frame = DeployedFrame(open_frame(config.template, decoder_tokenizer), load_decoder_vocab_size(checkpoint))
        encoder_tokenizer = None if own is None else TextTokenizer.of(own)
        return cls(config, encoder, frame, DeployedTokenizers(TextTokenizer.of(decoder_tokenizer), encoder_tokenizer))


def build_preprocessing(shared: SharedParts, target: Path) -> None:
    _start_shared(shared, target)
    shared.tokenizers.save(target)


def build_expansion_policy(shared: SharedParts, checkpoint: Path, target: Path) -> None:
    # It lays out prompts of tokens, and reads no text.
    _start_shared(shared, target)
    if (checkpoint / POLICY).is_file():
        shutil.copyfile(checkpoint / POLICY, target / POLICY)


def build_decoder(checkpoint: Path, config: RefragConfig, target: Path) -> None:
    source = checkpoint / DECODER
    if not any(_is_weights(path) for path in source.iterdir()):
        raise CheckpointError(f"{source} holds no weights; train the checkpoint again or copy it whole")
    _start(config, target)
    # Copied without file modes, as everywhere here: safetensors files are private, and the server runs as another user.
    shutil.copytree(source, target / DECODER, copy_function=shutil.copyfile)
    if (checkpoint / HEADS_FILE).is_file():
        shutil.copyfile(checkpoint / HEADS_FILE, target / HEADS_FILE)


def _start_shared(shared: SharedParts, target: Path) -> None:
    _start(shared.config, target)
    shared.encoder.save(target)
    shared.frame.save(target)


def _start(config: RefragConfig, target: Path) -> None:
    target.mkdir(parents=True)
    config.save(target)


def _non_weights(directory: Path) -> list[Path]:
    """Return all files but weights: tokenizers have too many files to list, and some need the model's config.json."""
    return [path for path in sorted(directory.iterdir()) if path.is_file() and not _is_weights(path)]


def _is_weights(path: Path) -> bool:
    # Also the index of a sharded file, such as model.safetensors.index.json.
    return bool(WEIGHT_SUFFIXES.intersection(path.suffixes))
