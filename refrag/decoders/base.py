"""The contract that every decoder fulfils: mixed prompts in, deltas out, each request by itself.

service ── submit(DecoderRequest, Sink) ─► backend ── send(Delta) … send(last Delta) | fail(error) ─► Sink
        ── stop(request_id) ────────────►
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from refrag.context.chunking import NO_TOKEN
from refrag.errors import InvalidRequest, RefragError
from refrag.request import Fallback, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# S slots, R rows of chunk embeddings, D decoder width, C chunks, K tokens per chunk

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class MixedPrompt:
    """A prompt of tokens and chunk embeddings.

    input_ids (S,): an id ≥ vocab_size stands for row (id − vocab_size) of chunk_embeddings (R, D).
    """

    input_ids: "Tensor"
    chunk_embeddings: "Tensor"


@dataclass(frozen=True, eq=False)
class ChunksToSense:
    """Chunks of which the decoder is to choose those to expand, by its own attention.

    All are compressed in the prompt: row r of its chunk embeddings is chunk r, and has one slot.
    policy: the name of the policy that chooses. budget: how many chunks, not all, and none only with a fallback.
    token_ids (C, K): of each chunk, -1 after the end of a short one. passages (C,): number of each chunk's passage.
    similarities (C,): cosine of each chunk's vector with the question's.
    num_tokens: generated tokens whose attention is read besides the question's.
    fallback: the raised budget, if there is to be one.
    """

    policy: str
    budget: int
    token_ids: "np.ndarray"
    passages: "np.ndarray"
    similarities: "np.ndarray"
    num_tokens: int = 0
    fallback: Fallback | None = None

    @property
    def most_added_slots(self) -> int:
        """Slots that the prompt may grow by, whichever chunks are expanded."""
        lengths = sorted((self.token_ids >= 0).sum(1).tolist(), reverse=True)
        most = self.budget if self.fallback is None else self.fallback.budget
        return sum(length - 1 for length in lengths[:most])


@dataclass(frozen=True, eq=False)
class Choice:
    """Chunks that the decoder has chosen to expand.

    expanded: their numbers, ascending. weights (C,): each chunk's share of the attention to all.
    prompt: the one with these chunks in full.
    """

    expanded: list[int]
    weights: "np.ndarray"
    prompt: MixedPrompt

    @property
    def num_slots(self) -> int:
        return len(self.prompt.input_ids)


@dataclass(frozen=True, eq=False)
class DecoderRequest:
    """A prompt to answer.

    request_id: its name for `stop`; "" for none. priority: lower goes first.
    deadline: when the request is ended, finished or not, in seconds of time.monotonic().
    arrival: when the caller began to wait, by the same clock.
    choose: takes the logits before each token, (V,), and returns the token, in the decoder's thread; None to sample. Of
        decoders with `lets_choose` alone, as is_background.
    is_background: whether it is computed only while no other request is there, and counts in no metric.
    to_sense: chunks to choose from first; None if they were chosen already.
    """

    prompt: MixedPrompt = field(repr=False)
    sampling: SamplingParams
    request_id: str = ""
    deadline: float = float("inf")
    priority: int = 0
    arrival: float = 0.0
    choose: "Callable[[Tensor], int] | None" = field(default=None, repr=False)
    is_background: bool = False
    to_sense: ChunksToSense | None = None


@dataclass(frozen=True)
class Delta:
    """The addition of one decoding step to an answer. Only the last delta of an answer has a finish reason.

    text: may lag behind the tokens, while a character or a stop word is incomplete.
    log_probabilities: natural logarithms, one per token if the request asked for them, else none.
    """

    text: str
    token_ids: list[int]
    log_probabilities: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Sink(Protocol):
    """Receiver of one request's deltas. The last call is either `fail` or a `send` with a finish reason, never both.

    `choose` comes before the first delta, and only where the decoder itself chooses the chunks to expand.
    """

    def choose(self, choice: Choice) -> None: ...

    def send(self, delta: Delta) -> None: ...

    def fail(self, error: RefragError) -> None: ...

    def is_abandoned(self) -> bool:
        """Return whether the receiver is known to be gone. The decoder asks now and then, and then ends the request."""


@dataclass(frozen=True)
class Limits:
    """Limits that every prompt must keep to.

    vocab_size: the first id that is not a token. width: width of a chunk embedding.
    window: the decoder's window, the most slots of prompt and answer together.
    """

    vocab_size: int
    width: int
    window: int


@dataclass
class DecoderStats:
    """Figures of one step, for metrics. Each list of seconds has one entry per request or token concerned."""

    num_active: int = 0
    num_waiting: int = 0
    num_held_blocks: int = 0
    num_blocks: int = 0
    num_computed_slots: int = 0
    num_reused_slots: int = 0
    num_preempted: int = 0
    num_tokens: int = 0
    queue_seconds: list[float] = field(default_factory=list)
    ttft_seconds: list[float] = field(default_factory=list)
    inter_token_seconds: list[float] = field(default_factory=list)
    sensing_seconds: list[float] = field(default_factory=list)


Observe = Callable[[DecoderStats], None]


class DecoderBackend(Protocol):
    """A decoder with its weights, its memory and its thread.

    settings_type: frozen dataclass of its own parameters in the config.pbtxt of the model `decoder`.
    lets_choose: whether requests may bring a `choose` and may be in the background; False where it is missing.
    shows_attention: whether it takes requests with `to_sense`. Those that do not say so do not.
    checkpoint: folder of the deployed checkpoint. observe: called with the stats of each step as it ends.
    Raises SetupError or CheckpointError if it cannot serve this checkpoint on this machine.
    """

    settings_type: ClassVar[type[Any]]
    lets_choose: ClassVar[bool]
    shows_attention: ClassVar[bool] = False

    def __init__(self, checkpoint: Path, settings: Any, observe: Observe) -> None: ...

    @property
    def limits(self) -> Limits: ...

    def submit(self, request: DecoderRequest, sink: Sink) -> None:
        """Queue a request that has passed `check_prompt`, and return at once.

        Raises InvalidRequest (its id is in flight, or memory could never hold it), Overloaded, or Cancelled (stopped
        before it came). The sink is then never called.
        """

    def stop(self, request_id: str) -> None:
        """End the request as Cancelled. One still to come is refused when it comes; one that has ended is ignored."""

    def stats(self) -> DecoderStats:
        """Return the stats of the last step."""

    def close(self) -> None:
        """End every request as ServerUnavailable, and free what the decoder holds. May be called twice."""


def check_prompt(
    prompt: MixedPrompt, sampling: SamplingParams, limits: Limits, has_context: bool = True, num_added_slots: int = 0
) -> None:
    """Raise InvalidRequest unless the decoder can take the prompt.

    Prompt and answer must fit the decoder's window, every id must be a token or have its row, and rows must be finite.
    has_context: whether the prompt holds passages, which the caller could leave out. num_added_slots: by how many the
    prompt may grow once the decoder has chosen the chunks to expand.
    """
    num_slots = len(prompt.input_ids) + num_added_slots
    if len(prompt.input_ids) == 0:
        raise InvalidRequest("the prompt has no slots; send at least a question")
    if num_slots + sampling.max_tokens > limits.window:
        raise InvalidRequest(
            f"the prompt needs {num_slots} slots and max_tokens {sampling.max_tokens} more, the decoder's window is "
            f"{limits.window}; {_remedy(sampling, limits, has_context)}"
        )
    rows, width = prompt.chunk_embeddings.shape
    if rows and width != limits.width:
        raise InvalidRequest(f"prompt_embedding_table has rows of width {width}; the decoder's width is {limits.width}")
    highest, lowest = int(prompt.input_ids.max()), int(prompt.input_ids.min())
    if lowest < 0 or highest >= limits.vocab_size + rows:
        raise InvalidRequest(
            f"input_ids range from {lowest} to {highest}; allowed is 0 to {limits.vocab_size + rows - 1}: "
            f"{limits.vocab_size} tokens, then {rows} rows of prompt_embedding_table"
        )
    if rows > num_slots:
        raise InvalidRequest(
            f"prompt_embedding_table has {rows} rows for a prompt of {num_slots} slots; send those that input_ids name"
        )
    if not _are_finite(prompt.chunk_embeddings):
        raise InvalidRequest("prompt_embedding_table holds NaN or infinity; every value must be finite")


def check_sensed(prompt: MixedPrompt, chunks: ChunksToSense, limits: Limits) -> None:
    """Raise InvalidRequest unless each row has one slot, in order, and each chunk's tokens are the decoder's."""
    rows = [slot_id for slot_id in prompt.input_ids.tolist() if slot_id >= limits.vocab_size]
    if rows != list(range(limits.vocab_size, limits.vocab_size + len(prompt.chunk_embeddings))):
        raise InvalidRequest(
            f"input_ids name {len(rows)} rows of prompt_embedding_table, which has {len(prompt.chunk_embeddings)}; "
            "where the decoder chooses the chunks, each row must have one slot, in order"
        )
    if int(prompt.input_ids[-1]) >= limits.vocab_size:
        raise InvalidRequest(
            "input_ids has no slot after the last chunk, whose attention could be read; send a question"
        )
    lowest, highest = chunks.token_ids.min(), chunks.token_ids.max()
    if lowest < NO_TOKEN or highest >= limits.vocab_size:
        raise InvalidRequest(
            f"sense_chunk_ids range from {lowest} to {highest}; allowed is 0 to {limits.vocab_size - 1}, and "
            f"{NO_TOKEN} after the end of a short chunk"
        )


def shows_attention(decoder: DecoderBackend | type[DecoderBackend]) -> bool:
    """Return whether the decoder takes requests with chunks to sense; one of another package may not say."""
    return getattr(decoder, "shows_attention", False)


def end_requests(decoder: DecoderBackend) -> None:
    """End every request as ServerUnavailable, before `close`.

    A decoder whose closing takes time, as that of an engine in other processes, has a method `end_requests` for it, so
    that callers are told while the server still answers. Others are closed.
    """
    getattr(decoder, "end_requests", decoder.close)()


def _remedy(sampling: SamplingParams, limits: Limits, has_context: bool) -> str:
    """Return what makes a prompt and its answer fit the window."""
    if sampling.max_tokens >= limits.window:
        return "lower max_tokens"
    if not has_context:
        return "shorten the question or lower max_tokens"
    return "send fewer passages, or lower expand_fraction, max_prompt_slots or max_tokens"


def join_deltas(deltas: Sequence[Delta]) -> Delta:
    """Return the whole answer, of one or more deltas, as a single one."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        log_probabilities=[value for delta in deltas for value in delta.log_probabilities],
        finish_reason=deltas[-1].finish_reason,
    )


def _are_finite(rows: "Tensor") -> bool:
    # Both extremes in one pass, without a mask of all values: if there is a NaN, it comes out as both.
    if not rows.numel():
        return True
    lowest, highest = (float(extreme) for extreme in rows.aminmax())
    return math.isfinite(lowest) and math.isfinite(highest)
