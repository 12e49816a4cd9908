"""The whole request path in one process: the reference that the ensemble must equal, and what evaluation runs.

    text → chunks → chunk vectors → which to expand → mixed prompt → tokens

Each method is one step; the ensemble's models are built on the same functions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from refrag.context.chunking import NULL_QUESTION, Chunk, Chunker, PackedChunks
from refrag.context.conversation import DEFAULT_TEXT_TOKENS
from refrag.context.prepare import ContextLimits, PreparedContext, prepare_context
from refrag.decoders.base import Delta, Limits, MixedPrompt, check_prompt, join_deltas
from refrag.engine.generation import generate
from refrag.engine.sensing import Senses
from refrag.model.attention_heads import AttentionHeads
from refrag.model.attention_weights import read_attention
from refrag.model.checkpoint import Checkpoint
from refrag.model.encoder import ChunkEncoder, encode_in_batches
from refrag.model.similarity import similarities
from refrag.policies.base import Candidates, ChunkAttention, Selection
from refrag.policies.budget import budget_of, fallback_of
from refrag.policies.select import is_chosen_by_decoder, open_trained_policy, select_chunks
from refrag.prompt import Prompt, lay_out_prompt
from refrag.request import ExpansionOptions, Request, SamplingParams
from refrag.store.values import round_to_stored

# C context chunks, Q question chunks, R compressed chunks, E encoder width, D decoder width

ENCODER_BATCH = 256


@dataclass(frozen=True)
class Answer:
    """A whole answer, the layout of its prompt, and the numbers of the chunks that were expanded in it.

    citations: spans of passages that the prompt holds in full, INT32 (N, 3), as `refrag.citations` has them.
    passage_weights: each passage's share of the policy's weight, FP32 (P,).
    num_cut_turns: earlier turns that the window had no room for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    prompt: Prompt
    expanded: list[int]
    citations: np.ndarray
    passage_weights: np.ndarray
    num_cut_turns: int


class Pipeline:
    """Answers questions with one checkpoint, by the same steps as the ensemble.

    history_text_tokens: tokens of the newest earlier turns that stay text at most; `preprocessing` has it too.
    """

    def __init__(self, checkpoint: Checkpoint, history_text_tokens: int = DEFAULT_TEXT_TOKENS) -> None:
        self.checkpoint = checkpoint
        self.history_text_tokens = history_text_tokens
        self.chunker = checkpoint.chunker
        self.trained = open_trained_policy(checkpoint.config, checkpoint.policy)

    def answer(self, request: Request, sampling: SamplingParams | None = None) -> Answer:
        """Return the whole answer, with the chunks expanded that the request's policy selects.

        Raises InvalidRequest for a request that cannot be served with this checkpoint.
        """
        sampling = sampling or SamplingParams()
        context = self.prepare(request, sampling.max_tokens)
        vectors, question_vectors = self.encode(context)
        selection = self.select(request.expansion, context, vectors, question_vectors)
        prompt, mixed = self.build_prompt(context, selection.numbers, vectors)
        whole = join_deltas(list(self.generate(mixed, sampling)))
        return Answer(
            text=whole.text,
            token_ids=whole.token_ids,
            finish_reason=whole.finish_reason,
            prompt=prompt,
            expanded=list(selection.numbers),
            citations=context.sources.cite(selection.numbers),
            passage_weights=context.sources.share(selection.weights),
            num_cut_turns=context.num_cut_turns,
        )

    def prepare(self, request: Request, max_tokens: int) -> PreparedContext:
        """Return the request as tokens, with room for an answer of `max_tokens`."""
        return prepare_context(request, self.chunker, ContextLimits(max_tokens, text_tokens=self.history_text_tokens))

    def encode(self, context: PreparedContext) -> tuple[Tensor, Tensor]:
        """Return the vectors of the context's chunks (C, E) and of the question's (Q, E), rounded as the store does."""
        vectors = encode_chunks(
            self.checkpoint.encoder, self.chunker, PackedChunks.of(context.chunks, context.question_chunks)
        )
        rounded = torch.from_numpy(round_to_stored(vectors.cpu().numpy()).astype(np.float32)).to(vectors.device)
        return rounded[: len(context.chunks)], rounded[len(context.chunks) :]

    def select(
        self, options: ExpansionOptions, context: PreparedContext, vectors: Tensor, question_vectors: Tensor
    ) -> Selection:
        """Return the chunks to expand, by the policy that the options name."""
        chunks, num_other_slots = context.chunks, self.chunker.num_other_slots(context.question_ids)
        candidates = Candidates(chunks.passages, vectors, question_vectors, self.trained, options.seed)
        limited, window = context.limit(options), self.checkpoint.config.max_prompt_slots
        budget = budget_of(limited, chunks.lengths, num_other_slots, window)
        fallback = fallback_of(limited, budget, chunks.lengths, num_other_slots, window - context.answer_tokens)
        if is_chosen_by_decoder(options.policy, budget, len(chunks), fallback):
            attention = self.read_attention(context, vectors, question_vectors, options.sense_tokens)
            candidates = replace(candidates, attention=attention)
        return select_chunks(options.policy, candidates, budget, fallback)

    def read_attention(
        self, context: PreparedContext, vectors: Tensor, question_vectors: Tensor, num_tokens: int = 0
    ) -> ChunkAttention:
        """Return the decoder's attention to the chunks, all of them compressed, as transformers tells it.

        num_tokens: generated tokens whose attention counts besides the question's, as many as the window holds. Raises
        InvalidRequest, as the engine does, if the window has no room for a question that asks nothing.
        """
        _, prompt = self.build_prompt(context, [], vectors)
        decoder, window = self.checkpoint.decoder, self.checkpoint.config.max_prompt_slots
        null_ids = self.chunker.question_ids(NULL_QUESTION)
        Senses(self.heads, null_ids).check_window(prompt, decoder.vocab_size, window)
        num_tokens = min(num_tokens, window - len(prompt.input_ids))
        question, null = read_attention(
            decoder, prompt.input_ids, prompt.chunk_embeddings, null_ids, self.heads, num_tokens
        )
        found = similarities(vectors, question_vectors).cpu().numpy()
        return ChunkAttention(question, null, np.array(self.heads.weights), found, self.heads.scoring)

    @cached_property
    def heads(self) -> AttentionHeads:
        """Return the heads that the policy `attention` reads; raise CheckpointError for those of other weights."""
        heads = self.checkpoint.heads or AttentionHeads.default(self.checkpoint.decoder)
        heads.check(self.checkpoint.decoder)
        return heads

    @torch.inference_mode()
    def build_prompt(
        self, context: PreparedContext, expanded: Sequence[int], vectors: Tensor
    ) -> tuple[Prompt, MixedPrompt]:
        """Return the prompt's layout, and the mixed prompt with chunk embeddings (R, D) for the decoder."""
        prompt = lay_out_prompt(
            context.chunks,
            expanded,
            context.question_ids,
            self.checkpoint.decoder.vocab_size,
            self.chunker.frame.head_ids,
        )
        rows = torch.from_numpy(prompt.compressed).to(vectors.device)
        embeddings = self.checkpoint.projector(vectors[rows])
        return prompt, MixedPrompt(torch.from_numpy(prompt.input_ids).long().to(embeddings.device), embeddings)

    def generate(self, prompt: MixedPrompt, sampling: SamplingParams) -> Iterator[Delta]:
        """Return the answer's deltas, or raise InvalidRequest if the prompt does not fit the decoder."""
        decoder = self.checkpoint.decoder
        check_prompt(
            prompt, sampling, Limits(decoder.vocab_size, decoder.width, self.checkpoint.config.max_prompt_slots)
        )
        return generate(decoder, self.checkpoint.decoder_tokenizer, prompt, sampling)


@torch.inference_mode()
def encode_chunks(encoder: ChunkEncoder, chunker: Chunker, chunks: Sequence[Chunk]) -> Tensor:
    """Return the chunks' vectors, ENCODER_BATCH at a time to bound memory.  C chunks -> (C, E)"""
    ids, mask = chunker.encoder_inputs(chunks)
    input_ids, attention_mask = (torch.from_numpy(array).to(encoder.device) for array in (ids, mask))
    return encode_in_batches(encoder, input_ids, attention_mask, ENCODER_BATCH)
