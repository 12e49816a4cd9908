"""The passage encoder of collections: a sentence encoder in sentence-transformers' form → ONNX model and its form.

It is the one that is named, else the base model of the checkpoint's encoder, untouched by training, if that is one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel

from refrag.config import Pooling, RefragConfig
from refrag.context.deployed import TOKENIZER_FILE
from refrag.errors import CheckpointError
from refrag.export.graphs import export_passage_encoder
from refrag.export.parity import Parity, check_passage_encoder
from refrag.export.precision import Precision, TracedPrecision
from refrag.model.backbones import load_pretrained
from refrag.model.encoder import ChunkEncoder
from refrag.model.tokenizers import load_tokenizer
from refrag.retrieval.base import PassageEncoderIdentity
from refrag.retrieval.sentences import TOKENIZER, SentenceForm

MODULES, PROMPTS, LIMITS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
# The modules of a sentence encoder that the exported one has too, by the last part of their types.
SUPPORTED = ("Transformer", "Pooling", "Normalize")
# By their names in the pooling's config.
POOLINGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
PASSAGE_PROMPTS, QUESTION_PROMPTS = ("document", "passage"), ("query",)
FINGERPRINT_BYTES = 16


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder's folder, and how it makes one vector of a text."""

    folder: Path
    pooling: Pooling

    @classmethod
    def read(cls, folder: Path) -> "SentenceEncoder":
        """Raise CheckpointError if the folder holds no sentence encoder, or one that is not supported."""
        if not is_sentence_encoder(folder):
            raise CheckpointError(
                f"{folder} has no {MODULES}; a passage encoder is a sentence encoder as sentence-transformers saves it"
            )
        modules = {each["type"].rpartition(".")[2]: each["path"] for each in _read(folder / MODULES)}
        if unknown := sorted(modules.keys() - set(SUPPORTED)):
            raise CheckpointError(f"{folder} has the modules {unknown}; supported are {', '.join(SUPPORTED)}")
        config = _read(folder / modules.get("Pooling", "1_Pooling") / "config.json")
        asked = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
        if len(asked) != 1 or asked[0] not in POOLINGS:
            raise CheckpointError(f"{folder} pools by {asked}; supported is one of {', '.join(POOLINGS)}")
        return cls(folder, POOLINGS[asked[0]])

    def load(self) -> ChunkEncoder:
        return ChunkEncoder(load_pretrained(AutoModel, self.folder), self.pooling).eval()

    def form(self, encoder: ChunkEncoder, precision: Precision) -> SentenceForm:
        """Return what the server has to know of it."""
        positions = encoder.backbone.config.max_position_embeddings
        limits = _read(self.folder / LIMITS) if (self.folder / LIMITS).exists() else {}
        prompts = (_read(self.folder / PROMPTS) if (self.folder / PROMPTS).exists() else {}).get("prompts") or {}
        settings: dict[str, Any] = {
            "max_length": min(positions, limits.get("max_seq_length") or positions),
            "pad_id": encoder.backbone.config.pad_token_id or 0,
            "passage_prefix": _first(prompts, PASSAGE_PROMPTS),
            "question_prefix": _first(prompts, QUESTION_PROMPTS),
        }
        fingerprint = self._fingerprint({**settings, "pooling": self.pooling, "precision": precision})
        return SentenceForm(PassageEncoderIdentity(fingerprint, encoder.width), **settings)

    def _fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Return a digest of everything that turns a text into its vector."""
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES)
        for path in (*sorted(self.folder.glob("*.safetensors")), self.folder / TOKENIZER_FILE):
            digest.update(f"\0{path.name}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def find_sentence_encoder(checkpoint: Path, named: Path | None) -> SentenceEncoder | None:
    """Return the passage encoder to deploy, None if none is named and the checkpoint's base is none.

    Raises CheckpointError if the one that is named cannot be used.
    """
    if named is not None:
        return SentenceEncoder.read(named)
    base = RefragConfig.load(checkpoint).encoder_base
    if base is None:
        return None
    # A checkpoint that names no base needs no cache of them.
    from refrag.base_models.cache import resolve

    folder = resolve(base)
    return SentenceEncoder.read(folder) if is_sentence_encoder(folder) else None


def is_sentence_encoder(folder: Path) -> bool:
    return (folder / MODULES).is_file()


def build_passage_encoder(source: SentenceEncoder, model: Path, precision: Precision) -> tuple[SentenceForm, Parity]:
    """Write the ONNX model, and return the encoder's form and the error against torch; int8 is exported as FP32."""
    traced: TracedPrecision = "fp32" if precision == "int8" else precision
    encoder = source.load()
    form = source.form(encoder, traced)
    export_passage_encoder(encoder, model, traced, form.max_length)
    return form, check_passage_encoder(model, encoder, form.max_length, traced)


def save_form(source: SentenceEncoder, form: SentenceForm, folder: Path) -> None:
    """Write what a model needs that reads texts for the encoder, into an existing folder."""
    form.save(folder)
    load_tokenizer(source.folder).backend_tokenizer.save(str(folder / TOKENIZER))


def _first(prompts: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
