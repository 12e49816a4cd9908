"""Loads and saves REFRAG checkpoints.

refrag.json              settings (`refrag.config.RefragConfig`)
decoder/                 Hugging Face causal LM with its tokenizer, or what differs from the base model in refrag.json
encoder/                 Hugging Face encoder, with a tokenizer only if it differs from the decoder's, or what differs,
                         and with pooling.safetensors for ordered pooling
projector.safetensors
policy.safetensors       network of the learned policy, if it was trained
attention_heads.json     heads that the policy `attention` reads, if they were found
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from refrag.config import BASES, CONFIG_NAME, RefragConfig
from refrag.context.chunking import Chunker
from refrag.context.deployed import DECODER, ENCODER
from refrag.errors import CheckpointError
from refrag.machine.files import move_all
from refrag.model.attention_heads import HEADS_FILE, AttentionHeads, digest_weights, load_heads
from refrag.model.backbones import load_pretrained, save_whole
from refrag.model.bases import MODEL_CONFIG, RECORD, BaseRecord, find_base, model_folder, record_base, refuse_other_base
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder, OrderedPooling
from refrag.model.encoder_faults import encoder_fault
from refrag.model.faults import known_fault
from refrag.model.policy import ExpansionPolicy
from refrag.model.policy_file import POLICY, load_policy, save_policy
from refrag.model.projector import Projector
from refrag.model.tokenizers import load_decoder_tokenizer, load_encoder_tokenizer
from refrag.model.weights import fill, load_metadata, load_weights, matrix_shape, save_weights

Part = Literal["decoder", "policy"]
M = TypeVar("M", Decoder, ChunkEncoder)

PROJECTOR, POOLING = "projector.safetensors", "pooling.safetensors"
# Parts of an earlier checkpoint that go when another is saved in its place, whether that has them or not. Only heads
# stay, if they are of its decoder too.
PARTS = [DECODER, ENCODER, PROJECTOR, POLICY, HEADS_FILE]
# The same in the folder of a decoder alone.
DECODER_FILES = ["model*.safetensors*", "adapter_*", RECORD]
# Folders of a save: the new parts until all are written, and the old ones until all new are in their places.
NEW, OLD = ".new", ".old"


@dataclass(frozen=True)
class Checkpoint:
    """All parts of one REFRAG model; `load_checkpoint` returns them in evaluation mode.

    heads: those that its file names, which may be of other weights; None if it has no such file.
    """

    config: RefragConfig
    encoder: ChunkEncoder
    projector: Projector
    policy: ExpansionPolicy | None
    decoder: Decoder
    decoder_tokenizer: PreTrainedTokenizerFast
    encoder_tokenizer: PreTrainedTokenizerFast | None = None
    heads: AttentionHeads | None = None

    @property
    def chunker(self) -> Chunker:
        return Chunker.of(self.config, self.decoder_tokenizer, self.encoder_tokenizer)

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
        """Return the same weights with another chunk size, in decoder tokens.

        Raises CheckpointError for a chunk longer than the encoder's pooling has places for.
        """
        _refuse_long_chunks(self.encoder.ordered, chunk_size)
        return replace(self, config=replace(self.config, chunk_size=chunk_size))

    def save(
        self,
        directory: Path,
        dtype: torch.dtype = torch.float32,
        part: Part | None = None,
        decoder_dtype: torch.dtype | None = None,
    ) -> None:
        """Write the checkpoint, or one part of it, with weights in `dtype`; float16 halves their size.

        A decoder or an encoder that differs from its base model by an adapter at most is saved as that difference; any
        other is saved whole, and its base model no longer named. The decoder alone is always a plain Hugging Face
        folder, the policy alone one file in `directory`. It takes the place of what an earlier save left there, once
        all of it is written; other files stay. Raises CheckpointError for the part "policy" if there is none.

        decoder_dtype: that of the decoder's weights, if it is not `dtype`.
        """
        if part == "decoder":
            with _replacing(directory, DECODER_FILES, MODEL_CONFIG) as written:
                self._save_part(self.decoder, written, None, decoder_dtype or dtype)
        elif part == "policy":
            policy = self.require_policy()
            with _replacing(directory, [], POLICY) as written:
                save_policy(policy, written / POLICY, dtype)
        else:
            with _replacing(directory, PARTS, CONFIG_NAME) as written:
                self._save_all(written, dtype, decoder_dtype or dtype)
                _keep_heads(directory, written)

    def without_bases(self) -> "Checkpoint":
        """Return the same checkpoint, which is saved whole."""
        return replace(self, config=replace(self.config, decoder_base=None, encoder_base=None))

    def _save_all(self, directory: Path, dtype: torch.dtype, decoder_dtype: torch.dtype) -> None:
        config = self._true_config()
        config.save(directory)
        self._save_part(self.decoder, directory / DECODER, config.decoder_base, decoder_dtype)
        self._save_part(self.encoder, directory / ENCODER, config.encoder_base, dtype)
        if self.encoder.ordered is not None:
            save_weights(self.encoder.ordered, directory / ENCODER / POOLING, dtype)
        save_weights(self.projector, directory / PROJECTOR, dtype, _records(config))
        if self.policy is not None:
            save_policy(self.policy, directory / POLICY, dtype)
        # Heads of the weights before a training say nothing about those after it.
        if self.heads is not None and self.heads.digest == digest_weights(self.decoder):
            self.heads.save(directory)

    def _true_config(self) -> RefragConfig:
        """Return the config without the base models from which more than an adapter has changed."""
        changed: dict[str, Any] = {}
        for name, module in zip(BASES, (self.decoder, self.encoder), strict=True):
            base = getattr(self.config, name)
            if base is not None and not _difference().differs_by_adapter_alone(module, base):
                changed[name] = None
        return replace(self.config, **changed)

    def _save_part(self, module: Decoder | ChunkEncoder, folder: Path, base: Any, dtype: torch.dtype) -> None:
        if base is not None:
            _difference().save_difference(module, folder, base, dtype)
            return
        save_whole(module, folder, dtype)
        tokenizer = self.decoder_tokenizer if isinstance(module, Decoder) else self.encoder_tokenizer
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _keep_heads(directory: Path, written: Path) -> None:
    """Copy the heads in `directory` if they are of the decoder just written, such as that of a policy's training."""
    if not (directory / HEADS_FILE).is_file() or (written / HEADS_FILE).exists():
        return
    with suppress(CheckpointError):
        # As a server loads it: heads are found with adapters merged.
        load_heads(directory, load_decoder(written))
        shutil.copy2(directory / HEADS_FILE, written)


@contextmanager
def _replacing(directory: Path, parts: Iterable[str], last: str) -> Iterator[Path]:
    """Yield a folder to write to, whose content then replaces the files of `directory` that `parts` match: all or none.

    last: the file without which the folder is not loaded; it goes first and comes last, so that a mix of old and new
        files is never taken for whole.
    """
    written, old = directory / NEW, directory / OLD
    _remove(written)
    written.mkdir(parents=True)
    try:
        yield written
        _remove(old)
        old.mkdir()
        new = sorted(written.iterdir(), key=lambda path: path.name == last)
        replaced = [path.name for part in parts for path in directory.glob(part)] + [path.name for path in new]
        names = [name for name in dict.fromkeys([last, *replaced]) if os.path.lexists(directory / name)]
        moves = [(directory / name, old / name) for name in names] + [(path, directory / path.name) for path in new]
        try:
            move_all(moves)
        except BaseException:
            # Kept if something is in it, which could not be moved back either.
            with suppress(OSError):
                old.rmdir()
            raise
        _remove(old)
    finally:
        _remove(written)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def load_checkpoint(directory: Path | str, merge_adapters: bool = True) -> Checkpoint:
    """Load every part as float32 in evaluation mode, or raise CheckpointError that names the part at fault.

    merge_adapters: False keeps low-rank adapters apart, so that they train on and are saved as adapters again.
    """
    directory = Path(directory)
    config = RefragConfig.load(directory)
    decoder = load_decoder(directory, merge_adapter=merge_adapters)
    if fault := known_fault(decoder, config.max_prompt_slots):
        raise CheckpointError(f"{directory / DECODER} cannot be the decoder: {fault}")
    return Checkpoint(
        config=config,
        encoder=load_encoder(directory, config, merge_adapters),
        projector=load_projector(directory),
        policy=load_policy(directory, config),
        decoder=decoder,
        decoder_tokenizer=load_decoder_tokenizer(directory),
        encoder_tokenizer=load_encoder_tokenizer(directory),
        heads=AttentionHeads.load(directory),
    )


def load_encoder(directory: Path, config: RefragConfig, merge_adapter: bool = True) -> ChunkEncoder:
    backbone = load_pretrained(AutoModel, model_folder(directory, ENCODER), dtype=torch.float32)
    ordered = load_ordered_pooling(directory / ENCODER / POOLING) if config.pooling == "ordered" else None
    _refuse_long_chunks(ordered, config.chunk_size)
    encoder = ChunkEncoder(backbone, config.pooling, ordered)
    encoder = _with_difference(encoder, directory, ENCODER, merge_adapter).eval()
    if fault := encoder_fault(encoder, config.encoder_length):
        raise CheckpointError(f"{directory / ENCODER} cannot be the encoder: {fault}")
    return encoder


def load_ordered_pooling(path: Path) -> OrderedPooling:
    weights = load_weights(path)
    if weights.keys() != {"weight"} or weights["weight"].dim() != 3:
        raise CheckpointError(f"{path} holds {sorted(weights)}; one matrix per place is needed, under 'weight'")
    return fill(OrderedPooling(*weights["weight"].shape), weights, path)


def load_decoder(directory: Path, dtype: torch.dtype = torch.float32, merge_adapter: bool = True) -> Decoder:
    folder = model_folder(directory, DECODER)
    if folder == directory / DECODER:
        return load_plain_decoder(folder, dtype)
    # Merged in float32, so that what is rounded is the sum.
    decoder = _with_difference(load_plain_decoder(folder), directory, DECODER, merge_adapter)
    for parameter in decoder.parameters():
        # Rounded as an export stores it, so that the decoder in this process is the one that is served. Parameters
        # alone: the frequencies of rotary positions stay exact.
        parameter.data = (parameter.half() if merge_adapter else parameter.data).to(dtype)
    return decoder.eval()


def load_plain_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load any Hugging Face causal LM, whether it is part of a checkpoint or not."""
    return Decoder(load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)).eval()


def load_projector(directory: Path) -> Projector:
    """Load the projector, or raise CheckpointError if it was trained between other base models than are named."""
    path = directory / PROJECTOR
    weights = load_weights(path)
    _refuse_other_bases(path, directory)
    decoder_width, encoder_width = matrix_shape(weights, "up.weight", path)
    return fill(Projector(encoder_width, decoder_width), weights, path)


def _refuse_long_chunks(ordered: OrderedPooling | None, chunk_size: int) -> None:
    if ordered is not None and chunk_size > ordered.chunk_size:
        raise CheckpointError(
            f"chunk_size is {chunk_size}, but the ordered pooling has {ordered.chunk_size} places, and tokens beyond "
            "them would be lost; choose a smaller chunk size, or train with trained_chunk_sizes that include it"
        )


def _with_difference(module: M, directory: Path, part: str, merge_adapter: bool) -> M:
    base = find_base(directory, part)
    if base is not None:
        _difference().load_difference(module, directory / part, base, merge_adapter)
    return module


def _difference() -> ModuleType:
    """Import what needs peft only where a base model is named: a server's checkpoint is whole."""
    from refrag.model import difference

    return difference


def _records(config: RefragConfig) -> dict[str, str]:
    """Return what a projector's file says about the base models between which it was trained."""
    bases = {name: getattr(config, name) for name in BASES}
    return {name: record_base(base).to_json() for name, base in bases.items() if base is not None}


def _refuse_other_bases(path: Path, directory: Path) -> None:
    metadata = load_metadata(path)
    for part in (DECODER, ENCODER):
        base, record = find_base(directory, part), metadata.get(f"{part}_base")
        if base is not None and record is not None:
            refuse_other_base(base, BaseRecord.from_json(record, str(path)), str(path))
