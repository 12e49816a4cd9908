"""The decoder's attention heads by which the policy `attention` chooses: a small file of a checkpoint, or a default.

`refrag heads find` finds them for the decoder's own weights, whose hash the file carries: other weights look elsewhere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refrag.errors import CheckpointError

if TYPE_CHECKING:
    from refrag.model.decoder import Decoder

HEADS_FILE = "attention_heads.json"
# Where heads that look for what is asked sit in most decoders, as shares of its depth.
MIDDLE = 0.3, 0.7
# Of each matrix of weights so many values go into the hash, evenly spaced: training changes all of them.
SAMPLES = 4096


@dataclass(frozen=True)
class Scoring:
    """Rules that make chunk scores of the heads' attention. Raises CheckpointError for a value out of range.

    query_slots: last slots of the prompt, at most, whose attention is read.
    similarity: share of the cosine in a chunk's score, 0 to 1; the rest is the attention's.
    neighbours: how much the mean score of the chunks beside it in its passage adds to a chunk's own.
    passage: how much the best score in its passage adds.
    """

    query_slots: int = 64
    similarity: float = 0.8
    neighbours: float = 0.5
    passage: float = 0.5

    def __post_init__(self) -> None:
        if self.query_slots < 1 or self.neighbours < 0 or self.passage < 0 or not 0 <= self.similarity <= 1:
            raise CheckpointError(
                f"{HEADS_FILE} has {asdict(self)}; query_slots must be at least 1, neighbours and passage at least 0, "
                "and similarity 0 to 1; find the heads again"
            )


@dataclass(frozen=True)
class AttentionHeads:
    """Heads that are read, and what is made of them.

    heads: pairs of layer and head in it, in ascending order. weights: of each in the sum of all.
    digest: hash of the decoder's weights; None for the default, which fits any.
    provenance: how they were found; never read by code.
    """

    heads: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    scoring: Scoring = field(default_factory=Scoring)
    digest: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_layer(self) -> dict[int, list[int]]:
        """Return the heads of each layer, in order."""
        return {layer: [head for _, head in group] for layer, group in groupby(self.heads, key=lambda one: one[0])}

    @classmethod
    def default(cls, decoder: "Decoder") -> "AttentionHeads":
        """Return all heads of the middle layers, alike."""
        num_layers, num_heads = decoder.config.num_hidden_layers, decoder.config.num_attention_heads
        first, end = (round(share * num_layers) for share in MIDDLE)
        layers = range(min(first, num_layers - 1), max(end, first + 1))
        heads = tuple((layer, head) for layer in layers for head in range(num_heads))
        return cls(heads, (1.0,) * len(heads))

    def check(self, decoder: "Decoder") -> None:
        """Raise CheckpointError unless the heads are of this decoder and its weights."""
        num_layers, num_heads = decoder.config.num_hidden_layers, decoder.config.num_attention_heads
        beyond = [one for one in self.heads if not (0 <= one[0] < num_layers and 0 <= one[1] < num_heads)]
        if beyond or not self.heads:
            named = f"head {beyond[0][1]} of layer {beyond[0][0]}" if beyond else "no head"
            raise CheckpointError(
                f"{HEADS_FILE} names {named}; the decoder has {num_layers} layers of {num_heads} heads; run `refrag "
                "heads find` for this checkpoint"
            )
        if self.digest is not None and self.digest != digest_weights(decoder):
            raise CheckpointError(
                f"{HEADS_FILE} holds heads of other weights than the decoder's; run `refrag heads find` for this "
                "checkpoint, or remove the file, and the middle layers' heads are read"
            )

    def save(self, directory: Path) -> None:
        values = {
            "weights_sha256": self.digest,
            "scoring": asdict(self.scoring),
            "heads": [
                {"layer": layer, "head": head, "weight": weight}
                for (layer, head), weight in zip(self.heads, self.weights, strict=True)
            ],
            "provenance": dict(self.provenance),
        }
        (directory / HEADS_FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "AttentionHeads | None":
        """Return the heads that the checkpoint in `directory` has; None if it has none.

        Raises CheckpointError for a file that cannot be read.
        """
        path = directory / HEADS_FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text())
            heads = sorted((int(one["layer"]), int(one["head"]), float(one["weight"])) for one in values["heads"])
            return cls(
                tuple((layer, head) for layer, head, _ in heads),
                tuple(weight for _, _, weight in heads),
                Scoring(**{name: values["scoring"][name] for name in (one.name for one in fields(Scoring))}),
                str(values["weights_sha256"]),
                values.get("provenance", {}),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}; run `refrag heads find` again") from None


def load_heads(directory: Path, decoder: "Decoder") -> AttentionHeads:
    """Return the checkpoint's heads, or the default; raise CheckpointError for those of other weights."""
    heads = AttentionHeads.load(directory) or AttentionHeads.default(decoder)
    heads.check(decoder)
    return heads


def digest_weights(decoder: "Decoder") -> str:
    """Return a hash of the decoder's weights, the same whichever type a server rounds them to."""
    digest = hashlib.sha256()
    for weight in decoder.backbone.parameters():
        step = max(1, weight.numel() // SAMPLES)
        # By way of float16, in which an export stores them.
        sample = weight.detach().flatten()[::step].half().bfloat16().float().cpu().numpy()
        digest.update(np.asarray(weight.shape, "<i8").tobytes())
        digest.update(np.ascontiguousarray(sample, "<f4").tobytes())
    return digest.hexdigest()
