"""Models to compare: a REFRAG checkpoint, a plain decoder, and other policies and encoders for the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from refrag.config import CONFIG_NAME
from refrag.errors import CheckpointError, InvalidRequest, SetupError
from refrag.evaluation.conditions import READS_QUESTION, ContextForm, Selection
from refrag.evaluation.options import parse_named_paths
from refrag.model.checkpoint import Checkpoint, load_checkpoint, load_decoder, load_plain_decoder
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.policy import ExpansionPolicy
from refrag.model.policy_file import load_policy_file
from refrag.model.tokenizers import load_decoder_tokenizer, load_tokenizer

# C chunks, L encoder tokens per chunk, E encoder width

TORCH = "torch"


@dataclass(frozen=True)
class Models:
    """The checkpoint, and the models to compare its parts with.

    plain: the decoder that reads contexts as tokens; a fair baseline only with the same training as the checkpoint.
    plain_name: its name in rows.
    policies: the given policies of `READS_QUESTION`.
    onnx_encoders: files exported from the checkpoint's encoder, by their names in rows.
    """

    checkpoint: Checkpoint
    plain: Decoder
    plain_name: str
    policies: Mapping[Selection, ExpansionPolicy] = field(default_factory=dict)
    onnx_encoders: Mapping[str, Path] = field(default_factory=dict)

    def decoder(self, form: ContextForm) -> Decoder:
        """Return the decoder that reads contexts of this form."""
        return self.checkpoint.decoder if form == "compressed" else self.plain

    def window(self, form: ContextForm) -> int:
        """Return the slots that the decoder for this form has for prompt and answer."""
        slots = self.checkpoint.config.max_prompt_slots
        return slots if form == "compressed" else getattr(self.plain.backbone.config, "max_position_embeddings", slots)

    def move_to(self, device: torch.device) -> None:
        """Move all weights to the device, where everything is then computed."""
        for module in (*self.checkpoint.modules.values(), self.plain, *self.policies.values()):
            module.to(device)

    def cast_decoders(self, dtype: torch.dtype) -> None:
        """Have both decoders compute in another type; encoder, projector and policies keep theirs."""
        for decoder in (self.checkpoint.decoder, self.plain):
            decoder.to(dtype)

    def without_chat(self) -> "Models":
        """Return the same models for texts that stand in no chat."""
        config = self.checkpoint.config
        template = replace(config.template, is_chat=False)
        return replace(self, checkpoint=replace(self.checkpoint, config=replace(config, template=template)))

    def with_onnx_encoder(self, name: str) -> "Models":
        """Return the same models with this ONNX encoder in place of torch's."""
        encoder = OnnxEncoder(self.checkpoint.encoder, self.onnx_encoders[name])
        return replace(self, checkpoint=replace(self.checkpoint, encoder=encoder))


class OnnxEncoder(ChunkEncoder):
    """An ONNX model in place of the encoder that it was exported from, to see what its arithmetic does to answers.

    The parity check of an export allows a small error. Only answers tell whether it is small enough, above all for an
    encoder in integers.
    """

    def __init__(self, encoder: ChunkEncoder, file: Path) -> None:
        super().__init__(encoder.backbone, encoder.pooling, encoder.ordered)
        try:  # Evaluation needs onnxruntime for nothing else.
            import onnxruntime
        except ModuleNotFoundError:
            raise SetupError("an ONNX encoder needs onnxruntime; pip install 'refrag[export]'") from None

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        [vectors] = self.session.run(["chunk_vectors"], inputs)
        return torch.from_numpy(vectors)  # (C, L) -> (C, E)


def load_models(
    checkpoint: Path,
    plain: Path | None = None,
    policies: Mapping[Selection, Path | None] | None = None,
    onnx_encoders: Mapping[str, Path] | None = None,
) -> Models:
    """Load the models to compare; without a plain decoder the checkpoint's own reads uncompressed contexts too.

    plain: a Hugging Face folder, or a REFRAG checkpoint whose decoder is taken.
    Raises CheckpointError if the plain decoder has another tokenizer, or a policy another width.
    """
    loaded = load_checkpoint(checkpoint)
    others = {name: _load_policy(path, loaded, READS_QUESTION[name]) for name, path in (policies or {}).items() if path}
    if plain is None:
        return Models(loaded, loaded.decoder, "REFRAG's own decoder", others, onnx_encoders or {})
    tokenizer, decoder = _load_plain(plain)
    if tokenizer.get_vocab() != loaded.decoder_tokenizer.get_vocab():
        raise CheckpointError(f"{plain} has another tokenizer than {checkpoint}; questions would not be the same")
    return Models(loaded, decoder, "plain decoder", others, onnx_encoders or {})


def parse_onnx_encoders(texts: Sequence[str]) -> dict[str, Path]:
    """Read texts of the form NAME=FILE.

    Raises InvalidRequest for another form, a name given twice or the name "torch", CheckpointError for a missing file.
    """
    files = parse_named_paths(texts, "an ONNX encoder", "NAME=model.onnx")
    if TORCH in files:
        raise InvalidRequest(f"an ONNX encoder is called {TORCH!r}, which is torch's own row; give it another name")
    for path in files.values():
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; export the checkpoint, or name another ONNX encoder")
    return files


def _load_plain(folder: Path) -> tuple[PreTrainedTokenizerFast, Decoder]:
    if (folder / CONFIG_NAME).is_file():
        return load_decoder_tokenizer(folder), load_decoder(folder)
    return load_tokenizer(folder), load_plain_decoder(folder)


def _load_policy(path: Path, checkpoint: Checkpoint, question_aware: bool) -> ExpansionPolicy:
    policy = load_policy_file(path, checkpoint.config.policy_num_heads, question_aware)
    width = policy.question_in.in_features
    if width != checkpoint.encoder.width:
        raise CheckpointError(f"{path} is for chunk vectors of width {width}, not {checkpoint.encoder.width}")
    return policy
