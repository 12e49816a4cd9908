"""What is compared: a REFRAG checkpoint, the plain decoder beside it, and policies and encoders beside its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from refrag.errors import CheckpointError, InvalidRequest, SetupError
from refrag.evaluation.conditions import READS_QUESTION, ContextForm, Selection
from refrag.evaluation.options import parse_named_paths
from refrag.model.checkpoint import Checkpoint, load_checkpoint, load_plain_decoder, load_policy_file
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.policy import ExpansionPolicy
from refrag.model.tokenizers import load_tokenizer

# C chunks, L encoder tokens per chunk, E encoder width

TORCH = "torch"


@dataclass(frozen=True)
class Models:
    """The checkpoint and everything that is held against a part of it.

    plain: reads contexts as tokens; with the same training as the checkpoint it is the fair baseline.
    plain_name: what rows call it.
    policies: weights for those of `READS_QUESTION` that were given.
    onnx_encoders: files exported from the checkpoint's encoder, by what rows call them.
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
        """Return the slots that this decoder has for prompt and answer."""
        slots = self.checkpoint.config.max_prompt_slots
        return slots if form == "compressed" else getattr(self.plain.backbone.config, "max_position_embeddings", slots)

    def with_onnx_encoder(self, name: str) -> "Models":
        """Return the same models with this ONNX encoder in place of torch's."""
        encoder = OnnxEncoder(self.checkpoint.encoder, self.onnx_encoders[name])
        return replace(self, checkpoint=replace(self.checkpoint, encoder=encoder))


class OnnxEncoder(ChunkEncoder):
    """Stands in for the encoder that it was exported from, to see what its arithmetic does to answers.

    The parity check of an export allows little, and only answers tell whether it is little enough, above all where an
    encoder computes in integers.
    """

    def __init__(self, encoder: ChunkEncoder, file: Path) -> None:
        super().__init__(encoder.backbone, encoder.pooling)
        try:  # Evaluation needs it for nothing else.
            import onnxruntime
        except ModuleNotFoundError:
            raise SetupError("an ONNX encoder needs onnxruntime; pip install 'refrag[export]'") from None

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        [vectors] = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return torch.from_numpy(vectors)  # (C, L) -> (C, E)


def load_models(
    checkpoint: Path,
    plain: Path | None = None,
    policies: Mapping[Selection, Path | None] | None = None,
    onnx_encoders: Mapping[str, Path] | None = None,
) -> Models:
    """Load what is compared; without a plain decoder the checkpoint's own reads uncompressed contexts too."""
    loaded = load_checkpoint(checkpoint)
    others = {name: _load_policy(path, loaded, READS_QUESTION[name]) for name, path in (policies or {}).items() if path}
    if plain is None:
        return Models(loaded, loaded.decoder, "REFRAG's own decoder", others, onnx_encoders or {})
    if load_tokenizer(plain).get_vocab() != loaded.decoder_tokenizer.get_vocab():
        raise CheckpointError(f"{plain} has another tokenizer than {checkpoint}; questions would not be the same")
    return Models(loaded, load_plain_decoder(plain), "plain decoder", others, onnx_encoders or {})


def parse_onnx_encoders(texts: Sequence[str]) -> dict[str, Path]:
    """Read NAME=FILE each, or raise InvalidRequest for another form and for a name that would be mistaken, and
    CheckpointError for a file that is not there.
    """
    files = parse_named_paths(texts, "an ONNX encoder", "NAME=model.onnx")
    if TORCH in files:
        raise InvalidRequest(f"an ONNX encoder is called {TORCH!r}, which is torch's own row; give it another name")
    for path in files.values():
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; export the checkpoint, or name another ONNX encoder")
    return files


def _load_policy(path: Path, checkpoint: Checkpoint, question_aware: bool) -> ExpansionPolicy:
    policy = load_policy_file(path, checkpoint.config.policy_num_heads, question_aware)
    width = policy.question_in.in_features
    if width != checkpoint.encoder.width:
        raise CheckpointError(f"{path} is for chunk vectors of width {width}, not {checkpoint.encoder.width}")
    return policy
