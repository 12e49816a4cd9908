"""Describes what an engine of TensorRT-LLM takes through Triton: facts of a built engine, layout of its tensors.

The ensemble `refrag_trtllm` asks NVIDIA's own backend, so this decoder is no `DecoderBackend`: its request is laid out
by `refrag.serving.engine_request`, and its tokens become text in `refrag.serving.postprocessing`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refrag.errors import CheckpointError

# S ids of all words together

ENGINE_FILE, FACTS_FILE = "config.json", "engine.json"
# Releases 0.x have other inputs (random_seed, min_length, at first no prompt_table_extra_ids); later ones no engines.
OLDEST_RELEASE, NEWEST_RELEASE = (1, 0), (1, 2)
# Types of the table of chunk embeddings, which is the engine's.
TABLE_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
NO_WORD = -1


@dataclass(frozen=True)
class BuiltEngine:
    """A folder that `trtllm-build` has written. `read` raises CheckpointError for one that no prompt of ours fits.

    max_slots: of prompt and answer together. max_input_slots: of the prompt. max_rows: of one request's table.
    reuses_prefixes: whether it was built so that it may reuse the keys and values of prompts that begin alike.
    """

    folder: Path
    release: str
    dtype: str
    vocab_size: int
    width: int
    max_batch_size: int
    max_slots: int
    max_input_slots: int
    max_rows: int
    reuses_prefixes: bool

    @classmethod
    def read(cls, folder: Path) -> "BuiltEngine":
        path = folder / ENGINE_FILE
        try:
            values: Any = json.loads(path.read_text())
            model, build = values["pretrained_config"], values["build_config"]
            num_sequences = int(build["max_batch_size"])
            engine = cls(
                folder=folder.resolve(),
                release=str(values["version"]),
                dtype=str(model["dtype"]),
                vocab_size=int(model["vocab_size"]),
                width=int(model["hidden_size"]),
                max_batch_size=num_sequences,
                max_slots=int(build["max_seq_len"]),
                max_input_slots=int(build["max_input_len"]),
                # The runtime shares the table out among the sequences of a batch.
                max_rows=int(build["max_prompt_embedding_table_size"]) // max(num_sequences, 1),
                reuses_prefixes=bool(build["plugin_config"]["use_paged_context_fmha"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error!r}; name the folder that trtllm-build has written, with its config.json"
            ) from None
        engine.check()
        return engine

    def check(self) -> None:
        numbers = self.release.split(".")[:2]
        release = tuple(map(int, numbers)) if all(map(str.isdigit, numbers)) else ()
        if not OLDEST_RELEASE <= release <= NEWEST_RELEASE:
            raise CheckpointError(
                f"{self.folder} was built by TensorRT-LLM {self.release}; build it with 1.0 to 1.2, whose Triton "
                "backend has the tensors that refrag_trtllm sends"
            )
        if self.dtype not in TABLE_TYPES:
            raise CheckpointError(
                f"{self.folder} computes in {self.dtype}; build it in one of {', '.join(TABLE_TYPES)}: chunk "
                "embeddings enter it in its own type"
            )
        if self.max_rows < 1:
            raise CheckpointError(
                f"{self.folder} takes no chunk embeddings; build it with --max_prompt_embedding_table_size, the most "
                "compressed chunks of a prompt times max_batch_size"
            )


@dataclass(frozen=True)
class EngineFacts:
    """Facts of an engine for the models around it, kept beside them. `load` raises CheckpointError if it is missing.

    window: the most slots of prompt and answer together. eos_ids: tokens that end an answer, at least one.
    """

    dtype: str
    vocab_size: int
    width: int
    window: int
    max_input_slots: int
    max_rows: int
    eos_ids: list[int]
    pad_id: int

    def save(self, folder: Path) -> None:
        (folder / FACTS_FILE).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "EngineFacts":
        try:
            return cls(**json.loads((folder / FACTS_FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / FACTS_FILE} cannot be read: {error!r}; run the export again") from None


def lay_out_words(words: Sequence[Sequence[int]]) -> np.ndarray:
    """Return words of one or more ids as the engine reads them.  INT32 (1, 2, S)

    words        [5 6] [7]
    ids           5  6  7
    their ends    2  3 -1
    """
    ids = [token_id for word in words for token_id in word] or [0]
    ends = np.cumsum([len(word) for word in words], dtype=np.int32)
    layout = np.full((1, 2, len(ids)), NO_WORD, np.int32)
    layout[0, 0], layout[0, 1, : len(ends)] = ids, ends
    return layout
