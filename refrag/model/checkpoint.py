"""Loads and saves REFRAG checkpoints.

refrag.json              settings (`refrag.config.RefragConfig`)
decoder/                 Hugging Face causal LM with its tokenizer
encoder/                 Hugging Face encoder, with a tokenizer only if it differs from the decoder's, and with
                         pooling.safetensors for ordered pooling
projector.safetensors
policy.safetensors       network of the learned policy, if it was trained
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from refrag.config import LEARNED_POLICY, RefragConfig
from refrag.context.chunking import Chunker
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder, OrderedPooling
from refrag.model.policy import ExpansionPolicy
from refrag.model.projector import Projector
from refrag.model.tokenizers import DECODER, ENCODER, load_decoder_tokenizer, load_encoder_tokenizer

Part = Literal["decoder", "policy"]

PROJECTOR, POLICY, POOLING = "projector.safetensors", "policy.safetensors", "pooling.safetensors"
QUESTION_AWARE = "question_aware"


@dataclass(frozen=True)
class Checkpoint:
    """All parts of one REFRAG model; `load_checkpoint` returns them in evaluation mode."""

    config: RefragConfig
    encoder: ChunkEncoder
    projector: Projector
    policy: ExpansionPolicy | None
    decoder: Decoder
    decoder_tokenizer: PreTrainedTokenizerFast
    encoder_tokenizer: PreTrainedTokenizerFast | None = None

    @property
    def chunker(self) -> Chunker:
        return Chunker(self.config, self.decoder_tokenizer, self.encoder_tokenizer)

    @property
    def modules(self) -> dict[str, nn.Module]:
        policy = {} if self.policy is None else {"policy": self.policy}
        return {"encoder": self.encoder, "projector": self.projector, "decoder": self.decoder, **policy}

    def require_policy(self) -> ExpansionPolicy:
        """Return the policy network, or raise CheckpointError if there is none."""
        if self.policy is None:
            raise CheckpointError(f"the checkpoint has no {POLICY}; train a policy, or name a checkpoint that has one")
        return self.policy

    def with_chunk_size(self, chunk_size: int) -> "Checkpoint":
        """Return the same weights with another chunk size, in decoder tokens."""
        return replace(self, config=replace(self.config, chunk_size=chunk_size))

    def save(self, directory: Path, dtype: torch.dtype = torch.float32, part: Part | None = None) -> None:
        """Write the checkpoint, or one part of it, with weights in `dtype`; float16 halves their size.

        The decoder alone is a plain Hugging Face folder, the policy alone one file in `directory`. Raises
        CheckpointError for the part "policy" if there is none.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if part == "decoder":
            self._save_decoder(directory, dtype)
        elif part == "policy":
            _save_policy(self.require_policy(), directory / POLICY, dtype)
        else:
            self._save_all(directory, dtype)

    def _save_all(self, directory: Path, dtype: torch.dtype) -> None:
        self.config.save(directory)
        self._save_decoder(directory / DECODER, dtype)
        _save_backbone(self.encoder, directory / ENCODER, dtype)
        if self.encoder.ordered is not None:
            _save_weights(self.encoder.ordered, directory / ENCODER / POOLING, dtype)
        if self.encoder_tokenizer is not None:
            self.encoder_tokenizer.save_pretrained(directory / ENCODER)
        _save_weights(self.projector, directory / PROJECTOR, dtype)
        if self.policy is not None:
            _save_policy(self.policy, directory / POLICY, dtype)

    def _save_decoder(self, directory: Path, dtype: torch.dtype) -> None:
        _save_backbone(self.decoder, directory, dtype)
        self.decoder_tokenizer.save_pretrained(directory)


def load_checkpoint(directory: Path | str) -> Checkpoint:
    """Load every part as float32 in evaluation mode, or raise CheckpointError that names the part at fault."""
    directory = Path(directory)
    config = RefragConfig.load(directory)
    return Checkpoint(
        config=config,
        encoder=load_encoder(directory, config),
        projector=load_projector(directory),
        policy=load_policy(directory, config),
        decoder=load_decoder(directory),
        decoder_tokenizer=load_decoder_tokenizer(directory),
        encoder_tokenizer=load_encoder_tokenizer(directory),
    )


def load_encoder(directory: Path, config: RefragConfig) -> ChunkEncoder:
    backbone = _load_pretrained(AutoModel, directory / ENCODER, dtype=torch.float32)
    ordered = load_ordered_pooling(directory / ENCODER / POOLING) if config.pooling == "ordered" else None
    return ChunkEncoder(backbone, config.pooling, ordered).eval()


def load_ordered_pooling(path: Path) -> OrderedPooling:
    weights = _load_weights(path)
    if weights.keys() != {"weight"} or weights["weight"].dim() != 3:
        raise CheckpointError(f"{path} holds {sorted(weights)}; one matrix per place is needed, under 'weight'")
    return _fill(OrderedPooling(*weights["weight"].shape), weights, path)


def load_decoder(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_plain_decoder(directory / DECODER, dtype)


def load_plain_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load any Hugging Face causal LM, whether it is part of a checkpoint or not."""
    return Decoder(_load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)).eval()


def load_decoder_vocab_size(directory: Path) -> int:
    """Return the rows of the decoder's embedding matrix, from its config alone."""
    return _load_pretrained(AutoConfig, directory / DECODER).get_text_config().vocab_size


def load_projector(directory: Path) -> Projector:
    weights = _load_weights(directory / PROJECTOR)
    decoder_width, encoder_width = _shape(weights, "up.weight", directory / PROJECTOR)
    return _fill(Projector(encoder_width, decoder_width), weights, directory / PROJECTOR)


def load_policy(directory: Path, config: RefragConfig) -> ExpansionPolicy | None:
    """Return the network of the learned policy, or None if there is none and another policy is the default."""
    path = directory / POLICY
    if not path.is_file() and config.policy != LEARNED_POLICY:
        return None
    return load_policy_file(path, config.policy_num_heads, config.question_aware)


def load_policy_file(path: Path, num_heads: int, question_aware: bool) -> ExpansionPolicy:
    """Load a policy network from a file.

    Raises CheckpointError if it differs in `question_aware`, which the shapes of its weights do not tell.
    """
    weights, kind = _load_weights(path), _load_metadata(path).get(QUESTION_AWARE)
    if kind not in (None, str(question_aware)):
        raise CheckpointError(
            f"{path} has {QUESTION_AWARE} {kind}, where {question_aware} is needed; name a policy trained with that"
        )
    width, encoder_width = _shape(weights, "question_in.weight", path)
    return _fill(ExpansionPolicy(encoder_width, width, num_heads, question_aware), weights, path)


def _save_backbone(module: Decoder | ChunkEncoder, directory: Path, dtype: torch.dtype) -> None:
    state = {name: weight.to(dtype) for name, weight in module.backbone.state_dict().items()}
    module.backbone.save_pretrained(directory, state_dict=state)


def _save_weights(module: nn.Module, path: Path, dtype: torch.dtype, metadata: dict[str, str] | None = None) -> None:
    weights = {name: weight.to(dtype).contiguous() for name, weight in module.state_dict().items()}
    save_file(weights, path, metadata)


def _save_policy(policy: ExpansionPolicy, path: Path, dtype: torch.dtype) -> None:
    _save_weights(policy, path, dtype, {QUESTION_AWARE: str(policy.question_aware)})


def _load_pretrained(auto_class: type, directory: Path, **options: Any):  # type: ignore[no-untyped-def]
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is missing; a REFRAG checkpoint holds {DECODER}/ and {ENCODER}/")
    try:
        with _quiet_transformers():
            return auto_class.from_pretrained(directory, local_files_only=True, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error


def _load_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; train or export the checkpoint again")
    try:
        return {name: weight.float() for name, weight in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _load_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _shape(weights: dict[str, torch.Tensor], name: str, path: Path) -> tuple[int, int]:
    if name not in weights or weights[name].dim() != 2:
        raise CheckpointError(f"{path} holds {sorted(weights)}; a matrix {name!r} is needed; train or export again")
    rows, columns = weights[name].shape
    return rows, columns


def _fill(module, weights: dict[str, torch.Tensor], path: Path):  # type: ignore[no-untyped-def]
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit: {error}") from None
    return module.eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence progress bars, and the report that an encoder's unused pooler has no weights."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
