"""Third step of the ensemble: chunk vectors → chunks to expand → the prompt's layout, and the vectors to project."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from refrag.config import RefragConfig
from refrag.context.chunking import NO_TOKEN, PackedChunks
from refrag.context.deployed import DeployedFrame
from refrag.errors import InvalidRequest, RefragError
from refrag.machine.allocator import keep_freed_memory
from refrag.model.policy_file import load_policy
from refrag.model.similarity import similarities
from refrag.policies.base import Candidates
from refrag.policies.select import is_chosen_by_decoder, open_trained_policy, select_chunks, weigh_equally
from refrag.prompt import lay_out_prompt, table_extra_ids
from refrag.serving.evidence import check_passages
from refrag.serving.fallback import read_fallback
from refrag.serving.parameters import check_least
from refrag.serving.store_metrics import StoreMetrics
from refrag.serving.tensors import Tensors, check_range, flag, float32, int32, integer, strings, text
from refrag.serving.triton import close_metrics
from refrag.serving.vectors import OLD_CONFIG, NewVectors, read_vectors
from refrag.store.keys import EncoderIdentity
from refrag.store.settings import StoreSettings, open_store
from refrag.store.signing import load_graph_key

# C context chunks, Q question chunks, R compressed chunks, E encoder width

# What goes to the decoder if the chunks are chosen already.
NOTHING_TO_SENSE: Tensors = {
    "sense_policy": strings(""),
    "sense_budget": int32(0),
    "sense_raised_budget": int32(0),
    "sense_chunk_ids": np.zeros((0, 0), np.int32),
    "sense_passages": int32(),
    "sense_similarities": float32(),
}


@dataclass(frozen=True)
class ExpansionSettings(StoreSettings):
    """Settings of the store, and

    num_threads: CPU threads of the policy network, which is small, while the decoder needs the cores.
    max_chunks: limit for context and question chunks of one request together, also of one that does not come through
    preprocessing.
    keep_unsigned_vectors: whether new vectors are stored without proof that this server's encoder made them, for
    servers whose encoder cannot sign and whose inner models nobody can reach.

    Raises SetupError for a number below 1.
    """

    num_threads: int = 1
    max_chunks: int = 8192
    keep_unsigned_vectors: bool = False

    def __post_init__(self) -> None:
        check_least(self, 1, "num_threads", "max_chunks")


class Expansion:
    """The service behind the model `expansion_policy`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: ExpansionSettings) -> None:
        keep_freed_memory()
        torch.set_num_threads(settings.num_threads)
        self.settings = settings
        self.config = RefragConfig.load(checkpoint)
        self.encoder = EncoderIdentity.load(checkpoint)
        self.trained = open_trained_policy(self.config, load_policy(checkpoint, self.config))
        self.deployed = DeployedFrame.load(checkpoint)
        self.key = load_graph_key()
        # Only written to: preprocessing has looked up what a request needs.
        self.store = open_store(settings, self.encoder, has_memory=False)
        self.metrics = StoreMetrics(self.store, "expansion_policy")

    def run(self, inputs: Tensors) -> Tensors:
        chunks = self._read_chunks(inputs)
        budget = _read_budget(inputs, len(chunks))
        raised = integer(inputs, "raised_budget") or 0
        fallback = read_fallback(inputs, "raised_budget", raised, budget, len(chunks))
        num_needed = 0 if budget == len(chunks) else len(chunks)
        found = read_vectors(inputs, self.encoder.width, num_needed)
        self._check_size(len(chunks), len(found.encoded) - found.num_new)
        table, num_context_rows = found.table(), len(found.stored) + found.num_new
        # Gathered before they are widened: with a large context, memory traffic is what takes this step's time.
        vectors = torch.from_numpy(table[found.rows].astype(np.float32))  # (C, E)
        question_vectors = torch.from_numpy(table[num_context_rows:].astype(np.float32))  # (Q, E)
        seed = integer(inputs, "selection_seed") or 0
        candidates = Candidates(chunks.passages, vectors, question_vectors, self.trained, seed)
        policy = text(inputs, "resolved_policy") or ""
        is_sensed = is_chosen_by_decoder(policy, budget, len(chunks), fallback)
        selection = weigh_equally((), len(chunks)) if is_sensed else select_chunks(policy, candidates, budget, fallback)
        expanded = selection.numbers
        if found.num_new:
            self._keep(found.take_new())
        question_ids, vocab_size = inputs["question_ids"].tolist(), self.deployed.vocab_size
        prompt = lay_out_prompt(chunks, expanded, question_ids, vocab_size, self.deployed.frame.head_ids)
        return {
            "compressed_vectors": at_least_one_row(vectors[prompt.compressed].numpy() if expanded else vectors.numpy()),
            "prompt_ids": prompt.input_ids,
            "prompt_table_extra_ids": table_extra_ids(prompt, vocab_size, found.digests),
            "expanded_chunks": int32(*expanded),
            "plain_prompt_ids": self._plain_ids(inputs, chunks, len(expanded)),
            "chunk_weights": selection.weights,
            "context_tokens": int32(chunks.num_tokens),
            "num_chunks": int32(len(chunks)),
            **(_to_sense(policy, budget, raised, chunks, candidates) if is_sensed else NOTHING_TO_SENSE),
        }

    def _plain_ids(self, inputs: Tensors, chunks: PackedChunks, num_expanded: int) -> np.ndarray:
        """Return the plain prompt of a shadowed request; nothing for others, and where the prompt is plain anyway."""
        if num_expanded == len(chunks) or not flag(inputs, "is_shadowed", default=False):
            return int32()
        question_ids, frame = inputs["question_ids"].tolist(), self.deployed.frame
        return lay_out_prompt(
            chunks, range(len(chunks)), question_ids, self.deployed.vocab_size, frame.head_ids
        ).input_ids

    def _read_chunks(self, inputs: Tensors) -> PackedChunks:
        token_ids, passages = inputs["chunk_token_ids"], inputs["chunk_passages"]
        if len(passages) != len(token_ids):
            raise InvalidRequest(
                f"chunk_passages has {len(passages)} numbers for {len(token_ids)} chunks; send as many"
            )
        check_passages("chunk_passages", passages)
        vocabulary, vocab_size = "the decoder's vocabulary", self.deployed.vocab_size
        check_range("chunk_token_ids", token_ids, vocab_size, f"{vocabulary}, {NO_TOKEN} for none", NO_TOKEN)
        check_range("question_ids", inputs["question_ids"], vocab_size, vocabulary)
        return PackedChunks(token_ids, passages)

    def _check_size(self, num_chunks: int, num_question_chunks: int) -> None:
        if num_chunks + num_question_chunks > self.settings.max_chunks:
            raise InvalidRequest(
                f"chunk_token_ids holds {num_chunks} chunks, and chunk_vectors {num_question_chunks} of the question; "
                f"the limit is {self.settings.max_chunks}; send fewer"
            )

    def _keep(self, new: NewVectors) -> None:
        """Queue the new vectors to be stored."""
        self.store.put_later(lambda: self._storable(new))

    def _storable(self, new: NewVectors) -> dict[bytes, bytes]:
        are_signed = new.are_signed(self.key)
        self.metrics.count_unsigned(int((~are_signed).sum()))
        return new.values(are_signed | self.settings.keep_unsigned_vectors)

    def close(self) -> None:
        self.metrics.close()
        self.store.close()
        close_metrics()


def _to_sense(policy: str, budget: int, raised: int, chunks: PackedChunks, candidates: Candidates) -> Tensors:
    """Return what the decoder needs to choose the chunks itself."""
    found = similarities(candidates.chunk_vectors, candidates.question_vectors)
    return {
        "sense_policy": strings(policy),
        "sense_budget": int32(budget),
        "sense_raised_budget": int32(raised),
        "sense_chunk_ids": chunks.token_ids,
        "sense_passages": chunks.passages,
        "sense_similarities": found.numpy(),
    }


def _read_budget(inputs: Tensors, num_chunks: int) -> int:
    budget = integer(inputs, "expansion_budget")
    if budget is None:
        raise RefragError(OLD_CONFIG.format("expansion_budget"))
    if not 0 <= budget <= num_chunks:
        raise InvalidRequest(
            f"expansion_budget is {budget}; it must lie between 0 and the {num_chunks} chunks there are"
        )
    return budget


def at_least_one_row(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors, or a row of zeros, which no slot reads, if there are none.

    The rows are the projector's batch, and Triton refuses an empty batch.
    """
    return vectors if len(vectors) else np.zeros((1, vectors.shape[1]), np.float32)
