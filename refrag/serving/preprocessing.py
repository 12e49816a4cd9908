"""First step of the ensemble: checks what the caller sent, and turns text into decoder ids and encoder inputs."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refrag.config import RefragConfig
from refrag.context.chunking import PackedChunks
from refrag.context.conversation import DEFAULT_TEXT_TOKENS
from refrag.context.prepare import ContextLimits, PreparedContext, prepare_context
from refrag.errors import InvalidRequest, SetupError
from refrag.history import read_turns
from refrag.machine.allocator import keep_freed_memory
from refrag.policies import POLICIES
from refrag.policies.budget import budget_of, fallback_of
from refrag.request import EXPAND_ALL, ExpansionOptions, Request
from refrag.serving.parameters import check_least
from refrag.serving.passages import open_chunker
from refrag.serving.store_metrics import StoreMetrics
from refrag.serving.tensors import Tensors, check_bytes, flag, int32, integer, scalar, strings, text, texts
from refrag.serving.triton import close_metrics
from refrag.store.keys import DIGEST_BYTES, EncoderIdentity
from refrag.store.lookup import NOTHING_NEEDED, Lookup, look_up
from refrag.store.settings import StoreSettings, open_store
from refrag.store.signing import CHUNK, load_graph_key, sign_rows

# C context chunks, Q question chunks, K tokens per chunk, L encoder tokens per chunk

ALLOWED_SHADOWS = "allowed is 0 (no request is answered a second time) to 1 (every request is)"
TEXT_INPUTS = ("text_input", "passages", "history")


@dataclass(frozen=True)
class PreprocessingSettings(StoreSettings):
    """Settings of the store, and

    max_chunks: limit for context and question chunks of one request together; at most chunk_encoder's max_batch_size.
    max_text_bytes: limit for question, passages and history together, checked before anything is tokenised.
    shadow_fraction: share of the requests to answer a second time from the plain prompt, where a request does not say.
    history_text_tokens: tokens of the newest earlier turns that stay text at most; older ones become chunks.
    default_max_tokens: the decoder's, for which a conversation leaves room.

    Raises SetupError for values that are not allowed.
    """

    max_chunks: int = 8192
    max_text_bytes: int = 4 * 1024 * 1024
    shadow_fraction: float = 0.0
    history_text_tokens: int = DEFAULT_TEXT_TOKENS
    default_max_tokens: int = 64

    def __post_init__(self) -> None:
        check_least(self, 1, "max_chunks", "max_text_bytes", "default_max_tokens")
        check_least(self, 0, "history_text_tokens")
        if not 0 <= self.shadow_fraction <= 1:
            raise SetupError(f"shadow_fraction is {self.shadow_fraction}; {ALLOWED_SHADOWS}")


class Preprocessing:
    """The service behind the model `preprocessing`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: PreprocessingSettings) -> None:
        keep_freed_memory()
        self.settings = settings
        self.config = RefragConfig.load(checkpoint)
        self.store = open_store(settings, EncoderIdentity.load(checkpoint))
        self.chunker, self.tokens = open_chunker(checkpoint, self.config, self.store)
        self.key = load_graph_key()
        self.metrics = StoreMetrics(self.store, "preprocessing")

    def run(self, inputs: Tensors) -> Tensors:
        arrival = time.monotonic_ns()
        self._refuse_unserved(inputs)
        request, is_shadowed = self._read_request(inputs), self._draw_shadow(inputs)
        context = prepare_context(request, self.chunker, self._limits(inputs))
        self._check_size(context)
        self.tokens.keep(context.new_tokens)
        chunks = context.chunks
        num_other_slots, window = self.chunker.num_other_slots(context.question_ids), self.config.max_prompt_slots
        options = context.limit(request.expansion)
        budget = budget_of(options, chunks.lengths, num_other_slots, window)
        fallback = fallback_of(options, budget, chunks.lengths, num_other_slots, window - context.answer_tokens)
        lookup = NOTHING_NEEDED if budget == len(chunks) else self._look_up(chunks)
        to_encode = PackedChunks.of(chunks[lookup.lacking], context.question_chunks)
        ids, mask = self.chunker.encoder_inputs(to_encode)
        digests = np.frombuffer(b"".join(lookup.digests), np.uint8).reshape(-1, DIGEST_BYTES)  # (C, 16)
        num_lacking = len(lookup.lacking)
        signed = (digests[lookup.lacking], ids[:num_lacking], mask[:num_lacking])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "stored_vectors": lookup.stored,
            "vector_rows": lookup.rows,
            "num_stored_chunks": int32(int((lookup.rows < len(lookup.stored)).sum())),
            "chunk_token_ids": chunks.token_ids,
            "chunk_passages": chunks.passages,
            "chunk_spans": context.sources.spans,
            "num_passages": int32(context.sources.num_passages),
            "num_cut_turns": int32(context.num_cut_turns),
            "chunk_digests": digests,
            "chunk_tags": sign_rows(self.key, CHUNK, signed),
            "question_ids": np.array(context.question_ids, np.int32),
            "expansion_budget": int32(budget),
            "raised_budget": int32(fallback.budget if fallback else 0),
            "resolved_policy": strings(request.expansion.policy),
            "is_shadowed": np.array([is_shadowed]),
            "selection_seed": np.array([request.expansion.seed], np.uint64),
            "arrival_time_ns": np.array([arrival], np.int64),
        }

    def close(self) -> None:
        self.metrics.close()
        self.store.close()
        close_metrics()

    def _look_up(self, chunks: PackedChunks) -> Lookup:
        with self.metrics.time_lookup():
            return look_up(self.store, chunks.token_ids)

    def _refuse_unserved(self, inputs: Tensors) -> None:
        if not flag(inputs, "exclude_input_in_output", default=True):
            raise InvalidRequest(
                "exclude_input_in_output is false; the prompt is never returned, so leave it out or send true"
            )

    def _read_request(self, inputs: Tensors) -> Request:
        check_bytes(inputs, TEXT_INPUTS, self.settings.max_text_bytes)
        expand_fraction, named = scalar(inputs, "expand_fraction"), text(inputs, "policy")
        policy = self.config.policy if named is None else named
        max_prompt_slots = integer(inputs, "max_prompt_slots")
        gives_way = expand_fraction is None and max_prompt_slots is None
        if expand_fraction is None:
            # A request that limits the slots alone is to make use of them.
            expand_fraction = self.config.expand_fraction if max_prompt_slots is None else 1.0
        expansion = ExpansionOptions(
            expand_fraction=expand_fraction,
            max_prompt_slots=max_prompt_slots,
            policy=policy,
            seed=integer(inputs, "seed") or 0,
            gives_way=gives_way and policy != EXPAND_ALL,
            sense_tokens=integer(inputs, "sense_tokens") or 0,
            min_confidence=scalar(inputs, "min_confidence") or 0.0,
        )
        POLICIES.check(expansion.policy)
        return Request(
            question=text(inputs, "text_input") or "",
            passages=texts(inputs, "passages"),
            expansion=expansion,
            history=read_turns(texts(inputs, "history")),
            whole_history=flag(inputs, "whole_history", default=False),
        )

    def _limits(self, inputs: Tensors) -> ContextLimits:
        max_tokens = integer(inputs, "max_tokens")
        return ContextLimits(
            # The decoder refuses fewer than one.
            answer_tokens=self.settings.default_max_tokens if max_tokens is None else max(1, max_tokens),
            num_chunks=self.settings.max_chunks,
            text_tokens=self.settings.history_text_tokens,
        )

    def _draw_shadow(self, inputs: Tensors) -> bool:
        fraction = scalar(inputs, "shadow_fraction")
        if fraction is None:
            fraction = self.settings.shadow_fraction
        if not 0 <= fraction <= 1:
            raise InvalidRequest(f"shadow_fraction is {fraction}; {ALLOWED_SHADOWS}")
        return random.random() < fraction

    def _check_size(self, context: PreparedContext) -> None:
        self._check_question(context)
        count, limit = len(context.chunks) + len(context.question_chunks), self.settings.max_chunks
        if count > limit:
            raise InvalidRequest(
                f"the passages hold {context.chunks.num_tokens} tokens in {len(context.chunks)} chunks of up to "
                f"{self.config.chunk_size}; with the question's {len(context.question_chunks)} that is over "
                f"the limit of {limit}; send fewer or shorter passages"
            )

    def _check_question(self, context: PreparedContext) -> None:
        """Raise InvalidRequest for a question that would not fit without any passage either."""
        num_slots, window = self.chunker.num_other_slots(context.question_ids), self.config.max_prompt_slots
        if num_slots >= window:
            raise InvalidRequest(
                f"text_input takes {num_slots} slots by itself, the decoder's window is {window}; shorten the question"
            )
        num_chunks, limit = len(context.question_chunks), self.settings.max_chunks
        if num_chunks > limit:
            raise InvalidRequest(f"text_input holds {num_chunks} chunks, the limit is {limit}; shorten the question")
