"""What is compared: a REFRAG checkpoint, the plain decoder beside it, and policies beside its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refrag.errors import CheckpointError
from refrag.evaluation.conditions import READS_QUESTION, ContextForm, Selection
from refrag.model.checkpoint import Checkpoint, load_checkpoint, load_plain_decoder, load_policy_file
from refrag.model.decoder import Decoder
from refrag.model.policy import ExpansionPolicy
from refrag.model.tokenizers import load_tokenizer


@dataclass(frozen=True)
class Models:
    """plain: reads contexts as tokens; with the same training as the checkpoint it is the fair baseline.

    plain_name: what rows call it. policies: those of `READS_QUESTION` that there are. graphs: exported encoders of the
    checkpoint, by what rows call them.
    """

    checkpoint: Checkpoint
    plain: Decoder
    plain_name: str
    policies: Mapping[Selection, ExpansionPolicy] = field(default_factory=dict)
    graphs: Mapping[str, Path] = field(default_factory=dict)

    @property
    def bos_id(self) -> int | None:
        return self.checkpoint.decoder_tokenizer.bos_token_id

    def decoder(self, form: ContextForm) -> Decoder:
        """The decoder that reads contexts of this form."""
        return self.checkpoint.decoder if form == "compressed" else self.plain

    def window(self, form: ContextForm) -> int:
        """Slots that this decoder has for prompt and answer."""
        slots = self.checkpoint.config.max_prompt_slots
        return slots if form == "compressed" else getattr(self.plain.backbone.config, "max_position_embeddings", slots)


def load_models(
    checkpoint: Path,
    plain: Path | None = None,
    policies: Mapping[Selection, Path | None] | None = None,
    graphs: Mapping[str, Path] | None = None,
) -> Models:
    """Without a plain decoder the checkpoint's own reads uncompressed contexts too, and is named so."""
    loaded = load_checkpoint(checkpoint)
    others = {name: _load_policy(path, loaded, READS_QUESTION[name]) for name, path in (policies or {}).items() if path}
    if plain is None:
        return Models(loaded, loaded.decoder, "REFRAG's own decoder", others, graphs or {})
    if load_tokenizer(plain).get_vocab() != loaded.decoder_tokenizer.get_vocab():
        raise CheckpointError(f"{plain} has another tokenizer than {checkpoint}; questions would not be the same")
    return Models(loaded, load_plain_decoder(plain), "plain decoder", others, graphs or {})


def _load_policy(path: Path, checkpoint: Checkpoint, question_aware: bool) -> ExpansionPolicy:
    policy = load_policy_file(path, checkpoint.config.policy_num_heads, question_aware)
    width = policy.question_in.in_features
    if width != checkpoint.encoder.width:
        raise CheckpointError(f"{path} is for chunk vectors of width {width}, not {checkpoint.encoder.width}")
    return policy
