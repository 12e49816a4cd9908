"""Middle of the graph: chunk vectors → which chunks to expand → the prompt's layout, and the vectors to project."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from refrag.config import RefragConfig
from refrag.model.checkpoint import load_decoder_tokenizer, load_decoder_vocab_size, load_policy
from refrag.prompt import lay_out_prompt
from refrag.request import ExpansionOptions
from refrag.selection import select_chunks
from refrag.serving.preprocessing import unpack_chunks
from refrag.serving.tensors import Tensors, int32, integer, scalar, text

# C context chunks, Q question chunks, R compressed chunks, E encoder width


@dataclass(frozen=True)
class ExpansionSettings:
    """num_threads: CPU threads of the policy network; it is small, and the decoder wants the cores."""

    num_threads: int = 1


class Expansion:
    def __init__(self, checkpoint: Path, settings: ExpansionSettings) -> None:
        torch.set_num_threads(settings.num_threads)
        self.config = RefragConfig.load(checkpoint)
        self.policy = load_policy(checkpoint, self.config)
        self.vocab_size = load_decoder_vocab_size(checkpoint)
        self.bos_id = load_decoder_tokenizer(checkpoint).bos_token_id

    def run(self, inputs: Tensors) -> Tensors:
        chunks = unpack_chunks(inputs["chunk_token_ids"], inputs["chunk_passages"])
        vectors = torch.tensor(inputs["chunk_vectors"])  # (C + Q, E)
        options = ExpansionOptions(
            expand_fraction=round(scalar(inputs, "resolved_expand_fraction") or 0.0, 6),
            policy=text(inputs, "resolved_policy"),  # type: ignore[arg-type]
            seed=integer(inputs, "selection_seed") or 0,
        )
        expanded = select_chunks(
            options,
            chunks,
            self.policy,
            vectors[: len(chunks)],
            vectors[len(chunks) :],
            self.config.policy_confidence,
        )
        prompt = lay_out_prompt(chunks, expanded, inputs["question_ids"].tolist(), self.vocab_size, self.bos_id)
        return {
            "compressed_vectors": at_least_one_row(vectors[prompt.compressed].numpy()),
            "prompt_ids": prompt.input_ids,
            "prompt_table_extra_ids": prompt.extra_ids,
            "expanded_chunks": int32(*expanded),
            "context_tokens": int32(sum(map(len, chunks))),
            "num_chunks": int32(len(chunks)),
        }


def at_least_one_row(vectors: np.ndarray) -> np.ndarray:
    """The projector takes the rows as its batch, and Triton refuses an empty batch: a dummy row that no slot reads."""
    return vectors if len(vectors) else np.zeros((1, vectors.shape[1]), np.float32)
