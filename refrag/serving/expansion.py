"""Third step of the ensemble: chunk vectors → chunks to expand → the prompt's layout, and the vectors to project."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from refrag.config import RefragConfig
from refrag.context.chunking import PackedChunks
from refrag.context.frame import open_frame
from refrag.errors import RefragError
from refrag.machine.allocator import keep_freed_memory
from refrag.model.policy_file import load_policy
from refrag.model.tokenizers import load_decoder_tokenizer, load_decoder_vocab_size
from refrag.policies.base import Candidates
from refrag.policies.select import open_trained_policy, select_chunks
from refrag.prompt import lay_out_prompt, table_extra_ids
from refrag.request import ExpansionOptions
from refrag.serving.store_metrics import StoreMetrics
from refrag.serving.tensors import Tensors, int32, integer, scalar, text
from refrag.store.keys import load_fingerprint
from refrag.store.lookup import new_vectors
from refrag.store.settings import StoreSettings, open_store
from refrag.store.values import round_to_stored

# C context chunks, Q question chunks, R compressed chunks, E encoder width
# H different chunks of the context that the store had, M that were encoded


# An export never overwrites a config.pbtxt.
OLD_CONFIG = (
    "the tensor chunk_digests is missing, since the repository's config.pbtxt files come from an older release; delete "
    "those of preprocessing, expansion_policy and refrag, run the export again, and restart the server"
)


@dataclass(frozen=True)
class ExpansionSettings(StoreSettings):
    """Settings of the store, and

    num_threads: CPU threads of the policy network, which is small, while the decoder needs the cores.
    """

    num_threads: int = 1


class Expansion:
    """The service behind the model `expansion_policy`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: ExpansionSettings) -> None:
        keep_freed_memory()
        torch.set_num_threads(settings.num_threads)
        self.config = RefragConfig.load(checkpoint)
        self.trained = open_trained_policy(self.config, load_policy(checkpoint, self.config))
        self.vocab_size = load_decoder_vocab_size(checkpoint)
        self.head_ids = open_frame(self.config.template, load_decoder_tokenizer(checkpoint)).head_ids
        # Only written to: preprocessing has looked up what a request needs.
        self.store = open_store(settings, load_fingerprint(checkpoint), has_memory=False)
        self.metrics = StoreMetrics(self.store, "expansion_policy")

    def run(self, inputs: Tensors) -> Tensors:
        chunks = PackedChunks(inputs["chunk_token_ids"], inputs["chunk_passages"])
        if "chunk_digests" not in inputs:
            raise RefragError(OLD_CONFIG)
        digests, rows = inputs["chunk_digests"], inputs["vector_rows"]  # (C, 16), (C,)
        stored = inputs["stored_vectors"]  # (H, E)
        encoded = round_to_stored(inputs["chunk_vectors"])  # (M + Q, E)
        num_encoded = max(0, int(rows.max(initial=-1)) + 1 - len(stored))
        table = np.concatenate([stored.reshape(len(stored), encoded.shape[1]), encoded])  # (H + M + Q, E)
        # Gathered before they are widened: with a large context, memory traffic is what takes this step's time.
        vectors = torch.from_numpy(table[rows].astype(np.float32))  # (C, E)
        question_vectors = torch.from_numpy(table[len(stored) + num_encoded :].astype(np.float32))  # (Q, E)
        options = ExpansionOptions(
            expand_fraction=round(scalar(inputs, "resolved_expand_fraction") or 0.0, 6),
            policy=text(inputs, "resolved_policy") or "",
            seed=integer(inputs, "selection_seed") or 0,
        )
        candidates = Candidates(chunks.passages, vectors, question_vectors, self.trained, options.seed)
        expanded = select_chunks(options, candidates)
        if num_encoded:
            self._keep(np.array(digests), np.array(rows), encoded[:num_encoded], len(stored))
        prompt = lay_out_prompt(chunks, expanded, inputs["question_ids"].tolist(), self.vocab_size, self.head_ids)
        return {
            "compressed_vectors": at_least_one_row(vectors[prompt.compressed].numpy() if expanded else vectors.numpy()),
            "prompt_ids": prompt.input_ids,
            "prompt_table_extra_ids": table_extra_ids(prompt, self.vocab_size, digests),
            "expanded_chunks": int32(*expanded),
            "context_tokens": int32(chunks.num_tokens),
            "num_chunks": int32(len(chunks)),
        }

    def _keep(self, digests: np.ndarray, rows: np.ndarray, encoded: np.ndarray, num_stored: int) -> None:
        """Queue the new vectors to be stored. Arrays must be copies: a request's memory is gone once it is answered."""
        self.store.put_later(lambda: new_vectors(digests, rows, encoded, num_stored))

    def close(self) -> None:
        self.metrics.close()
        self.store.close()


def at_least_one_row(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors, or a row of zeros, which no slot reads, if there are none.

    The rows are the projector's batch, and Triton refuses an empty batch.
    """
    return vectors if len(vectors) else np.zeros((1, vectors.shape[1]), np.float32)
