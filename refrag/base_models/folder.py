"""Checks that a folder is a whole Hugging Face model whose tokenizer and weights agree; needs no torch."""

import json
from pathlib import Path
from typing import Any

from refrag.errors import CheckpointError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
# An encoder without it would be taken for one that reads the decoder's tokens.
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def check_folder(folder: Path, name: str | None = None) -> Path:
    """Return `folder`, or raise CheckpointError that says what it lacks; `name` is what to call it there."""
    name = name or str(folder)
    if not folder.is_dir():
        raise CheckpointError(f"base model {name} is missing; name a folder that holds a Hugging Face model")
    if lacking := missing_files(folder):
        raise CheckpointError(
            f"base model {name} lacks {', '.join(lacking)}; save model and fast tokenizer there with transformers' "
            "save_pretrained"
        )
    _refuse_unknown_ids(folder, name)
    return folder


def missing_files(folder: Path) -> list[str]:
    """Return the files that `folder` lacks, all shards of its weights included."""
    needed = [CONFIG, TOKENIZER, TOKENIZER_CONFIG]
    if (folder / WEIGHTS_INDEX).is_file():
        needed += sorted(set(_read(folder / WEIGHTS_INDEX)["weight_map"].values()))
    else:
        needed.append(WEIGHTS)
    return [name for name in needed if not (folder / name).is_file()]


def _refuse_unknown_ids(folder: Path, name: str) -> None:
    config = _read(folder / CONFIG)
    num_rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    highest = _highest_id(_read(folder / TOKENIZER))
    if num_rows is not None and highest >= num_rows:
        raise CheckpointError(
            f"base model {name} has a tokenizer with ids up to {highest}, but embeddings for {num_rows} tokens, "
            f"0 to {num_rows - 1}; put the model's own tokenizer there, or resize its embeddings"
        )


def _highest_id(tokenizer: dict[str, Any]) -> int:
    vocab = tokenizer.get("model", {}).get("vocab", {})
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return max([-1, *ids, *(token["id"] for token in tokenizer.get("added_tokens", []))])


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; it must hold one JSON object")
    return values
