"""Tells what the answers of a run depend on: its options, and hashes of the files that it reads.

Other files may lie in the same folders, reports and answers of runs among them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refrag.config import CONFIG_NAME
from refrag.context.deployed import DECODER, ENCODER
from refrag.data.questions.beir import beir_files
from refrag.data.questions.passages import find_pool
from refrag.data.questions.read import Form, detect_form
from refrag.evaluation.questions.options import QuestionOptions
from refrag.model.attention_heads import HEADS_FILE

# Files of a Hugging Face folder: settings, weights with their index, and what makes a fast tokenizer.
HUGGING_FACE = (
    "*config.json",
    "*.safetensors*",
    "*.bin*",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
)
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Inputs:
    """The files to read: the models, and a question set as `read_questions` takes it."""

    checkpoint: Path
    plain: Path | None
    data: Path
    form: Form | None = None
    passages: Path | None = None
    split: str | None = None


def identify(inputs: Inputs, options: QuestionOptions) -> dict[str, Any]:
    """Return everything that an answer depends on, weights and data by their hashes."""
    return {
        "checkpoint": digest_model(inputs.checkpoint),
        "plain": None if inputs.plain is None else digest_model(inputs.plain),
        "data": _digest_data(inputs),
        "passages": _digest_passages(inputs),
        "split": inputs.split,
        **options.identity(),
    }


def digest_model(folder: Path) -> str:
    """Return a hash of the files of a REFRAG checkpoint or of a Hugging Face folder, with their names."""
    is_checkpoint = (folder / CONFIG_NAME).is_file()
    return digest_files(_checkpoint_files(folder) if is_checkpoint else _find(folder, HUGGING_FACE), folder)


def digest_files(files: Iterable[Path], folder: Path) -> str:
    """Return a hash of the files and their names in the folder, whatever their order."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()[:16]


def _checkpoint_files(folder: Path) -> Iterator[Path]:
    yield from _find(folder, (CONFIG_NAME, HEADS_FILE, "*.safetensors"))
    for part in (DECODER, ENCODER):
        yield from _find(folder / part, ("**/*",))


def _find(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _digest_data(inputs: Inputs) -> str:
    data = inputs.data
    return digest_files(beir_files(data, inputs.split), data) if data.is_dir() else _digest_file(data)


def _digest_passages(inputs: Inputs) -> str | None:
    """Return the hash of the passage file, for the forms that have one of its own."""
    if inputs.passages is not None:
        return _digest_file(inputs.passages)
    inside = (inputs.form or detect_form(inputs.data)) in ("squad", "beir")
    return None if inside else _digest_file(find_pool(inputs.data))


def _digest_file(path: Path) -> str:
    # Without its name: a copy holds the same.
    return digest_files([path], path)
