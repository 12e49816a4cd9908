"""The decoder's token embeddings alone, for a decoder whose other weights are loaded elsewhere."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from refrag.errors import CheckpointError

# S slots, R rows of chunk embeddings, D decoder width, V vocabulary size

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class TokenEmbeddings:
    """The matrix by which the decoder reads tokens.  weight (V, D)"""

    weight: Tensor

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def embed_prompt(self, input_ids: Tensor, chunk_embeddings: Tensor) -> Tensor:
        """Return token embeddings, and row (id − V) of `chunk_embeddings` (R, D) where id ≥ V.  (S,) -> (S, D)"""
        is_chunk = input_ids >= self.vocab_size
        embedded = self.weight[input_ids.masked_fill(is_chunk, 0)]
        rows = chunk_embeddings[input_ids[is_chunk] - self.vocab_size].to(embedded.dtype)
        embedded[is_chunk] = rows.reshape(len(rows), self.width)
        return embedded


def load_token_embeddings(folder: Path, dtype: torch.dtype) -> TokenEmbeddings:
    """Load them from a Hugging Face folder; raise CheckpointError if they are no matrix with one row for each token."""
    name, scale = _describe(folder)
    # Scaled as it is read, in the precision that it is stored in.
    return TokenEmbeddings((_read(folder, name) * scale).to(dtype))


def _describe(folder: Path) -> tuple[str, float]:
    """Return the name of the embeddings' weight, and what it is multiplied by, from the model without its weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embeddings = model.get_input_embeddings()
    scale = getattr(embeddings, "scalar_embed_scale", 1.0)
    is_plain = type(embeddings) is nn.Embedding or hasattr(embeddings, "scalar_embed_scale")
    if not (isinstance(embeddings, nn.Embedding) and is_plain):
        raise CheckpointError(
            f"the decoder embeds tokens with a {type(embeddings).__name__}; it must be an Embedding, a matrix with one "
            "row for each token; name another decoder"
        )
    name = next(name for name, module in model.named_modules() if module is embeddings)
    return f"{name}.weight", float(scale)


def _read(folder: Path, name: str) -> Tensor:
    path = _file_with(folder, name)
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {path.name}; its weights must be safetensors files")
    with safe_open(path, framework="pt") as weights:
        if name not in weights.keys():  # noqa: SIM118
            raise CheckpointError(f"{path} has no {name}, the decoder's token embeddings")
        return weights.get_tensor(name)


def _file_with(folder: Path, name: str) -> Path:
    """Return the file of the weights that holds this one: the only file, or the one that the index names."""
    if not (folder / INDEX).is_file():
        return folder / WEIGHTS
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    if name not in places:
        raise CheckpointError(f"{folder / INDEX} does not name {name}, the decoder's token embeddings")
    return folder / places[name]
